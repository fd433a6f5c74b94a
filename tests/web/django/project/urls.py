"""The shop: sync and async views; what a test wants done to a session it says in ``views.do``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.auth import alogin, alogout, authenticate, login, logout
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import path

todo: dict[str, Callable[[HttpRequest], Any]] = {}
"""What ``/do`` and ``/ado`` do."""


def add(request: HttpRequest) -> JsonResponse:
    cart = request.session.get("cart", [])
    request.session["cart"] = [*cart, request.GET.get("item", "tea")]
    return JsonResponse(request.session["cart"], safe=False)


def who(request: HttpRequest) -> JsonResponse:
    said = [str(message) for message in messages.get_messages(request)]
    return JsonResponse({"user": request.user.get_username(), "cart": request.session.get("cart"), "said": said})


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


def sign_in(request: HttpRequest) -> HttpResponse:
    user = authenticate(request, username=request.GET["user"], password=request.GET["user"])
    assert user is not None
    login(request, user)
    messages.success(request, f"welcome {user.get_username()}")
    return HttpResponse("in")


def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse("out")


async def aadd(request: HttpRequest) -> JsonResponse:
    cart = await request.session.aget("cart", [])
    await request.session.aset("cart", [*cart, "tea"])
    return JsonResponse(await request.session.aget("cart"), safe=False)


async def asign_in(request: HttpRequest) -> HttpResponse:
    await alogin(request, await User.objects.aget(username=request.GET["user"]))
    return HttpResponse("in")


async def asign_out(request: HttpRequest) -> HttpResponse:
    await alogout(request)
    return HttpResponse("out")


def do(request: HttpRequest) -> HttpResponse:
    done = todo["do"](request)
    return done if isinstance(done, HttpResponseBase) else HttpResponse(str(done))


async def ado(request: HttpRequest) -> HttpResponse:
    done = await todo["ado"](request)
    return done if isinstance(done, HttpResponseBase) else HttpResponse(str(done))


urlpatterns = [
    path("admin/", admin.site.urls),
    path("add", add),
    path("who", who),
    path("plain", plain),
    path("in", sign_in),
    path("out", sign_out),
    path("aadd", aadd),
    path("ain", asign_in),
    path("aout", asign_out),
    path("do", do),
    path("ado", ado),
]
