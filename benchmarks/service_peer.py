"""The peer of :mod:`benchmarks.service`: forward-auth as one writes it in Starlette, with sessions in Redis.

As good as its author knows how: opaque IDs of 256 bits, one GETEX for a request (its life begins anew), the same
signature in the header, the caller's token compared in constant time; a renewal writes the new ID and deletes the old
one in one transaction. It has no rotation with grace, no theft detection, no copies, no versions.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import time

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LIFE_S = 1800
BEARER = "Bearer " + os.environ.get("BEARER", "")
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
redis = Redis.from_url(os.environ.get("STORE", "redis://127.0.0.1:6379"))


def known(request: Request) -> bool:
    return hmac.compare_digest(request.headers.get("authorization", ""), BEARER)


async def create(request: Request) -> Response:
    session = secrets.token_urlsafe(32)
    await redis.set(f"s:{session}", json.dumps({"user": "ada", "role": "boss"}), ex=LIFE_S)
    return JSONResponse({"cookie": f"session={session}"}, 201)


async def forward_auth(request: Request) -> Response:
    session = request.cookies.get("session", "")
    if not known(request) or not session:
        return Response(status_code=401)
    found = await redis.getex(f"s:{session}", ex=LIFE_S)
    if found is None:
        return Response(status_code=401)
    data, now = json.loads(found), int(time.time())
    claims = {
        "iss": "peer",
        "aud": "shop",
        "sub": data["user"],
        "iat": now,
        "exp": now + 30,
        "claims": {"role": data["role"]},
    }
    assertion = jwt.encode(claims, KEY, algorithm="EdDSA")
    return Response(
        headers={"X-Session-User": data["user"], "X-Session-Assertion": assertion, "Cache-Control": "no-store"}
    )


async def verify(request: Request) -> Response:
    session = (await request.json())["cookie"].removeprefix("session=")
    if not known(request):
        return Response(status_code=401)
    found = await redis.get(f"s:{session}")
    return Response(status_code=404) if found is None else JSONResponse({"session": json.loads(found)})


async def renew(request: Request) -> Response:
    session = (await request.json())["cookie"].removeprefix("session=")
    if not known(request):
        return Response(status_code=401)
    found = await redis.get(f"s:{session}")
    if found is None:
        return Response(status_code=404)
    fresh = secrets.token_urlsafe(32)
    async with redis.pipeline(transaction=True) as pipe:
        await pipe.set(f"s:{fresh}", found, ex=LIFE_S).delete(f"s:{session}").execute()
    return JSONResponse({"session": json.loads(found), "cookie": f"session={fresh}"})


app = Starlette(
    routes=[
        Route("/v1/sessions", create, methods=["POST"]),
        Route("/v1/sessions/verify", verify, methods=["POST"]),
        Route("/v1/sessions/renew", renew, methods=["POST"]),
        Route("/v1/forward-auth", forward_auth),
    ]
)
