"""How a put is written down for session servers behind a link: once for all that are asked in the same words."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from coatcheck import resp
from coatcheck.replication.entry import KEY_BYTES, Entry
from coatcheck.replication.put_rule import MAX_LIFE_MS, MIN_LIFE_MS, bounded_life_ms, encode_for_put
from coatcheck.replication.version import PACKED_BYTES, Version
from coatcheck.session_server.table import check_key

MAX_WORDINGS: Final = 64
"""Ways of asking that are remembered; session servers of one kind and one farm share theirs."""

_SEEN: Final = b"\r\n$%d\r\n" % PACKED_BYTES
_NOTHING_SEEN: Final = b"\r\n$0\r\n"


class PutRequests:
    """The requests up to the key's 16 bytes (``head``), what was seen, the life in milliseconds, the entry, ``tail``.

    Those that name who is to be notified begin with ``notifying_head``, and end with their IDs. An entry goes to
    several session servers, to one right after the other: the last request is kept.
    """

    def __init__(self, head: bytes, notifying_head: bytes, tail: bytes) -> None:
        self._head = head
        self._notifying_head = notifying_head
        self._tail = b"\r\n" + tail
        self._last: tuple[Entry | None, Version | None, bytes, bytes] = (None, None, b"", b"")

    def encode(self, key: bytes, seen: Version | None, new: Entry, notify: bytes = b"") -> bytes:
        """The request. Raises :class:`CorruptEntry` with a clear text for an entry that no store would take."""
        last, saw, of, request = self._last
        if last is new and saw == seen and of == key and not notify:
            return request
        if len(key) != KEY_BYTES:
            check_key(key)
        raw = encode_for_put(new)
        life_ms = new.expires_in_ms
        life = b"%d" % (life_ms if MIN_LIFE_MS <= life_ms <= MAX_LIFE_MS else bounded_life_ms(life_ms))
        lengths = b"\r\n$%d\r\n%b\r\n$%d\r\n" % (len(life), life, len(raw))
        known = _NOTHING_SEEN if seen is None else _SEEN + seen
        if notify:
            return b"".join((self._notifying_head, key, known, lengths, raw, self._tail, resp.bulk(notify)))
        request = b"".join((self._head, key, known, lengths, raw, self._tail))
        self._last = (new, seen, key, request)
        return request


@lru_cache(MAX_WORDINGS)
def put_requests(head: bytes, notifying_head: bytes, tail: bytes) -> PutRequests:
    """Those that all stores share whose requests have these heads and this ``tail``."""
    return PutRequests(head, notifying_head, tail)
