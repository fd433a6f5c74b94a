"""The table of sites: where a page lives, who shares a cookie, and what no table may say."""

from __future__ import annotations

import pytest

from coatcheck import CookiePolicy
from coatcheck.errors import ConfigError
from coatcheck.hand_off.sites import MAX_PATTERNS, Site, Sites
from coatcheck.sessions.site_chains import MAX_SITES

SHOP = Site(name="shop", origin="https://shop.example")
TABLE = (
    SHOP,
    Site(name="tickets", origin="https://tickets.example", paths=("/tickets/*", "/about")),
    Site(name="seats", origin="https://seats.example:8443", paths=("/tickets/seats/*", "/tickets/plan")),
)
SITES = Sites(table=TABLE)


@pytest.mark.parametrize(
    ("path", "site"),
    [
        ("/", "shop"),
        ("/basket", "shop"),
        ("/about", "tickets"),
        ("/about/us", "shop"),
        ("/tickets", "tickets"),
        ("/tickets/", "tickets"),
        ("/tickets/1/2", "tickets"),
        ("/ticketsale", "shop"),
        ("/tickets/seats", "seats"),
        ("/tickets/seats/7", "seats"),
        ("/tickets/plan", "seats"),
        ("/tickets/plan/7", "tickets"),
        ("//tickets/1", "shop"),
        ("/%74icket%73/1", "tickets"),
        ("/tickets%2F1", "shop"),
        ("/tickets/../admin", None),
        ("/tickets/%2e%2e/admin", None),
        ("/tickets/.%2E", None),
        ("/tickets/..x", "tickets"),
        ("", None),
        ("tickets", None),
        ("/tickets/\r\nset-cookie:x", None),
        ("/tickets/\x7f", None),
        ("/tickets/é", None),
    ],
)
def test_the_longest_pattern_decides(path: str, site: str | None) -> None:
    found = SITES.of_page(path)
    assert (found.name if found else None) == site


def test_the_site_without_paths_is_home_and_served_if_nothing_is_said() -> None:
    assert SITES.home is SITES.own is SHOP
    assert Sites(table=TABLE, here="seats").own.name == "seats"


def test_who_shares_a_cookie() -> None:
    alone, shared = CookiePolicy(), CookiePolicy(domain="example.com")
    of = {name: f"https://{name}" for name in ("example.com", "shop.example.com", "tickets.example.com:8443")}
    table = tuple(Site(name=f"s{n}", origin=one, paths=("/s/*",) if n else ()) for n, one in enumerate(of.values()))
    sites = Sites(table=(*table[:2], Site(name="s2", origin=of["tickets.example.com:8443"], paths=("/t",))))
    assert [sites.chain_name(site, alone) for site in sites.table] == ["", "shop.example.com", "tickets.example.com"]
    assert [sites.chain_name(site, shared) for site in sites.table] == ["", "", ""]
    other = Sites(table=(SHOP, Site(name="ours", origin=of["shop.example.com"], paths=("/s",))))
    assert [other.chain_name(site, shared) for site in other.table] == ["", "example.com"]
    ports = Sites(table=(SHOP, Site(name="two", origin="https://shop.example:8443", paths=("/s",))))
    assert [ports.chain_name(site, alone) for site in ports.table] == ["", ""], "cookies do not know ports"
    evil = Sites(table=(SHOP, Site(name="two", origin="https://notexample.com", paths=("/s",))))
    assert evil.chain_name(evil.table[1], shared) == "notexample.com"


def site(origin: str = "https://tickets.example", *paths: str, name: str = "tickets") -> Site:
    return Site(name=name, origin=origin, paths=paths or ("/tickets/*",))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ((SHOP,), "2 to 8"),
        ((SHOP, *(site(f"https://s{n}.example", f"/{n}", name=f"s{n}") for n in range(MAX_SITES))), "2 to 8"),
        ((SHOP, Site(name="tickets", origin="https://tickets.example")), "exactly one has no paths"),
        ((site(), site("https://s.example", "/s", name="s")), "exactly one has no paths"),
        ((SHOP, site(name="shop")), "name 'shop' stands there twice"),
        ((SHOP, site("https://shop.example")), "origin 'https://shop.example' stands there twice"),
        ((SHOP, site(), site("https://s.example", "/tickets/*", name="s")), "path '/tickets/*' stands there twice"),
        ((SHOP, site(name="ti ckets")), "letters, digits"),
        ((SHOP, site("http://tickets.example")), "https://"),
        ((SHOP, site("https://tickets.example/")), "origin"),
        ((SHOP, site("https://tickets.example:443")), "origin"),
        ((SHOP, site("https://tickets.example:x")), "origin"),
        ((SHOP, site("https://Tickets.example")), "origin"),
        ((SHOP, site("https://user@tickets.example")), "origin"),
        ((SHOP, site("https://tickets.exämple")), "origin"),
        ((SHOP, site("https://tickets.example\r\nx: y")), "origin"),
        ((SHOP, site("ftp://tickets.example")), "origin"),
        ((SHOP, site("")), "origin"),
        ((SHOP, site("https://tickets.example", "tickets")), "paths"),
        ((SHOP, site("https://tickets.example", "/*")), "paths"),
        ((SHOP, site("https://tickets.example", "/")), "paths"),
        ((SHOP, site("https://tickets.example", "/a*")), "star"),
        ((SHOP, site("https://tickets.example", "/*/b")), "paths"),
        ((SHOP, site("https://tickets.example", "/a/../b")), "paths"),
        ((SHOP, site("https://tickets.example", "/a?b")), "paths"),
        ((SHOP, site("https://tickets.example", "/.coatcheck/*")), "own"),
        ((SHOP, site("https://tickets.example", *(f"/{n}" for n in range(MAX_PATTERNS + 1)))), "at most"),
    ],
)
def test_what_no_table_may_say(table: tuple[Site, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("*", r"\*")):
        Sites(table=table)


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8001", "http://tickets.localhost:8001", "http://[::1]:8001"])
def test_this_machines_own_hosts_may_do_without_tls(origin: str) -> None:
    assert Sites(table=(SHOP, site(origin))).table[1].origin == origin


def test_who_is_served_here_stands_in_the_table() -> None:
    with pytest.raises(ConfigError, match="'bar' is none of"):
        Sites(table=TABLE, here="bar")


@pytest.mark.parametrize(
    ("cookies", "says"), [(CookiePolicy(same_site="strict"), "strict"), (CookiePolicy(path="/app"), "cookie_path")]
)
def test_cookies_that_cannot_be_handed_over(cookies: CookiePolicy, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SITES.check_cookies(cookies)
    one_host = (SHOP, site("https://shop.example:8443"))
    Sites(table=one_host).check_cookies(cookies)
