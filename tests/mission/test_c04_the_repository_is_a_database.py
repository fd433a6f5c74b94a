"""C4: "which is a database." """

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from coatcheck.tls.record import RecordSealer
from coatcheck.tls.session_id import item_key
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.secret import parse_key
from tls.farm import KEY, TLS_1_2, Client, Servers


def row(path: Path, key: bytes) -> bytes:
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
        found = database.execute("SELECT item FROM items WHERE key = ?", (key,)).fetchall()
    assert len(found) == 1
    return bytes(found[0][0])


def test_the_state_is_a_row_that_only_the_farm_can_read(certificates: Path, tmp_path: Path, servers: Servers) -> None:
    path = tmp_path / "repository.db"
    (one,) = servers(f"sqlite:///{path}", names="web-1")
    client = Client(certificates, TLS_1_2)
    client.visit(one)
    assert client.session is not None
    raw = client.session.id
    sealed = row(path, item_key(raw))
    record = RecordSealer(KeyRing([parse_key(KEY, "key")]), "farm", bytes).open(item_key(raw), sealed)
    assert record is not None
    assert (record.owner, record.host, record.protocol) == ("web-1", "shop.test", 0x0303)
    assert raw in record.session
    for secret in (raw, b"web-1", b"shop.test", record.session[-48:]):
        assert secret not in sealed
