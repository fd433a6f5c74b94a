"""A Gradio page in a FastAPI app that logs in, as Gradio's guide shows it (``auth_dependency``): its login is in the
session, its queue and its ``gr.State`` are in the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import gradio
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse

api = FastAPI()


@api.get("/")
async def entrance() -> HTMLResponse:
    return HTMLResponse('<!doctype html><form method="post" action="/login"><button id="enter">log in</button></form>')


@api.post("/login")
async def login(request: Request) -> RedirectResponse:
    request.session.regenerate("ada")  # type: ignore[attr-defined]
    return RedirectResponse("/page/", 303)


@api.post("/logout")
async def logout(request: Request) -> RedirectResponse:
    request.session.close()  # type: ignore[attr-defined]
    return RedirectResponse("/", 303)


@api.get("/server")
async def server() -> PlainTextResponse:
    return PlainTextResponse(os.environ["COATCHECK_SERVER"])


def who(request: Request) -> str | None:
    user: str | None = request.session.user  # type: ignore[attr-defined]
    return user


def say(words: str, heard: int, request: gradio.Request) -> Iterator[tuple[str, int]]:
    """In two pieces, from Gradio's queue."""
    yield "wait", heard
    yield f"{request.username} {words} {heard + 1} {os.environ['COATCHECK_SERVER']}", heard + 1


with gradio.Blocks(analytics_enabled=False) as page:
    words = gradio.Textbox(elem_id="words")
    heard = gradio.State(0)
    said = gradio.Textbox(elem_id="said")
    gradio.Button("say", elem_id="go").click(say, [words, heard], [said, heard])

app = gradio.mount_gradio_app(api, page, "/page", auth_dependency=who)
