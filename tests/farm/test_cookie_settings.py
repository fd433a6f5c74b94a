"""What ``coatcheck serve`` was told about cookies, in the headers that leave the director."""

from __future__ import annotations

import http.client
from collections.abc import Callable

from .farm_process import Farm


def visit(farm: Farm, path: str = "/", cookies: dict[str, str] | None = None) -> tuple[str, list[str]]:
    """One request with these cookies, as they are (a jar would keep Secure ones back): the body, and Set-Cookie."""
    connection = http.client.HTTPConnection(farm.note()["address"], timeout=30)
    sent = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())} if cookies else {}
    connection.request("GET", path, headers=sent)
    answer = connection.getresponse()
    body = answer.read().decode()
    lines = [value for name, value in answer.getheaders() if name.lower() == "set-cookie"]
    connection.close()
    return body, lines


def taken(lines: list[str]) -> dict[str, str]:
    return dict(line.partition(";")[0].partition("=")[::2] for line in lines)


def attributes(lines: list[str], name: str) -> list[str]:
    assert name in taken(lines)
    line = next(line for line in lines if line.startswith(f"{name}="))
    return line.split("; ")[1:]


def test_embedded_in_other_sites_and_remembered(farm: Callable[..., Farm]) -> None:
    wishes = ("--cookie-name", "shop", "--cookie-max-age", "1h", "--cookie-same-site", "none", "--cookie-partitioned")
    running = farm("--no-insecure-localhost", *wishes)
    _, lines = visit(running)
    assert attributes(lines, "__Host-shop") == [
        "Path=/", "HttpOnly", "Secure", "Max-Age=3600", "SameSite=None", "Partitioned",
    ]  # fmt: skip
    # The route cookie must be sent wherever the session's is, and says nothing that should outlive the browser.
    assert attributes(lines, "__Host-shop-route") == ["Path=/", "HttpOnly", "Secure", "SameSite=None", "Partitioned"]
    seen = {visit(running, "/", taken(lines))[0] for _ in range(6)}
    assert len({body.partition("server")[2] for body in seen}) == 1  # it is understood: one web server had them all


def test_shared_by_subdomains_below_a_path(farm: Callable[..., Farm]) -> None:
    wishes = ("--cookie-domain", "shop.example", "--cookie-path", "/", "--cookie-same-site", "strict")
    running = farm("--no-insecure-localhost", *wishes)
    _, lines = visit(running)
    assert attributes(lines, "__Secure-coatcheck") == [
        "Path=/", "HttpOnly", "Secure", "Domain=shop.example", "SameSite=Strict",
    ]  # fmt: skip
    assert attributes(lines, "__Host-coatcheck-route") == ["Path=/", "HttpOnly", "Secure", "SameSite=Strict"]
    assert '"count":2' in visit(running, "/", taken(lines))[0]


def test_below_a_path_of_the_host(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1", "--no-insecure-localhost", "--cookie-path", "/shop")
    _, lines = visit(running)
    assert attributes(lines, "__Secure-coatcheck") == ["Path=/shop", "HttpOnly", "Secure", "SameSite=Lax"]


def test_what_browsers_refuse_is_refused(farm: Callable[..., Farm]) -> None:
    for wrong, line in (
        (("--cookie-partitioned",), 'cookie_partitioned: needs same_site = "none"'),
        (("--cookie-same-site", "none"), 'insecure_localhost: browsers refuse cookie_same_site "none"'),
        (("--cookie-domain", "localhost"), "cookie_domain: a host name of two labels or more"),
        (("--cookie-max-age", "30d"), "cookie_max_age: longer than absolute_timeout"),
        (("--cookie-name", "__Host-shop"), "cookie_name: the prefix is made from domain and path"),
    ):
        refused = farm(*wrong, wait=False)
        assert refused.process.wait(60) == 2
        assert refused.log.count("\n") == 1, refused.log
        assert refused.log.startswith(f"coatcheck: {line}")
