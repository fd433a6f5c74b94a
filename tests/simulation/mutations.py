"""Each main rule of the protocol, switched off. The simulation has to notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from coatcheck.replication import cache, copies, placement, put_rule, repair, resolution, version, view
from coatcheck.replication.closes import Closed
from coatcheck.replication.copies import Copies
from coatcheck.replication.effects import Accepted, Pause, Put
from coatcheck.replication.farm_clock import FarmClock
from coatcheck.replication.links import Links
from coatcheck.replication.notice import Notice
from coatcheck.replication.put_rule import Verdict
from coatcheck.replication.puts import Puts
from coatcheck.replication.surplus import Surplus
from coatcheck.session_server import table
from coatcheck.sessions import delta, lifecycle, saving
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.user_index import UserIndex, is_index
from coatcheck.sessions.users import UserIndexes
from coatcheck.tokens import chain

Patch = Callable[[Any], None]
MUTATIONS: dict[str, Patch] = {}


def mutation(name: str) -> Callable[[Patch], Patch]:
    def note(patch: Patch) -> Patch:
        MUTATIONS[name] = patch
        return patch

    return note


def outcome_of(flow: Any) -> Any:
    """The outcome that a close has come to, whichever of its flows has it."""
    while "closed" not in flow.gi_frame.f_locals:
        flow = flow.gi_yieldfrom
    return flow.gi_frame.f_locals["closed"]


def without_waiting(flow: Any, when: Callable[[Any], bool]) -> Any:
    """A close that answers instead of pausing, ``when`` its local names say so."""
    reply = None
    while True:
        try:
            effect = flow.send(reply)
        except StopIteration as end:
            return end.value
        if type(effect) is Pause and when(flow.gi_frame.f_locals):
            return outcome_of(flow)
        reply = yield effect


@mutation("a put is accepted whatever its writer saw")
def unseen_put(monkeypatch: Any) -> None:
    def judge(stored: Any, seen: Any, new: Any) -> Verdict:
        return Verdict.REFUSED if stored is not None and stored[1] else Verdict.ACCEPTED_NOTIFY

    for module in (put_rule, table):
        monkeypatch.setattr(module, "judge", judge)


@mutation("fresh means the bigger number")
def bigger_number(monkeypatch: Any) -> None:
    def covers(history: Any, wanted: Any) -> bool:
        return wanted is None or (bool(history) and history[-1] >= wanted)

    for module in (version, copies, cache, view, resolution):
        monkeypatch.setattr(module, "covers", covers)


@mutation("a cached copy is served whatever the token promises")
def token_unchecked(monkeypatch: Any) -> None:
    monkeypatch.setattr(cache.Copy, "covers", lambda self, promised: True)


@mutation("an unacknowledged write stays in the cache")
def number_reused(monkeypatch: Any) -> None:
    original = Copies.write

    def write(self: Copies, copy: Any, *rest: Any) -> Any:
        try:
            return (yield from original(self, copy, *rest))
        finally:
            if self.cache.get(copy.key) is None and not self.cache.is_closed(copy.key):
                self.cache.add(copy)

    monkeypatch.setattr(Copies, "write", write)


@mutation("a tombstone is not spread")
def no_spread(monkeypatch: Any) -> None:
    def spread(self: Copies, seen: Any) -> Any:
        yield Pause(0.0)
        return Closed(len(seen.seen), len(self.placement.servers))

    monkeypatch.setattr(Copies, "spread", spread)


@mutation("a tombstone counts like any other copy")
def tombstone_is_no_trump(monkeypatch: Any) -> None:
    original = resolution.resolve

    def resolve(entries: Any) -> Any:
        entries = list(entries)
        living = [one for one in entries if not one.closed]
        return original(living or entries)

    monkeypatch.setattr(view, "resolve", resolve)


@mutation("a claim goes to all servers at once, and is tried again at once")
def duelling_claims(monkeypatch: Any) -> None:
    def put_claim(self: Copies, copy: Any, seen: Any, leave: Any) -> Any:
        sealed = self.puts.sealed(copy)
        sent_at = self.world.monotonic()
        showed = [name for name in seen.entries if name not in leave]
        settled, taken = yield from self.puts.to_placed(copy, sealed, [], showed, self.owners_shown(seen))
        if taken is None:
            return False
        level = sum(isinstance(reply, Accepted) for reply in settled.replies.values())
        self.cache.add(copy)
        self.puts.check_level(copy, level, quorum=False)
        self.puts.earn_lease(copy, sent_at, level)
        return True

    monkeypatch.setattr(Copies, "_put_claim", put_claim)
    monkeypatch.setattr(Copies, "_backoff", lambda self, attempt: 0.0)


@mutation("a claim skips the servers that showed a copy but are not placed")
def narrow_claim(monkeypatch: Any) -> None:
    original = Puts.to_placed

    def to_placed(self: Puts, copy: Any, sealed: Any, holders: Any, also: Any, notify: bytes) -> Any:
        return (yield from original(self, copy, sealed, holders, [], notify))

    monkeypatch.setattr(Puts, "to_placed", to_placed)


@mutation("a put below target earns a lease")
def degraded_lease(monkeypatch: Any) -> None:
    def earn(self: Puts, copy: Any, sent_at: float, holders: int) -> None:
        copy.lease_until = sent_at + self._policy.lease_s if sent_at >= copy.no_lease_before else 0.0

    monkeypatch.setattr(Puts, "earn_lease", earn)


@mutation("a lease never ends")
def endless_lease(monkeypatch: Any) -> None:
    original = Puts.earn_lease

    def earn(self: Puts, copy: Any, sent_at: float, holders: int) -> None:
        original(self, copy, sent_at, holders)
        if copy.lease_until:
            copy.lease_until += 1e6

    monkeypatch.setattr(Puts, "earn_lease", earn)


@mutation("a put begun before a notice earns a lease")
def lease_despite_notice(monkeypatch: Any) -> None:
    def earn(self: Puts, copy: Any, sent_at: float, holders: int) -> None:
        copy.lease_until = sent_at + self._policy.lease_s if holders >= self._placement.wanted else 0.0

    monkeypatch.setattr(Puts, "earn_lease", earn)


@mutation("notices are ignored")
def deaf(monkeypatch: Any) -> None:
    monkeypatch.setattr(Copies, "on_message", lambda self, message: None)


@mutation("a notice is answered, but the cached copy is served on")
def notice_without_effect(monkeypatch: Any) -> None:
    original = Copies.on_message

    def on_message(self: Copies, message: Any) -> Any:
        held = self.cache.get(message.key)
        until = held.lease_until if held is not None else 0.0
        answer = original(self, message)
        if held is not None:
            held.lease_until = until
            self.cache.add(held)
        return answer

    monkeypatch.setattr(Copies, "on_message", on_message)


@mutation("a close does not wait for leases")
def hasty_close(monkeypatch: Any) -> None:
    original = Copies.close

    def close(self: Copies, key: bytes) -> Any:
        return (yield from without_waiting(original(self, key), lambda names: True))

    monkeypatch.setattr(Copies, "close", close)


@mutation("an owner thinks itself alone as soon as it has claimed")
def alone_too_soon(monkeypatch: Any) -> None:
    original = Copies._put_claim

    def put_claim(self: Copies, copy: Any, seen: Any, leave: Any) -> Any:
        claimed = yield from original(self, copy, seen, leave)
        copy.alone_at = 0.0
        return claimed

    monkeypatch.setattr(Copies, "_put_claim", put_claim)


@mutation("one copy is a quorum")
def no_quorum(monkeypatch: Any) -> None:
    monkeypatch.setattr(placement, "write_quorum", lambda wanted, servers: 1)


@mutation("what some session servers do not show is lost")
def not_seen_is_gone(monkeypatch: Any) -> None:
    monkeypatch.setattr(view.Viewer, "missing", lambda self, seen: [])


@mutation("a close that nobody willed is as good as any")
def absolute_lapse(monkeypatch: Any) -> None:
    def put(self: Copies, seen: Any) -> Any:
        closed = yield from self.close(seen.key)
        return closed

    monkeypatch.setattr(Copies, "_put_provisional", put)


def unseen_fork(monkeypatch: Any) -> None:
    """Forks are resolved, and nobody learns of them."""
    original = resolution.resolve

    def resolve(entries: Any) -> Any:
        found = original(entries)
        return msgspec.structs.replace(found, forked=False) if found is not None else None

    monkeypatch.setattr(view, "resolve", resolve)


mutation("a fork is not reported")(unseen_fork)


@mutation("a retired token is dead one grace after it was replaced")
def grace_from_retirement(monkeypatch: Any) -> None:
    def is_dead(old: Any, now: int, grace_ms: int) -> bool:
        return now - old.retired_at > grace_ms

    monkeypatch.setattr(chain, "_is_dead", is_dead)


@mutation("a second successor is minted before the first was shown")
def many_successors(monkeypatch: Any) -> None:
    def needs_successor(links: Any, shown: Any, now: int, rotate_after_ms: int) -> bool:
        return now - links.current.minted_at >= rotate_after_ms

    def mint(links: Any, session_id: bytes, now: int) -> Any:
        return chain.Chain(links.current, chain.ChainLink(session_id, now), links.retired, links.forgotten_at)

    for module in (lifecycle, saving):
        monkeypatch.setattr(module, "needs_successor", needs_successor)
    monkeypatch.setattr(saving, "mint", mint)


@mutation("a refused write that was adopted is done twice")
def done_twice(monkeypatch: Any) -> None:
    monkeypatch.setattr(saving, "holds", lambda history, offered: False)


@mutation("equal values of two requests are no conflict")
def equal_is_no_conflict(monkeypatch: Any) -> None:
    original = delta.merge

    def merge(base: Any, theirs: Any, mine: Any, policy: Any, kept: Any) -> Any:
        return original(base, theirs, mine, "overtaken" if policy == "reject" else policy, kept)

    monkeypatch.setattr(saving, "merge", merge)


@mutation("a write forgets what others wrote meanwhile")
def no_merge(monkeypatch: Any) -> None:
    monkeypatch.setattr(saving, "merge", lambda base, theirs, mine, policy, kept: mine)


@mutation("nothing is repaired")
def no_repair(monkeypatch: Any) -> None:
    def nothing(self: Any, key: bytes) -> Any:
        yield Pause(0.0)
        return repair.Repaired.WHOLE

    monkeypatch.setattr(repair.Repair, "repair", nothing)


@mutation("hosted sessions are not copied again")
def no_recopy(monkeypatch: Any) -> None:
    monkeypatch.setattr(repair.Repair, "needs", lambda self, key: False)


@mutation("a forked session is repaired by copying, without a claim")
def repair_without_claim(monkeypatch: Any) -> None:
    unseen_fork(monkeypatch)
    monkeypatch.setattr(view.View, "is_mine", lambda self: False)


@mutation("a write is acknowledged though no server has it")
def empty_acknowledgement(monkeypatch: Any) -> None:
    original = Puts.note_accepted

    def note_accepted(self: Puts, copy: Any, version: Any, settled: Any) -> Any:
        for name in settled.replies:
            settled.replies[name] = Accepted()
        return original(self, copy, version, settled)

    monkeypatch.setattr(Puts, "note_accepted", note_accepted)


@mutation("a second close is complete at once")
def second_close_at_once(monkeypatch: Any) -> None:
    original = Copies.close

    def close(self: Copies, key: bytes) -> Any:
        return (yield from without_waiting(original(self, key), lambda names: "tombstone" not in names))

    monkeypatch.setattr(Copies, "close", close)


@mutation("spread by others leaves a close incomplete for ever")
def close_never_complete(monkeypatch: Any) -> None:
    original = Copies.put_tombstone

    def put_tombstone(self: Copies, key: bytes, tombstone: Any, servers: Any, *more: Any, **named: Any) -> Any:
        return (yield from original(self, key, tombstone, servers, 0))

    monkeypatch.setattr(Copies, "put_tombstone", put_tombstone)


@mutation("a copy that was lost is never counted as lost")
def losses_unnoticed(monkeypatch: Any) -> None:
    monkeypatch.setattr(repair.Repair, "lost_server", lambda self, server: None)


@mutation("a retired token is taken for ever")
def retired_for_ever(monkeypatch: Any) -> None:
    monkeypatch.setattr(chain, "_is_dead", lambda old, now, grace_ms: False)


# -- subtle ones: each of them is one word or one line ---------------------------------------------------------------


@mutation("a lease counts from the acknowledgement")
def lease_from_acknowledgement(monkeypatch: Any) -> None:
    original = Puts.earn_lease

    def earn(self: Puts, copy: Any, sent_at: float, holders: int) -> None:
        original(self, copy, sent_at, holders)
        if copy.lease_until:
            copy.lease_until = self._world.monotonic() + self._policy.lease_s

    monkeypatch.setattr(Puts, "earn_lease", earn)


@mutation("a notice of the same or an older epoch is ignored")
def old_epochs_ignored(monkeypatch: Any) -> None:
    original = Copies.on_message

    def on_message(self: Copies, message: Any) -> Any:
        copy = self._claiming.get(message.key) or self.cache.get(message.key)
        if copy is not None and isinstance(message, Notice) and message.version.epoch <= copy.version.epoch:
            return None
        return original(self, message)

    monkeypatch.setattr(Copies, "on_message", on_message)


@mutation("a lease goes on while one link is heard")
def one_link_is_enough(monkeypatch: Any) -> None:
    def heard(self: Links, server: str, sent_at: float) -> None:
        self.heard_until = sent_at + self._lease_s if self.prolong else 0.0

    monkeypatch.setattr(Links, "heard", heard)


@mutation("what a lost server held keeps its lease")
def lost_server_keeps_lease(monkeypatch: Any) -> None:
    original = repair.Repair.lost_server

    def lost_server(self: Any, server: str) -> None:
        before = self._copies._leases_from
        original(self, server)
        self._copies._leases_from = before

    monkeypatch.setattr(repair.Repair, "lost_server", lost_server)


@mutation("a put earns a lease though contact was lost meanwhile")
def contact_lost_meanwhile(monkeypatch: Any) -> None:
    monkeypatch.setattr(Puts, "lost_contact", lambda self, server: None)


@mutation("a tombstone goes to the placed servers only")
def narrow_close(monkeypatch: Any) -> None:
    original = Copies.put_tombstone

    def put_tombstone(
        self: Copies, key: bytes, tombstone: Any, servers: Any, holds: int = 0, notify: bytes = b""
    ) -> Any:
        placed = self.placement.ranking(key)[: self.placement.wanted]
        seen = {name: version for name, version in servers.items() if name in placed}
        return (yield from original(self, key, tombstone, seen, holds, notify))

    monkeypatch.setattr(Copies, "put_tombstone", put_tombstone)


@mutation("a tombstone lives half as long")
def short_tombstone(monkeypatch: Any) -> None:
    monkeypatch.setattr(SessionPolicy, "tombstone_ms", property(lambda self: self.max_token_age_ms // 2))


@mutation("a tried epoch is forgotten")
def epoch_forgotten(monkeypatch: Any) -> None:
    original = Copies._next_epoch

    def next_epoch(self: Copies, seen: Any) -> int:
        self._tried.pop(seen.key, None)
        return original(self, seen)

    monkeypatch.setattr(Copies, "_next_epoch", next_epoch)


@mutation("a stall ends no lease")
def stalls_unnoticed(monkeypatch: Any) -> None:
    monkeypatch.setattr(Copies, "void_leases", lambda self: None)


@mutation("times are judged by the clock of the host that a request reaches")
def own_clock(monkeypatch: Any) -> None:
    def now_ms(self: FarmClock) -> int:
        return int(self._wall_ms())

    monkeypatch.setattr(FarmClock, "now_ms", now_ms)


@mutation("a stand-in is withdrawn before its server has the session again")
def only_copy_withdrawn(monkeypatch: Any) -> None:
    def stand_ins(self: Surplus, seen: Any) -> list[str]:
        home = self._home(seen.key)
        return [name for name, one in seen.entries.items() if name not in home and not one.closed]

    def withdraw(self: Surplus, key: bytes) -> Any:
        seen = yield from self._copies.viewer.look(key)
        for name in stand_ins(self, seen):
            ended = msgspec.structs.replace(seen.entries[name], expires_in_ms=1)
            yield Put(key, ended, {name: ended.version})
        return False

    monkeypatch.setattr(Surplus, "withdraw", withdraw)


# -- of sessions that forked, or were claimed late: what a fork or a claim of long ago must not excuse ---------------


def forked_once(monkeypatch: Any) -> None:
    """Each web server remembers in ``_forked`` which sessions it has found forked."""
    original = Copies.claim

    def claim(self: Copies, view: Any, leave: Any = ()) -> Any:
        if view.forked:
            self.__dict__.setdefault("_forked", set()).add(view.key)
        self.__dict__["_claims_forked"] = view.key in self.__dict__.get("_forked", ())
        return (yield from original(self, view, leave))

    monkeypatch.setattr(Copies, "claim", claim)


@mutation("who once found a fork puts over whatever is there")
def forks_for_ever(monkeypatch: Any) -> None:
    forked_once(monkeypatch)
    owners: set[bytes] = set()
    fresh_owner, judge = Copies._fresh_owner, put_rule.judge

    def note_owner(self: Copies) -> bytes:
        owner = fresh_owner(self)
        if self.__dict__.get("_claims_forked"):
            owners.add(owner)
        return owner

    def unseen(stored: Any, seen: Any, new: Any) -> Verdict:
        live = stored is not None and not stored[1] and not new[1]
        return Verdict.ACCEPTED_NOTIFY if live and new[6:14] in owners else judge(stored, seen, new)

    monkeypatch.setattr(Copies, "_fresh_owner", note_owner)
    for module in (put_rule, table):
        monkeypatch.setattr(module, "judge", unseen)


@mutation("of a session that forked once nobody looks at what its token promises")
def forked_promise(monkeypatch: Any) -> None:
    forked_once(monkeypatch)
    original = Copies.load

    def load(self: Copies, key: bytes, promised: Any, *rest: Any) -> Any:
        forked = promised is not None and key in self.__dict__.get("_forked", ())
        return (yield from original(self, key, cache.NO_VERSION if forked else promised, *rest))

    monkeypatch.setattr(Copies, "load", load)


@mutation("a lapse yields to a copy in a cache, though it covers that")
def lapse_yields_to_a_cache(monkeypatch: Any) -> None:
    original = resolution.resolve

    def resolve(entries: Any) -> Any:
        entries = list(entries)
        own = any(not one.closed and not one.payload for one in entries)
        return original([one for one in entries if not (own and one.provisional)])

    monkeypatch.setattr(view, "resolve", resolve)


@mutation("repair compares what copies hold, not whose they are")
def repair_by_history(monkeypatch: Any) -> None:
    original = repair.Repair._repair

    def mend(self: Any, key: bytes) -> Any:
        flow = original(self, key)
        reply = None
        while True:
            try:
                effect = flow.send(reply)
            except StopIteration as end:
                return end.value
            if type(effect) is Put and not effect.entry.closed and (shown := flow.gi_frame) is not None:
                entries = shown.f_locals["view"].entries
                lacking = [name for name in effect.seen if (one := entries.get(name)) is None or differs(one, effect)]
                if not lacking and "lacking" in shown.f_locals:
                    return repair.Repaired.WHOLE
            reply = yield effect

    def differs(entry: Any, effect: Put) -> bool:
        return bool(entry.history != effect.entry.history)

    monkeypatch.setattr(repair.Repair, "_repair", mend)


@mutation("a login is told before the index of its user has it")
def login_told_before_it_is_listed(monkeypatch: Any) -> None:
    def enlist(self: Any, session: Any, instead_of: Any = None) -> Any:
        copy = session._request.copy_held
        if self.users is not None and copy is not None and (record := self._record(copy)).user is not None:
            self.users.note_activity(copy.key, record, (), None)
        return []
        yield

    monkeypatch.setattr(lifecycle.Lifecycle, "_enlist", enlist)


@mutation("what a limit ends is closed after the login was told")
def displaced_after_the_login(monkeypatch: Any) -> None:
    def admit(self: Any, session: Any, displaced: Any) -> Any:
        for key in displaced:
            self.users.abandon(key)
        return
        yield

    monkeypatch.setattr(lifecycle.Lifecycle, "_admit_login", admit)


@mutation("an index is written over what a rival wrote since")
def index_without_a_look(monkeypatch: Any) -> None:
    """Who finds its write refused takes that for done."""
    original = Copies.write

    def write(self: Copies, copy: Any, body: bytes, *rest: Any) -> Any:
        written = yield from original(self, copy, body, *rest)
        return copies.Written(1, 1) if written is None and is_index(body) else written

    monkeypatch.setattr(Copies, "write", write)


@mutation("a close of a user ends what is listed, and leaves no mark for logins under way")
def close_user_by_a_list_that_was_read(monkeypatch: Any) -> None:
    def close_user(self: Any, user: str, but: Any = None, why: str = "") -> Any:
        index = yield from self.read(self.keys_of(user))
        keys = [one.key for one in index.listed if one.key != but][:1]
        closed = yield from self.close_keys(user, keys, why)
        return closed

    monkeypatch.setattr(UserIndexes, "close_user", close_user)


@mutation("an index lives for ever")
def index_for_ever(monkeypatch: Any) -> None:
    monkeypatch.setattr(UserIndex, "ends_at", lambda self, longest_ms: 1 << 42)


# Not here, because no history can tell them apart from the rule:
#
# * "A view is mine though a session server shows a later write of my own claim" (`View.is_mine` without the comparison
#   of seq). A later seq of the claim that is cached would have to be stored without being cached. Seqs are given out by
#   `Copies.write` alone, one at a time (`Exclusive`), and whatever a write does not acknowledge leaves the cache in its
#   `finally`: errors, refusals and cancellation alike. So the cached copy is the latest write of its claim, or there is
#   none; and `claim` draws a fresh owner. The comparison is kept for what a hostile session server may show.
# * "An unknown epoch counts as covered in a short history, too" (`covers`). A history is shortened only when it is
#   full, so a short one begins with epoch 1, and no token promises less: `test_version.py` holds the rule by itself.
#
# And one that a test of its own holds: an expired cached copy is no witness
# (`test_an_expired_copy_in_a_cache_is_no_witness_of_a_rollback`); in a history the newest copies expire in the same
# second, which promise 6 excuses.
