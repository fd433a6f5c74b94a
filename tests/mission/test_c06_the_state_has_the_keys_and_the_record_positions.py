"""C6: "The state has the encryption keys, the session identifier and the running digest (in TLS 1.3: the traffic
secrets and the record sequence position)."

Read from the memory of a director's rules, with the farm's key ring, against what the client itself knows: the secrets
in its key log, and the records that it counted.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from takeover_pair import Pair


def test_the_state_has_what_the_client_knows(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    log = tmp_path / "client-keys"
    pair = Pair(certificate, client_log=log)
    pair.shake_hands()
    for size in (1, 40_000, 3):
        assert pair.ask(b"x" * size) == b"x" * size
    state = pair.state()
    told = {words[0]: words[2] for words in (line.split() for line in log.read_text().splitlines()) if len(words) == 3}
    assert state.client[-1].secret.hex() == told["CLIENT_TRAFFIC_SECRET_0"]
    assert state.server[-1].secret.hex() == told["SERVER_TRAFFIC_SECRET_0"]
    assert state.suite == pair.client.cipher()[0]
    assert len(state.connection) == 16
    # Record positions: the state says from where the keys count, and the director how many have passed.
    assert pair.carried.received - state.client[-1].first == 5  # 1 + 3 + 1 records of data
    tickets = 2
    assert pair.carried.delivered - state.server[-1].first == tickets + 5


def test_only_the_key_ring_opens_it(certificate: tuple[Path, Path]) -> None:
    pair = Pair(certificate)
    pair.shake_hands()
    secret = pair.state().client[-1].secret
    assert secret not in pair.carried_bytes()
    assert Pair(certificate, ring=b"another ring" * 4).sealer.open(pair.carried_bytes()) is None


def test_tls_1_2_leaves_none(certificate: tuple[Path, Path]) -> None:
    pair = Pair(certificate, version=ssl.TLSVersion.TLSv1_2)
    pair.shake_hands()
    assert pair.carried_bytes() == b""
