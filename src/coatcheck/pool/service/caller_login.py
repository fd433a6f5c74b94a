"""A check-out whose login is the caller's: the lease flow, stopped where it would log in."""

from __future__ import annotations

import msgspec

from coatcheck.pool import flows
from coatcheck.pool.commands import Granted
from coatcheck.pool.flows import Flow, LogIn, LoginGoesOn
from coatcheck.pool.lines import Lines


class LoginDue(msgspec.Struct, frozen=True):
    """The caller must log in, and holds slot ``fence`` meanwhile."""

    fence: int


def check_out(user: str, wait_s: float, lines: Lines, credentials: tuple[bytes, ...] = ()) -> Flow[Granted | LoginDue]:
    """Like :func:`coatcheck.pool.flows.acquire`, but a login that is due is answered instead of performed."""
    flow = flows.acquire(user, None, wait_s, lines, credentials)
    try:
        effect = next(flow)
        while True:
            if isinstance(effect, LogIn):
                return _leave_to_caller(flow, effect)
            try:
                answer = yield effect
            except BaseException as error:  # noqa: BLE001 - the flow puts it right and raises it again
                effect = flow.throw(error)
            else:
                effect = flow.send(answer)
    except StopIteration as end:
        granted: Granted = end.value
        return granted


def _leave_to_caller(flow: Flow[Granted], effect: LogIn) -> LoginDue:
    try:
        flow.throw(LoginGoesOn())
    except LoginGoesOn:
        return LoginDue(effect.fence)
    raise AssertionError("a flow goes on after its login was left to others")
