"""Token, cookie and operations checks over real sockets to an HTTPS farm, by their numbers in OWASP ASVS 5.0.

One farm for the file: it is far from Greenwich, logs each request, and lets its session servers hang for as long as a
test needs.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from coatcheck.events import public_id
from coatcheck.sessions.cookies import MAX_COOKIE_BYTES
from coatcheck.tokens.keyring import KeyRing

from .conftest import StartRealFarm
from .hostile_input import damaged, scrambled
from .real_farm import Answer, Browser, RealFarm, request_bytes, shopper

SESSIONS = 100
BIT_SHARE = (0.2, 0.8)
"""How often each bit is set in 100 random texts; beyond that once in a million million runs, for all 256 bits."""
HOSTILE = 150
YEAR_S = 365 * 86400
NOBODY = {"user": None, "data": {}, "lost": None}
SECRET = "4929-1234-5678-9012"
Story = Callable[[], Awaitable[None]]


@pytest.fixture(scope="module")
def farm(start_farm: StartRealFarm, certificate: tuple[Path, Path]) -> RealFarm:
    return start_farm(
        "--hsts", "365d", "--access-log", "--unresponsive-after", "10m",
        certificate=certificate, TZ="Pacific/Kiritimati", SHOP_PASSWORD=SECRET,
    )  # fmt: skip


@contextmanager
def recorded(farm: RealFarm) -> Iterator[list[dict[str, Any]]]:
    """The audit records that come while this is open."""
    before, found = len(farm.audit()), []
    yield found
    found += farm.audit()[before:]


def run(farm: RealFarm, story: Story) -> None:
    async def tell() -> None:
        with farm.connected():
            await story()

    asyncio.run(tell())


def resealed(token: str, at: int, value: int) -> str:
    """The token's text with one byte changed."""
    raw = bytearray(urlsafe_b64decode(token))
    raw[at] ^= value
    return urlsafe_b64encode(bytes(raw)).decode()


# -- tokens ------------------------------------------------------------------------------------------------


def test_7_2_1_forged_and_foreign_tokens_are_refused_and_counted(farm: RealFarm) -> None:
    async def story() -> None:
        browser = await shopper(farm)
        real = browser.token()
        foreign = farm.codec(ring=KeyRing([os.urandom(32)])).seal_token(real).decode()
        forged = urlsafe_b64encode(os.urandom(87)).decode()
        with recorded(farm) as records:
            for text in (foreign, forged):
                answer = await Browser(farm, {farm.cookie: text}).send(1, "GET")
                assert answer.body == NOBODY
                assert farm.cookie not in answer.cookies
        assert [record["event"] for record in records] == ["token.rejected"] * 2
        assert records[0]["detail"] == "unknown_key"
        assert (await browser.get(2)).data == {"n": 1}, "the real one is none the worse for it"

    run(farm, story)


def test_7_2_3_keys_and_ids_are_128_random_bits_each(farm: RealFarm) -> None:
    async def story() -> None:
        tokens = [(await shopper(farm, 1 + number % 2)).token() for number in range(SESSIONS)]
        texts = [token.key + token.session_id for token in tokens]
        assert {len(text) for text in texts} == {32}
        assert len({text[:16] for text in texts}) == len({text[16:] for text in texts}) == SESSIONS
        for bit in range(256):
            share = sum(text[bit // 8] >> bit % 8 & 1 for text in texts) / SESSIONS
            assert BIT_SHARE[0] <= share <= BIT_SHARE[1], f"bit {bit} is set in {share:.0%}"

    run(farm, story)


def test_7_2_4_each_login_gives_a_new_token_and_the_old_one_is_dead(farm: RealFarm) -> None:
    async def story() -> None:
        browser = await shopper(farm)
        before, key = browser.copy(), browser.token().key
        answer = await browser.post(2, "/login?user=ada")
        assert answer.cookies[farm.cookie] == "", "the anonymous one goes"
        assert browser.token(login=True).key != key
        for server in (1, 2):
            assert (await before.send(server, "GET")).body == NOBODY
        for user in ("ada", "root"):  # again, and with other rights
            again, key = browser.copy(), browser.token(login=True).key
            await browser.post(1, f"/login?user={user}")
            assert browser.token(login=True).key != key
            for server in (1, 2):
                assert (await again.send(server, "GET")).user is None
                assert (await browser.get(server)).user == user

    run(farm, story)


def test_9_1_1_every_flipped_byte_is_refused(farm: RealFarm) -> None:
    async def story() -> None:
        browser = await shopper(farm)
        text = browser.jar[farm.cookie]
        flipped = [resealed(text, at, 1 << at % 8) for at in range(len(urlsafe_b64decode(text)))]
        with recorded(farm) as records:
            for number, each in enumerate(flipped):
                assert (await Browser(farm, {farm.cookie: each}).send(1 + number % 2, "GET")).body == NOBODY
        assert [record["event"] for record in records] == ["token.rejected"] * len(flipped)
        assert len(flipped) > 80

    run(farm, story)


def test_9_1_2_only_the_one_format_is_opened(farm: RealFarm) -> None:
    async def story() -> None:
        text = (await shopper(farm)).jar[farm.cookie]
        with recorded(farm) as records:
            for other in (1, 2, 3, 7, 255):
                await Browser(farm, {farm.cookie: resealed(text, 0, other)}).send(1, "GET")
            for other in ("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEifQ.", "none", "{}"):
                assert (await Browser(farm, {farm.cookie: other}).send(1, "GET")).body == NOBODY
        assert [record["detail"] for record in records] == ["unknown_format"] * 5 + ["malformed"] * 3

    run(farm, story)


def test_9_1_3_keys_come_from_our_ring_alone(farm: RealFarm) -> None:
    """A token names its key; a name that our ring has, over another secret, opens nothing, and nothing is fetched."""

    async def story() -> None:
        browser = await shopper(farm)
        ours, theirs = browser.jar[farm.cookie], farm.codec(ring=KeyRing([os.urandom(32)])).seal_token(browser.token())
        mixed = urlsafe_b64decode(ours)[:5] + urlsafe_b64decode(theirs)[5:]
        with recorded(farm) as records:
            answer = await Browser(farm, {farm.cookie: urlsafe_b64encode(mixed).decode()}).send(1, "GET")
            assert answer.body == NOBODY
        assert [record["detail"] for record in records] == ["forged"], "our key was tried, and no other"

    run(farm, story)


def test_9_2_2_a_token_of_one_purpose_is_nothing_under_the_name_of_another(farm: RealFarm) -> None:
    async def story() -> None:
        browser = await shopper(farm)
        with recorded(farm) as records:
            promoted = Browser(farm, {farm.login_cookie: browser.jar[farm.cookie]})
            assert (await promoted.send(1, "GET")).body == NOBODY
            await browser.post(1, "/login")
            demoted = Browser(farm, {farm.cookie: browser.jar[farm.login_cookie]})
            assert (await demoted.send(2, "GET")).body == NOBODY
        assert [each["detail"] for each in records if each["event"] == "token.rejected"] == ["forged"] * 2

    run(farm, story)


def test_9_2_3_a_token_for_another_farm_is_refused_though_the_ring_is_the_same(farm: RealFarm) -> None:
    async def story() -> None:
        browser = await shopper(farm)
        for audience in ("farm2", "far", ""):
            text = farm.codec(farm=audience).seal_token(browser.token()).decode()
            assert (await Browser(farm, {farm.cookie: text}).send(1, "GET")).body == NOBODY
        same = farm.codec().seal_token(browser.token()).decode()
        assert (await Browser(farm, {farm.cookie: same}).send(1, "GET")).data == {"n": 1}, "and ours is not"

    run(farm, story)


def test_an_id_that_was_never_issued_is_never_adopted_and_counted(farm: RealFarm) -> None:
    """Session fixation: even what our own key ring sealed opens nothing that is not stored."""

    async def story() -> None:
        key, real = os.urandom(16), (await shopper(farm)).token()
        stamp = real.timestamp
        never = Browser(farm, {farm.cookie: farm.codec().seal(key, os.urandom(16), stamp, bytes(16)).decode()})
        with recorded(farm) as records:
            assert (await never.put(1)).data == {"n": 1}
        assert never.token().key != key
        assert ("session.not_found", public_id(key)) in [(each["event"], each["session"]) for each in records]
        for session_id, moved in ((os.urandom(16), 0), (real.session_id, 1)):
            text = farm.codec().seal(real.key, session_id, stamp + moved, real.version, real.list_number).decode()
            assert (await Browser(farm, {farm.cookie: text}).send(2, "GET")).data == {}, "ID and time must both match"

    run(farm, story)


def test_tokens_are_hostile_input(farm: RealFarm) -> None:
    """Any bytes, any length: never an error of the server, never a session, and the next request is served."""

    async def story() -> None:
        dice = random.Random(5)
        genuine = (await shopper(farm)).jar[farm.cookie].encode()
        for number in range(HOSTILE):
            raw = damaged(genuine, dice) if number % 2 else scrambled(dice)
            if raw == genuine or b"\r" in raw or b"\n" in raw:
                continue
            head = request_bytes("GET", "/", {farm.cookie: "?"}, {"connection": "close"}).replace(b"=?", b"=" + raw)
            held = await farm.wire.begin(head)
            answer = await held.finish()
            assert answer.status < 500, raw
            if answer.status == 200:
                assert answer.data == {} or genuine in raw, raw
        for length in (1, 115, 117, 4000, 20_000):
            assert (await Browser(farm, {farm.cookie: "A" * length}).send(1, "GET")).status in (200, 431)
        assert "Traceback" not in farm.farm.log

    run(farm, story)


# -- cookies and browsers ----------------------------------------------------------------------------------


async def whole_life(farm: RealFarm) -> list[Answer]:
    """Created, read, logged in, read elsewhere, logged out."""
    browser = Browser(farm)
    answers = [await browser.put(1), await browser.get(2), await browser.post(1, "/login"), await browser.get(2)]
    return [*answers, await browser.post(2, "/logout"), await browser.get(1)]


def test_3_3_every_cookie_has_its_attributes(farm: RealFarm) -> None:
    """3.3.1 Secure, 3.3.2 SameSite, 3.3.3 __Host-, 3.3.4 HttpOnly, 3.3.5 length; the route cookie, too."""

    async def story() -> None:
        first = await farm.wire.exchange(request_bytes("GET", "/plain", {}, {}))
        lines = first.lines + [line for answer in await whole_life(farm) for line in answer.lines]
        names = {line.partition("=")[0] for line in lines}
        assert names == {"__Host-coatcheck", "__Host-coatcheck-login", "__Host-coatcheck-route"}
        for line in lines:
            attributes = {part.strip().lower() for part in line.split(";")[1:]}
            assert {"secure", "httponly", "samesite=lax", "path=/"} <= attributes, line
            assert not any(part.startswith("domain") for part in attributes), line
            assert len(line.partition(";")[0]) < MAX_COOKIE_BYTES

    run(farm, story)


def test_3_3_4_a_token_is_told_by_set_cookie_alone(farm: RealFarm) -> None:
    async def story() -> None:
        for answer in await whole_life(farm):
            others = answer.text + repr([pair for pair in answer.headers if pair[0] != "set-cookie"])
            for text in filter(None, answer.cookies.values()):
                assert text not in others or text in ("web-1", "web-2")

    run(farm, story)


def test_3_4_1_every_answer_says_https_only(farm: RealFarm) -> None:
    async def story() -> None:
        answers = await whole_life(farm)
        answers += [await Browser(farm).send(1, "GET", path) for path in ("/plain", "/nowhere", "/breaks")]
        answers.append(await farm.wire.exchange(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"))
        assert [answer.status for answer in answers[-3:]] == [404, 500, 400]
        for answer in answers:
            assert answer.all("strict-transport-security") == [f"max-age={YEAR_S}"], answer.status

    run(farm, story)


def test_3_5_3_get_closes_and_changes_nothing(farm: RealFarm) -> None:
    async def story() -> None:
        user = f"get-{os.urandom(4).hex()}"
        phone, laptop = Browser(farm), Browser(farm)
        for one in (phone, laptop):
            login = await one.post(1, f"/login?user={user}")
            assert (login.status, login.user) == (200, user), (
                f"{login.text} {farm.audit()[-5:]} {farm.farm.log[-2000:]}"
            )
        listed = await laptop.get(1, "/devices")
        assert [one["this"] for one in listed.body] == [False, True], (
            f"{listed.text} {farm.audit()[-8:]} {farm.farm.log[-2000:]}"
        )
        [other] = [one["id"] for one in listed.body if not one["this"]]
        with recorded(farm) as records:
            for path in (f"/close-device?id={other}", "/close-others"):
                for server in (1, 2):
                    assert (await laptop.send(server, "GET", path)).status == 500, "the app is told that it may not"
            for _ in range(3):
                answer = await laptop.get(1)
                assert answer.user == user
                assert farm.login_cookie not in answer.cookies, "reading stores nothing and gives no new token"
        assert records == []
        assert (await phone.get(2)).user == user
        assert (await laptop.post(1, f"/close-device?id={other}")).body == {"closed": True}
        assert (await phone.get(2)).user is None

    run(farm, story)


def test_3_5_1_without_the_cookie_nothing_is_closed(farm: RealFarm) -> None:
    """What browsers send from other sites: SameSite=Lax leaves the cookie out, as a real browser shows elsewhere."""

    async def story() -> None:
        browser, user = Browser(farm), f"csrf-{os.urandom(4).hex()}"
        await browser.post(1, f"/login?user={user}")
        listed = (await browser.get(1, "/devices")).body
        stranger = Browser(farm)
        for path in ("/logout", "/close-others", f"/close-device?id={listed[0]['id']}"):
            await stranger.send(1, "POST", path, origin="https://evil.example")
        assert (await browser.get(2)).user == user

    run(farm, story)


def test_14_2_1_a_token_anywhere_but_in_its_cookie_opens_nothing(farm: RealFarm) -> None:
    async def story() -> None:
        browser = await shopper(farm)
        text = browser.jar[farm.cookie]
        for path in (
            f"/?{farm.cookie}={text}",
            f"/?session={text}",
            f"/?coatcheck-token={text}",
            f"/;{farm.cookie}={text}",
        ):
            answer = await Browser(farm).send(1, "GET", path)
            assert answer.status == 404 or answer.data == {}, path
        for header in ("authorization", "x-session-token", "cookie2", "x-cookie"):
            assert (await Browser(farm).send(1, "GET", **{header: f"{farm.cookie}={text}"})).data == {}, header

    run(farm, story)


def test_14_2_2_no_store_wherever_a_session_was_touched(farm: RealFarm) -> None:
    """In the browser's cache (14.3.2) or in one on the way."""

    async def story() -> None:
        for answer in await whole_life(farm):
            assert answer.one("cache-control") == "no-store"
            assert "cookie" in answer.one("vary").lower()
        browser = await shopper(farm)
        await browser.get(1)  # its first return is written down
        untouched = await browser.send(1, "GET", "/nowhere")
        assert untouched.all("cache-control") == []

    run(farm, story)


# -- operations --------------------------------------------------------------------------------------------


def test_16_2_records_say_when_where_who_and_what_and_hide_tokens(farm: RealFarm) -> None:
    """16.2.1 the fields, 16.2.2 UTC on a machine that is fourteen hours ahead, 16.2.5 sessions only hashed; and no
    secret in the farm's log, which has a line for each request."""

    async def story() -> None:
        began = datetime.now(UTC) - timedelta(seconds=5)
        browser = await shopper(farm)
        with recorded(farm) as records:
            secrets = {browser.jar[farm.cookie], browser.token().key.hex(), browser.token().session_id.hex()}
            answer = await browser.post(1, "/login?user=grace")
            secrets |= {browser.jar[farm.login_cookie], browser.token(login=True).key.hex()}
            login = public_id(browser.token(login=True).key)
            await browser.send(1, "GET", cookie=f"{farm.cookie}={'B' * 116}")
            await browser.post(2, "/logout")
        assert answer.status == 200
        told = [(each["event"], each.get("session", ""), each.get("user", "")) for each in records]
        assert ("session.login", login, "grace") in told
        assert ("session.closed", login, "grace") in told
        for each in records:
            assert each["time"].endswith("Z")
            assert began < datetime.fromisoformat(each["time"]) < datetime.now(UTC) + timedelta(seconds=5)
            assert each["server"] in ("web-1", "web-2")
            assert each["address"] == "127.0.0.1"
        files = [
            path for path in (farm.directory / ".coatcheck").rglob("*") if path.is_file() and path.suffix != ".json"
        ]
        written = farm.farm.log + "".join(path.read_text(errors="replace") for path in files)
        assert "POST /login?user=grace" in written
        secrets |= {urlsafe_b64encode(secret).decode() for secret in farm.ring._secrets.values()} | {SECRET}
        assert [secret for secret in secrets if secret in written] == []

    run(farm, story)


def test_16_4_1_nothing_that_is_sent_forges_a_line(farm: RealFarm) -> None:
    async def story() -> None:
        hostile = "x%0a%1b[2J%e2%80%a8%22%7d%7b%22event%22%3a%22forged%22%7d%0d%0aERROR%20forged"
        browser = Browser(farm)
        with recorded(farm) as records:
            await browser.post(1, f"/login?user={hostile}")
            await browser.send(1, "GET", "/plain?x=%0aERROR%20forged", **{"user-agent": "x\x1b[2J forged"})
        assert [each["event"] for each in records] == ["session.login"], "each line is one record of ours"
        assert records[0]["user"].startswith("x\n\x1b[2J"), "as it was, encoded"
        for path in (farm.directory / ".coatcheck" / "audit").iterdir():
            assert re.fullmatch(r"[ -~\n]*", path.read_text())
        assert not [line for line in farm.farm.log.splitlines() if line.partition("│ ")[2].startswith("ERROR forged")]

    run(farm, story)


def test_16_5_1_an_error_of_the_app_tells_nothing(farm: RealFarm) -> None:
    async def story() -> None:
        browser = await shopper(farm)
        answer = await browser.post(1, "/breaks")
        assert answer.status == 500
        for word in (SECRET, "RuntimeError", "Traceback", ".py"):
            assert word not in answer.text
        assert not answer.lines
        assert (await browser.get(1)).data == {"n": 1}, "what the failing request changed is not stored"

    run(farm, story)


def test_16_5_3_while_no_session_server_answers_nobody_is_let_in_or_out(farm: RealFarm) -> None:
    """They hang: 503, no cookie is set or deleted, nothing is invented. When they go on, so does every session."""

    async def story() -> None:
        before = len(farm.thefts())
        anonymous, known = await shopper(farm), Browser(farm)
        await known.post(1, "/login?user=ada")
        pids = [farm.farm.pid(name) for name in ("session-1", "session-2")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(2.5)  # a lease, in which a web server may serve what it knows
            for browser in (anonymous, known):
                for method, path in (("GET", "/"), ("POST", "/put"), ("POST", "/login?user=eve"), ("POST", "/logout")):
                    answer = await browser.send(2, method, path)
                    assert (answer.status, answer.lines) == (503, []), f"{method} {path}"
                    assert int(answer.one("retry-after")) >= 1
                    assert answer.one("cache-control") == "no-store"
                    assert "Traceback" not in answer.text
            stranger = Browser(farm)
            assert (await stranger.send(1, "POST", "/put")).status == 503, (
                "no session is promised that cannot be stored"
            )
            assert (await stranger.get(1, "/plain")).status == 200, "who needs none is served"
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        await settled(anonymous, {"n": 1}, None)
        await settled(known, {}, "ada")
        assert len(farm.thefts()) == before

    run(farm, story)


async def settled(browser: Browser, data: dict[str, int], user: str | None) -> None:
    """Served as before, once the session servers are heard again."""
    answer = await browser.get(1)
    assert (answer.data, answer.user) == (data, user)


def test_headers_that_only_we_may_set_are_taken_out_of_what_comes_from_outside(farm: RealFarm) -> None:
    async def story() -> None:
        forged = {
            "x-session-user": "admin", "X-Session-Claims": "all", "x_session_user": "admin", "X-SESSION-": "x",
            "x-session-durable": "ticket", "x-forwarded-for": "203.0.113.9", "x-forwarded-user": "admin",
            "remote-user": "admin", "x-auth-request-user": "admin",
        }  # fmt: skip
        seen = (await Browser(farm).send(1, "GET", "/headers", **forged, **{"x-else": "kept"})).body
        assert seen["x-else"] == "kept"
        assert not [name for name in seen if name.replace("_", "-").startswith("x-session")]
        assert "admin" not in seen.values()
        assert seen["x-forwarded-for"] == "127.0.0.1"

    run(farm, story)
