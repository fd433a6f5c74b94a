"""What stands in a session token, byte for byte, as somebody sees it who does not use our code (docs/formats.md)."""

from __future__ import annotations

import base64
import codecs
import hashlib
import zlib
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from vectors.generate import derive, key_id, pack, seal

from .conftest import StartProvider
from .provider_process import ProviderProcess
from .wire import MEDIA_TYPE, SOAP, SOAP12, envelope, read

SECRET = hashlib.sha256(b"a key of the tests").digest()
PASSWORDS = {"ANN": "correct horse battery staple", "BJÖRN": "pässword-世界-" * 3, "CAT": "secret" * 33}
HEAD, NONCE = 5, 12


@pytest.fixture(scope="module")
def keyed(start: StartProvider, tmp_path_factory: pytest.TempPathFactory) -> ProviderProcess:
    """A provider whose key we know."""
    folder: Path = tmp_path_factory.mktemp("keyed")
    key, users = folder / "key", folder / "users"
    key.write_text(base64.urlsafe_b64encode(SECRET).decode())
    users.write_text("".join(f"{name}:{password}\n" for name, password in PASSWORDS.items()))
    return start("--users-file", str(users), "--key-file", str(key), "--server", "one")


def tokens_on_the_wire(provider: ProviderProcess, user: str, version: str) -> list[tuple[str, bytes]]:
    """The tokens of three answers in one session, one of them a fault; and the answers as they came."""
    asked: list[tuple[str, dict[str, str]]] = [
        ("WhoAmI", {"UsernameToken": user, "PasswordText": PASSWORDS[user]}),
        ("UpdateAccount", {}),
        ("Echo", {}),
    ]
    found: list[tuple[str, bytes]] = []
    for operation, headers in asked:
        shown = {"SessionToken": found[-1][0]} if found else headers
        body = envelope(operation, {}, version, SessionType="Stateful", **shown)
        answer = httpx.post(provider.url, content=body.encode(), headers={"Content-Type": MEDIA_TYPE[version]})
        token = read(answer).token
        assert token is not None
        found.append((token, answer.content))
    return found


@pytest.mark.parametrize("version", [SOAP, SOAP12], ids=["SOAP 1.1", "SOAP 1.2"])
@pytest.mark.parametrize("user", PASSWORDS)
def test_every_byte_of_a_token_is_what_the_format_says(keyed: ProviderProcess, user: str, version: str) -> None:
    """Nothing is beside the sealed part, and what is sealed is opened here without our code."""
    nonces = set()
    for serial, (token, _) in enumerate(tokens_on_the_wire(keyed, user, version), 1):
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        assert raw[:HEAD] == b"\x01" + key_id(SECRET)
        nonce, scope = raw[HEAD : HEAD + NONCE], b"soap-session\x00provider"
        plain = AESGCMSIV(derive(SECRET, scope, 32)).decrypt(nonce, raw[HEAD + NONCE :], raw[:HEAD] + scope)
        # The session ID and the time are the provider's; all else is known.
        session_id = plain[3:19]
        ahead = len(pack([session_id, user, PASSWORDS[user]])) + 1
        issued_at = int.from_bytes(plain[ahead : ahead + 8], "big")
        said = pack([session_id, user, PASSWORDS[user], issued_at, serial, "one", "Stateful"])
        assert plain == said
        assert raw == seal(SECRET, "soap-session", "provider", nonce, said)
        nonces.add(nonce)
    assert len(nonces) == 3, "the same password looks different every time"


def readings(secret: str) -> set[bytes]:
    """How a secret could stand somewhere without a key."""
    raw = secret.encode()
    forms = {raw, secret.encode("utf-16-le"), secret.encode("utf-16-be"), zlib.compress(raw)}
    forms |= {codecs.encode(secret, "rot13").encode(), raw.swapcase()}
    forms |= {bytes(byte ^ mask for byte in raw) for mask in range(1, 256)}
    forms |= {form[::-1] for form in forms}
    # Base64 in each of the three places where it may begin, without the characters that its neighbours change.
    for ahead in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            forms.add(encode(b"\0" * ahead + raw)[4 if ahead else 0 :].rstrip(b"=")[:-1])
    return forms | {raw.hex().encode(), raw.hex().upper().encode()}


@pytest.mark.parametrize("user", PASSWORDS)
def test_no_reading_of_an_answer_shows_the_password(keyed: ProviderProcess, user: str) -> None:
    shown = readings(PASSWORDS[user])
    for token, answer in tokens_on_the_wire(keyed, user, SOAP):
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        assert not [form for form in shown if form in raw or form in token.encode() or form in answer]
    assert not [form for form in shown if form in keyed.log.read_bytes()]


def test_a_reading_would_be_seen() -> None:
    for number, form in enumerate(sorted(readings("correct horse"))):
        assert [each for each in readings("correct horse") if each in b"\x01" * number + form + b"tail"]
    hidden = base64.b64encode(b"ab" + b"correct horse" + b"c")
    assert [each for each in readings("correct horse") if each in hidden]
