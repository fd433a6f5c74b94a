"""What a hostile client may send to a stand-in: no crash, no hang, nothing taken that was changed."""

from __future__ import annotations

import random
import ssl
from pathlib import Path

import pytest

from coatcheck.tls import share_sessions
from coatcheck.tls.stand_in import stand_in_context

from .farm import KEY, VERSIONS
from .in_memory import Pair, client_context

INPUTS = 800
MAX_STEPS = 50


def changed(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, left out, said twice, put in; headers that lie about how much follows."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(found) + 1)
        how = rng.randrange(6)
        if how == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del found[at : at + rng.choice([1, 2, 5, 100])]
        elif how == 2:
            found[at:at] = found[at : at + rng.choice([1, 5, 50])]
        elif how == 3:
            found[at:at] = rng.randbytes(rng.choice([1, 3, 40]))
        elif how == 4:
            found[3:5] = rng.randbytes(2)
        else:
            del found[at:]
    return bytes(found)


def flood(pair: Pair, rng: random.Random, hurt_at: int) -> list[bytes]:
    """The client talks, and from its flight ``hurt_at`` on what it sends is changed; what the server then reads."""
    server, got = pair.server, []
    inbox, whole = ssl.MemoryBIO(), pair.to_server
    victim = server.context.wrap_bio(inbox, pair.to_client, server_side=True)
    for flight in range(4):
        try:
            pair.client.do_handshake()
            pair.client.write(b"word")
        except ssl.SSLError:
            pass
        sent = whole.read()
        inbox.write(changed(rng, sent) if flight >= hurt_at else sent)
        if flight == 3:
            inbox.write_eof()
        try:
            victim.do_handshake()
            for _ in range(MAX_STEPS):
                piece = victim.read(100_000)
                if not piece:
                    break
                got.append(piece)
            else:
                raise AssertionError("it reads for ever")
        except (ssl.SSLError, ConnectionError):
            pass
    return got


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_what_was_changed_is_refused(version: ssl.TLSVersion, certificates: Path) -> None:
    context = stand_in_context()
    context.load_cert_chain(certificates / "server.pem")
    shared = share_sessions(context, store="memory://", server="web-1", keyring=KEY, required=True)
    client = client_context(certificates, version)
    first = Pair(context, client).shake()
    first.server.write(b"x")
    first.client.read(1)
    session, rng = first.client.session, random.Random(f"stand-in {version}")
    whole = 0
    for number in range(INPUTS):
        pair = Pair(context, client, session=session if number % 2 else None)
        got = b"".join(flood(pair, rng, hurt_at=number % 4))
        # Of what it sent only whole words arrive, whatever was done to them on the way.
        assert got == b"word" * (len(got) // 4)
        whole += bool(got)
    assert 0 < whole < INPUTS
    # And none of it harms who comes next.
    Pair(context, client).shake()
    shared.close()
