"""The product and a program for Node that was written from the specification judge what the other has made."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from .exchange import VERIFIER, exchange, verifier_makes, verifier_says
from .product import ANSWERS, answer

HERE = Path(__file__).parent
VECTORS: list[dict[str, Any]] = json.loads((HERE / "vectors.json").read_text())
CIPHER: list[dict[str, Any]] = json.loads((HERE / "rfc8452.json").read_text())
SLICE = 1500
SURELY = ("open_token yes", "open_token forged", "show current", "show next", "show stolen", "open_entry yes")


def test_the_product_gives_the_known_answers() -> None:
    for vector in VECTORS:
        assert answer(vector["ask"]) == vector["answer"], vector["ask"]
    kinds = {vector["ask"]["kind"] for vector in VECTORS} | {"gcm_siv"}
    assert kinds == set(ANSWERS)


def test_the_known_answers_are_the_verifiers() -> None:
    assert verifier_makes("vectors", len(VECTORS)) == VECTORS


def test_both_have_the_cipher_of_the_rfc() -> None:
    names = ("key", "nonce", "plain", "associated")
    cases = [{"kind": "gcm_siv", **{name: row[name] for name in names}} for row in CIPHER]
    wanted = [row["result"] for row in CIPHER]
    assert verifier_says(cases) == wanted
    assert [answer(case) for case in cases] == wanted


def test_each_side_judges_what_the_other_made() -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    kinds = exchange(seed, SLICE)
    for side in ("here", "there"):
        for kind in SURELY:
            assert kinds[f"made {side}: {kind}"] > 3, f"seed {seed}: {kinds}"


def test_the_verifier_shares_nothing_with_the_product() -> None:
    for file in VERIFIER.parent.glob("*.mjs"):
        for module in re.findall(r'from "([^"]+)"', file.read_text()):
            assert module.startswith(("./", "node:")), f"{file.name} imports {module}"
            assert "child_process" not in module
