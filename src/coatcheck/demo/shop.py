"""A small shop: plain Starlette and ``request.session``. That is a dict, with a few verbs for logins and devices."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from coatcheck import Device, Session

GOODS = {
    "coat": ("🧥", "Winter coat"),
    "hat": ("🎩", "Top hat"),
    "scarf": ("🧣", "Wool scarf"),
    "gloves": ("🧤", "Gloves"),
    "umbrella": ("☂️", "Umbrella"),
    "boots": ("🥾", "Boots"),
}
MAX_ITEMS = 200
MAX_QUANTITY = 99
MAX_NAME = 40
MAX_BODY_BYTES = 4096
SERVER = os.environ.get("COATCHECK_SERVER", "a server of its own")


async def form(request: Request) -> dict[str, str]:
    """The fields of a small HTML form."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}


def set_quantity(session: dict[str, Any], item: str, quantity: int) -> None:
    cart = session.setdefault("cart", {})
    if quantity <= 0:
        cart.pop(item, None)
    elif item in cart or len(cart) < MAX_ITEMS:
        cart[item] = min(quantity, MAX_QUANTITY)


async def page(request: Request) -> Response:
    session = request.session
    session["visits"] = session.get("visits", 0) + 1
    return HTMLResponse(render(session))


async def add(request: Request) -> Response:
    item = (await form(request)).get("item", "")
    if item in GOODS:
        set_quantity(request.session, item, request.session.get("cart", {}).get(item, 0) + 1)
    return RedirectResponse("/", 303)


async def remove(request: Request) -> Response:
    set_quantity(request.session, (await form(request)).get("item", ""), 0)
    return RedirectResponse("/", 303)


async def login(request: Request) -> Response:
    """A shop with customers would ask for a passkey here; then it does the same."""
    name = (await form(request)).get("name", "").strip()[:MAX_NAME]
    if name:
        session: Session = request.session  # type: ignore[assignment]
        cart = session.get("cart", {})
        session.regenerate(name)  # a new session: whoever knew the old one's token knows nothing of this one
        session["name"], session["cart"] = name, dict(cart)
    return RedirectResponse("/", 303)


async def logout(request: Request) -> Response:
    session: Session = request.session  # type: ignore[assignment]
    session.close()
    return RedirectResponse("/", 303)


async def devices(request: Request) -> Response:
    """Where the customer is logged in (ASVS 7.5.2)."""
    session: Session = request.session  # type: ignore[assignment]
    if session.user is None:
        return RedirectResponse("/", 303)
    return HTMLResponse(render_devices(await session.devices()))


async def close_device(request: Request) -> Response:
    """By POST alone: a page elsewhere can make a browser send a GET with its cookies, but no POST."""
    session: Session = request.session  # type: ignore[assignment]
    await session.close_device((await form(request)).get("id", ""))
    return RedirectResponse("/devices", 303)


async def close_other_devices(request: Request) -> Response:
    session: Session = request.session  # type: ignore[assignment]
    await session.close_other_devices()
    return RedirectResponse("/devices", 303)


async def show_cart(request: Request) -> Response:
    session = request.session
    return JSONResponse({"name": session.get("name"), "cart": session.get("cart", {}), "server": SERVER})


async def put_item(request: Request) -> Response:
    """Set, not add: a repeated request does no harm, so a director may repeat it."""
    try:
        quantity = int((await request.json())["quantity"])
    except (ValueError, KeyError, TypeError):
        return JSONResponse({"error": 'send {"quantity": 1}'}, 400)
    set_quantity(request.session, request.path_params["item"][:MAX_NAME], quantity)
    return JSONResponse({"cart": request.session.get("cart", {}), "server": SERVER})


async def put_name(request: Request) -> Response:
    request.session["name"] = request.path_params["name"][:MAX_NAME]
    return JSONResponse({"name": request.session["name"], "server": SERVER})


STYLE = """
:root { color-scheme: light dark; --ink: #2b2118; --paper: #faf6ef; --card: #fff; --gold: #b8862d; }
@media (prefers-color-scheme: dark) { :root { --ink: #efe6d8; --paper: #1d1813; --card: #2a231b; --gold: #d9a94e; } }
* { box-sizing: border-box }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink) }
main { max-width: 46rem; margin: 0 auto; padding: 2rem 1rem }
h1 { font-family: Georgia, serif; letter-spacing: .02em; margin: 0 }
.served { border-left: 4px solid var(--gold); padding: .5rem 1rem; margin: 1rem 0; background: var(--card) }
.goods { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .8rem; padding: 0 }
.goods form, .cart { background: var(--card); border-radius: .6rem; padding: 1rem; text-align: center }
.cart { text-align: left; margin-top: 1.2rem } .cart form { display: inline } .big { font-size: 2.2rem }
li { margin: .2rem 0 } code { font-size: .9em }
button { font: inherit; border: 1px solid var(--gold); background: none; color: inherit; border-radius: .4rem;
  padding: .2rem .8rem; cursor: pointer } button:hover { background: var(--gold); color: #fff }
input { font: inherit; padding: .2rem .5rem; border: 1px solid #9996; border-radius: .4rem; background: none;
  color: inherit }
"""


def render(session: dict[str, Any]) -> str:
    """The page with everything on it."""
    goods = "".join(
        f'<form method="post" action="/add"><div class="big">{icon}</div>{words}<br>'
        f'<button name="item" value="{item}">Add</button></form>'
        for item, (icon, words) in GOODS.items()
    )
    cart = session.get("cart", {})
    lines = "".join(
        f"<li>{quantity} × {html.escape(GOODS.get(item, ('', item))[1])} "
        f'<form method="post" action="/remove"><button name="item" value="{html.escape(item)}">remove</button>'
        "</form></li>"
        for item, quantity in cart.items()
    )
    name = session.get("name")
    who = (
        f'<form method="post" action="/logout">Hello <b>{html.escape(name)}</b>. '
        '<a href="/devices">Your devices</a> <button>Log out</button></form>'
        if name
        else '<form method="post" action="/login"><input name="name" placeholder="Your name" required maxlength="40"> '
        "<button>Log in</button></form>"
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>The Cloakroom Shop</title>
<style>{STYLE}</style><main><h1>The Cloakroom Shop</h1>
<p class="served">This page came from <b>{html.escape(SERVER)}</b> (process {os.getpid()}).
It is your visit number <b>{session["visits"]}</b>.<br>
Kill that server with <code>kill -9 {os.getpid()}</code>, then reload: your cart stays.</p>
{who}<h2>Goods</h2><div class="goods">{goods}</div>
<div class="cart"><h2>Your cart</h2><ul>{lines or "<li>empty</li>"}</ul></div></main></html>"""


def render_devices(found: Sequence[Device]) -> str:
    """The page "your devices"."""
    rows = "".join(
        f"<li><b>{html.escape(one.device or 'an unknown browser')}</b><br>from {html.escape(one.address or '?')}, "
        f"since {_when(one.logged_in_at)}, last used {_when(one.last_seen_at)} "
        + (
            "(this one)"
            if one.current
            else f'<form method="post" action="/devices/close"><button name="id" value="{html.escape(one.id)}">'
            "log out</button></form>"
        )
        + "</li>"
        for one in found
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Your devices</title>
<style>{STYLE}</style><main><h1>Your devices</h1><div class="cart"><ul>{rows}</ul>
<form method="post" action="/devices/close-others"><button>Log out everywhere else</button></form></div>
<p><a href="/">Back to the shop</a></p></main></html>"""


def _when(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%d %b %H:%M UTC")


app = Starlette(
    routes=[
        Route("/", page),
        Route("/add", add, methods=["POST"]),
        Route("/remove", remove, methods=["POST"]),
        Route("/login", login, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
        Route("/devices", devices),
        Route("/devices/close", close_device, methods=["POST"]),
        Route("/devices/close-others", close_other_devices, methods=["POST"]),
        Route("/api/cart", show_cart),
        Route("/api/cart/{item}", put_item, methods=["PUT"]),
        Route("/api/name/{name}", put_name, methods=["PUT"]),
    ]
)
