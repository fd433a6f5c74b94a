"""One parser for keys: whatever the usual tools print is taken, whatever can be guessed is not."""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

import pytest

from coatcheck import connect
from coatcheck.errors import ConfigError
from coatcheck.farm.files.keys import FarmKeys, load, load_or_create, save
from coatcheck.tokens.secret import PRINTED, parse_key

SECRET = secrets.token_bytes(32)
FORMS = {
    "token_urlsafe(32)": base64.urlsafe_b64encode(SECRET).decode().rstrip("="),
    "base64url with padding": base64.urlsafe_b64encode(SECRET).decode(),
    "base64": base64.b64encode(SECRET).decode(),
    "base64 without padding": base64.b64encode(SECRET).decode().rstrip("="),
    "hex": SECRET.hex(),
    "hex in capitals": SECRET.hex().upper(),
    "with a line's end": base64.urlsafe_b64encode(SECRET).decode() + "\n",
}
WRONG: dict[str, str | bytes] = {
    "nothing": "",
    "31 bytes": base64.urlsafe_b64encode(SECRET[:31]).decode(),
    "62 hex digits": SECRET[:31].hex(),
    "no text of ours": "correct horse battery staple correct horse",
    "not ASCII": "é" * 50,
    "one base64 sign too many": "A" * 45,
    "zeros": bytes(32),
    "zeros as text": "A" * 43,
    "zeros in hex": "0" * 64,
    "one letter": b"k" * 40,
    "two letters": b"ab" * 20,
    "counting": bytes(range(32)),
    "counting back": bytes(range(255, 200, -1)),
    "printed in the guide": next(iter(PRINTED)),
    "printed, with padding": next(iter(PRINTED)) + "=",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_is_the_same_key_on_every_way_in(form: str, tmp_path: Path) -> None:
    text = FORMS[form]
    assert parse_key(text, "key") == SECRET
    assert load_or_create(tmp_path / "keys.json", {"COATCHECK_KEYS": text}).keys == (SECRET,)
    connect("sqlite:///sessions.db", key=text)
    file = tmp_path / "keys.json"
    save(file, FarmKeys((SECRET,), 0, "password"))
    stored = base64.urlsafe_b64encode(SECRET).decode()
    file.write_text(file.read_text().replace(stored, text.strip()))
    assert load(file).keys == (SECRET,)


@pytest.mark.parametrize("form", WRONG)
def test_what_is_no_key_or_can_be_guessed_is_one_clear_line_and_never_shown(form: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: .*token_urlsafe") as refused:
        parse_key(WRONG[form], "here")
    if WRONG[form]:
        assert str(WRONG[form]) not in str(refused.value)
    with pytest.raises(ConfigError, match=r"^connect: key: "):
        connect("sqlite:///sessions.db", key=WRONG[form])


def test_no_random_key_is_taken_for_a_weak_one() -> None:
    for _ in range(2000):
        key = secrets.token_bytes(32)
        assert parse_key(key, "key") == key
        assert parse_key(key.hex(), "key") == key
