"""A FastAPI app that counts your visits: `coatcheck serve fastapi_app:app --insecure-localhost`.

It uses `request.session` as with Starlette's own middleware, and installs none.
"""

from typing import Any

from fastapi import FastAPI, Request

app = FastAPI()


@app.get("/")
async def visits(request: Request) -> dict[str, Any]:
    """One more visit."""
    request.session["visits"] = request.session.get("visits", 0) + 1
    return {"visits": request.session["visits"]}


@app.put("/notes/{name}")
async def write_note(name: str, text: str, request: Request) -> dict[str, Any]:
    """Keep a note in the session."""
    request.session.setdefault("notes", {})[name] = text
    return {"notes": request.session["notes"]}


@app.post("/logout")
async def logout(request: Request) -> dict[str, Any]:
    """Forget everything."""
    request.session.clear()
    return {"visits": 0}
