"""Which token an answer tells its browser (protocol section 7)."""

from __future__ import annotations

from coatcheck.replication.placement import is_newer_list
from coatcheck.tokens.chain import ChainLink, Shown
from coatcheck.tokens.sealed import SealedToken
from coatcheck.value import Value

IN_GRACE, LATE = Shown.IN_GRACE, Shown.LATE
"""Python 3.11 takes a tenth of a microsecond to find a member of an enum by its class."""


class Issue(Value):
    """What the browser must be given: a token's content, and under which of the two cookies. ``life_s``: how long that
    cookie lives, if its session is bound; ``None``: as the policy of cookies says."""

    token: SealedToken
    login: bool
    life_s: float | None = None


def token_to_tell(
    shown: SealedToken, verdict: Shown, told: ChainLink, promised: bytes, wrote: bool, list_number: int, again: bool
) -> SealedToken | None:
    """The token for an answer to ``shown``; ``None`` if the browser needs none. ``told``: :meth:`Chain.told`.

    The browser that showed a replaced token holds a newer one already, and a thief must not get that: so the answer to
    a replaced token tells nothing, unless the request wrote (``wrote``). Then the browser must learn the version of
    what was acknowledged (``promised``, packed): within the grace with the newest token, as any parallel tab; later
    with the token that it showed, which is what its jar holds by then. ``list_number``: of the list of session servers
    here; what was promised on a newer one stays promised on it. ``again``: whether the browser is told what it has.
    """
    replaced = verdict is IN_GRACE or verdict is LATE
    if replaced and not wrote:
        return None
    link = ChainLink(shown.session_id, shown.timestamp) if verdict is LATE else told
    if link.session_id == shown.session_id and promised == shown.version and not again:
        return None
    number = shown.list_number
    if number != list_number and not is_newer_list(number, list_number):
        number = list_number
    return _new_token(SealedToken, (shown.key, link.session_id, link.minted_at, promised, number))


_new_token = tuple.__new__  # what the class itself would call
