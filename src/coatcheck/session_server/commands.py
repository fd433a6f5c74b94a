"""The commands of the session server: a few of our own, and enough of RESP for ``redis-cli``.

``CC.PUT key seen life_ms entry [notify]`` answers ``1``, or what is stored as ``[entry, life left]`` (``[]``: nothing).
``CC.GET key`` answers the latter. ``CC.ITEM.PUT key life_ms item [after]`` and ``CC.ITEM.PURGE key`` answer ``1`` or
``0``, ``CC.ITEM.TAKE key nonce`` the item or nothing, ``CC.ITEM.AGREE key life_ms proposal [instead_of]`` what is
agreed on; items are in a table of their own, which no other command reaches. ``CC.CHALLENGE`` and ``CC.ANSWER`` let
both ends prove that they know the password, without sending it; ``AUTH`` is for tools. All other commands only look:
nothing but the put rule changes an entry.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable
from typing import Final

from coatcheck import resp
from coatcheck.errors import CorruptEntry
from coatcheck.peers.proof import NONCE_BYTES, is_proof
from coatcheck.replication.entry import KEY_BYTES
from coatcheck.replication.put_rule import Verdict
from coatcheck.replication.version import PACKED_BYTES, SERVER_ID_BYTES
from coatcheck.session_server.state import (
    MAX_CHANNEL_BYTES,
    MAX_CHANNELS_PER_CLIENT,
    MAX_MESSAGE_BYTES,
    Client,
    SessionState,
)
from coatcheck.session_server.table import TableFull
from coatcheck.take_once.port import TakeOnceUnavailable
from coatcheck.take_once.rule import NEVER_STORED, NOTHING
from coatcheck.take_once.table import ItemsFull

MAX_FAILED_LOGINS: Final = 3
MAX_SCAN_COUNT: Final = 10_000
MAX_NUMBER_DIGITS: Final = 16
MAX_NOTIFIED: Final = 64
"""Web servers that one put may name to be notified; it names those that own one of the copies which its writer saw."""

Command = Callable[[SessionState, Client, list[bytes]], bytes]


def answer(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    """The encoded reply to one request; never raises."""
    known = COMMANDS.get(request[0]) or COMMANDS.get(request[0].upper())
    if known is None:
        if not client.authenticated:
            return resp.error("NOAUTH", "Authentication required.")
        return resp.error("ERR", "unknown command")
    command, fewest, most, open_to_all = known
    if not client.authenticated and not open_to_all:
        return resp.error("NOAUTH", "Authentication required.")
    if not fewest <= len(request) - 1 <= most:
        return resp.error("ERR", "wrong number of arguments")
    try:
        return command(state, client, request)
    except _BadRequest as bad:
        return resp.error("ERR", str(bad))
    except TakeOnceUnavailable as away:
        return resp.error("UNAVAILABLE", str(away))
    except Exception:  # noqa: BLE001 - reported, with its traceback; one client's request must not end the server
        state.seldom.write(logging.ERROR, "a command failed: %s", traceback.format_exc())
        return resp.error("ERR", "internal error")


class _BadRequest(Exception):
    """The arguments make no sense; the text goes to the client."""


def _put(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    key, seen, life, new = request[1:5]
    notify = request[5] if len(request) > 5 else b""
    if len(key) != KEY_BYTES:
        raise _BadRequest("a key has 16 bytes")
    if len(seen) not in (0, PACKED_BYTES):
        raise _BadRequest("a version has 16 bytes")
    if len(notify) % SERVER_ID_BYTES or len(notify) > MAX_NOTIFIED * SERVER_ID_BYTES:
        raise _BadRequest(f"who is notified is at most {MAX_NOTIFIED} server IDs of {SERVER_ID_BYTES} bytes")
    now_ms = state.now_ms()
    try:
        verdict = state.table.put(key, seen, _number(life), new, now_ms, notify)
    except CorruptEntry as corrupt:
        raise _BadRequest(str(corrupt)) from None
    except TableFull as full:
        state.refused += 1
        state.refused_full += 1
        state.seldom.warning("%s is full: %s; raise session_server_max_bytes or _max_entries", state.name, full)
        return resp.error("FULL", str(full))
    if verdict is Verdict.REFUSED:
        state.refused += 1
        return _stored(state, key, now_ms)
    state.puts += 1
    return resp.ONE


def _get(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    key = request[1]
    if len(key) != KEY_BYTES:
        raise _BadRequest("a key has 16 bytes")
    state.gets += 1
    return _stored(state, key, state.now_ms())


def _stored(state: SessionState, key: bytes, now_ms: int) -> bytes:
    stored = state.table.get(key, now_ms)
    if stored is None:
        return resp.EMPTY
    raw, left_ms = stored
    return b"*2\r\n$%d\r\n%b\r\n:%d\r\n" % (len(raw), raw, left_ms)


def _put_item(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    _, key, life, item, *after = request
    try:
        put = state.items.put(key, item, _number(life), after[0] if after else NEVER_STORED, state.now_ms())
    except ValueError as wrong:
        raise _BadRequest(str(wrong)) from None
    except ItemsFull as full:
        state.refused_full += 1
        state.seldom.warning("%s has no room for items that may be taken once: %s", state.name, full)
        return resp.error("FULL", str(full))
    return resp.ONE if put else resp.ZERO


def _take_item(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    try:
        item = state.items.take(request[1], request[2], state.now_ms())
    except ValueError as wrong:
        raise _BadRequest(str(wrong)) from None
    return resp.bulk(item) if item is not None else resp.nothing(client.resp3)


def _purge_item(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    try:
        purged = state.items.purge(request[1], state.now_ms())
    except ValueError as wrong:
        raise _BadRequest(str(wrong)) from None
    return resp.ONE if purged else resp.ZERO


def _agree(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    _, key, life, proposal, *named = request
    try:
        instead_of = named[0] if named else NOTHING
        return resp.bulk(state.items.agree(key, proposal, _number(life), instead_of, state.now_ms()))
    except ValueError as wrong:
        raise _BadRequest(str(wrong)) from None
    except ItemsFull as full:
        return resp.error("FULL", str(full))


def _auth(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    if not state.needs_password:
        return resp.error("ERR", "no password is set")
    user = request[1] if len(request) == 3 else b"default"
    if state.is_password(request[-1]) and user == b"default":
        client.authenticated = True
        return resp.OK
    client.failed_logins += 1
    client.closing = client.failed_logins >= MAX_FAILED_LOGINS
    return resp.error("WRONGPASS", "invalid username-password pair")


def _challenge(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    """``CC.CHALLENGE name nonce``: our name, our nonce, and our proof; the client's is due next.

    ``name`` is whom the client means to reach; empty: whoever we are.
    """
    if not state.needs_password:
        return resp.error("ERR", "no password is set")
    if request[1] not in (b"", state.name.encode()):
        return resp.error("NOTME", f"this is {state.name}")
    nonce = os.urandom(NONCE_BYTES)
    try:
        ours, client.awaited_proof = state.proofs(request[2], nonce)
    except ValueError as wrong:
        raise _BadRequest(str(wrong)) from None
    return resp.array(resp.bulk(state.name.encode()), resp.bulk(nonce), resp.bulk(ours))


def _answer_challenge(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    """``CC.ANSWER proof``: the client knows the password, without having sent it."""
    awaited, client.awaited_proof = client.awaited_proof, b""
    if awaited and is_proof(request[1], awaited):
        client.authenticated = True
        return resp.OK
    client.failed_logins += 1
    client.closing = client.failed_logins >= MAX_FAILED_LOGINS
    return resp.error("WRONGPASS", "not the answer to this connection's challenge")


def _hello(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    protocol = request[1] if len(request) > 1 else (b"3" if client.resp3 else b"2")
    if protocol not in (b"2", b"3"):
        return resp.error("NOPROTO", "unsupported protocol version")
    options = [word.upper() for word in request[2:]]
    if options[:1] == [b"AUTH"] and len(options) >= 3 and not client.authenticated:
        refused = _auth(state, client, [b"AUTH", request[3], request[4]])
        if refused != resp.OK:
            return refused
    if not client.authenticated:
        return resp.error("NOAUTH", "HELLO must be called with AUTH.")
    client.resp3 = protocol == b"3"
    fields = [
        (resp.bulk(b"server"), resp.bulk(b"coatcheck")),
        (resp.bulk(b"proto"), b":%b\r\n" % protocol),
        (resp.bulk(b"mode"), resp.bulk(b"standalone")),
        (resp.bulk(b"role"), resp.bulk(b"master")),
    ]
    flat = [part for field in fields for part in field]
    return b"%%%d\r\n" % len(fields) + b"".join(flat) if client.resp3 else resp.array(*flat)


def _ping(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    if client.channels and not client.resp3:
        return resp.array(resp.bulk(b"pong"), resp.bulk(request[1] if len(request) > 1 else b""))
    return resp.bulk(request[1]) if len(request) > 1 else resp.PONG


def _time(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    seconds, micros = divmod(round(state.unix_s() * 1_000_000), 1_000_000)
    return resp.array(resp.bulk(b"%d" % seconds), resp.bulk(b"%d" % micros))


def _quit(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    client.closing = True
    return resp.OK


def _select(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    return resp.OK if request[1] == b"0" else resp.error("ERR", "DB index is out of range")


def _dbsize(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    return resp.integer(state.table.entries)


def _scan(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    options = request[2:]
    if len(options) % 2:
        raise _BadRequest("syntax error")
    limit = 10
    for option, value in zip(options[::2], options[1::2], strict=True):
        if option.upper() == b"COUNT":
            limit = min(max(_number(value), 1), MAX_SCAN_COUNT)
        elif option.upper() != b"MATCH" or value != b"*":
            raise _BadRequest("only COUNT and MATCH * are known")
    cursor, keys = state.table.scan(_number(request[1]), limit, state.now_ms())
    return resp.array(resp.bulk(b"%d" % cursor), resp.array(*[resp.bulk(key) for key in keys]))


def _plain_get(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    stored = state.table.get(request[1], state.now_ms()) if len(request[1]) == KEY_BYTES else None
    return resp.bulk(stored[0]) if stored is not None else resp.nothing(client.resp3)


def _pttl(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    stored = state.table.get(request[1], state.now_ms()) if len(request[1]) == KEY_BYTES else None
    return resp.integer(stored[1] if stored is not None else -2)


def _subscribe(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    channels = request[1:]
    if any(len(channel) > MAX_CHANNEL_BYTES for channel in channels):
        raise _BadRequest(f"a channel's name has at most {MAX_CHANNEL_BYTES} bytes")
    if len(client.channels.union(channels)) > MAX_CHANNELS_PER_CLIENT:
        raise _BadRequest(f"at most {MAX_CHANNELS_PER_CLIENT} channels per client")
    confirmed = []
    for channel in channels:
        state.subscribe(client, channel)
        confirmed.append(_confirmation(client, b"subscribe", resp.bulk(channel)))
    return b"".join(confirmed)


def _unsubscribe(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    confirmed = []
    for channel in request[1:] or list(client.channels):
        state.unsubscribe(client, channel)
        confirmed.append(_confirmation(client, b"unsubscribe", resp.bulk(channel)))
    return b"".join(confirmed) or _confirmation(client, b"unsubscribe", resp.nothing(client.resp3))


def _confirmation(client: Client, kind: bytes, channel: bytes) -> bytes:
    return resp.push(client.resp3, resp.bulk(kind), channel, resp.integer(len(client.channels)))


def _publish(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    if len(request[2]) > MAX_MESSAGE_BYTES:
        raise _BadRequest(f"a message has at most {MAX_MESSAGE_BYTES} bytes")
    return resp.integer(state.publish(request[1], request[2]))


def _info(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    lines = ["# Server", "server:coatcheck"]
    lines += [f"{field}:{value}" for field, value in state.status().items()]
    lines += ["# Keyspace", f"db0:keys={state.table.entries},expires={state.table.entries},avg_ttl=0", ""]
    return resp.bulk("\r\n".join(lines).encode("utf-8", "replace"))


def _client(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    if request[1].upper() in (b"SETNAME", b"SETINFO"):
        return resp.OK
    return resp.error("ERR", "only CLIENT SETNAME and SETINFO are known")


def _command(state: SessionState, client: Client, request: list[bytes]) -> bytes:
    return resp.EMPTY


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > MAX_NUMBER_DIGITS:
        raise _BadRequest("value is not an integer or out of range")
    return int(text)


COMMANDS: Final[dict[bytes, tuple[Command, int, int, bool]]] = {
    # name: what it does, fewest and most arguments, whether a client without password may
    b"CC.PUT": (_put, 4, 5, False),
    b"CC.GET": (_get, 1, 1, False),
    b"CC.ITEM.PUT": (_put_item, 3, 4, False),
    b"CC.ITEM.TAKE": (_take_item, 2, 2, False),
    b"CC.ITEM.PURGE": (_purge_item, 1, 1, False),
    b"CC.ITEM.AGREE": (_agree, 3, 4, False),
    b"CC.CHALLENGE": (_challenge, 2, 2, True),
    b"CC.ANSWER": (_answer_challenge, 1, 1, True),
    b"AUTH": (_auth, 1, 2, True),
    b"HELLO": (_hello, 0, 6, True),
    b"PING": (_ping, 0, 1, True),
    b"TIME": (_time, 0, 0, False),
    b"QUIT": (_quit, 0, 0, True),
    b"SELECT": (_select, 1, 1, False),
    b"DBSIZE": (_dbsize, 0, 0, False),
    b"SCAN": (_scan, 1, 5, False),
    b"GET": (_plain_get, 1, 1, False),
    b"PTTL": (_pttl, 1, 1, False),
    b"SUBSCRIBE": (_subscribe, 1, 32, False),
    b"UNSUBSCRIBE": (_unsubscribe, 0, 32, False),
    b"PUBLISH": (_publish, 2, 2, False),
    b"INFO": (_info, 0, 8, False),
    b"CLIENT": (_client, 1, 8, False),
    b"COMMAND": (_command, 0, 8, False),
}
