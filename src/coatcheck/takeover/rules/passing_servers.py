"""Which web server has a connection that a director passes on, and who has it after that one."""

from __future__ import annotations

from typing import Final

from coatcheck.director.rules.actions import Order, Reach, ToClient, ToServer
from coatcheck.director.rules.delivery import Failure
from coatcheck.director.rules.faults import FAULT_OF_FAILURE, Fault
from coatcheck.director.rules.routing import ServerState
from coatcheck.director.rules.server_half import Ending
from coatcheck.takeover.rules.affinity import preferred
from coatcheck.takeover.rules.carried import Loss, ServerSays
from coatcheck.takeover.rules.inner_frames import Frame, frame
from coatcheck.takeover.rules.passing_state import CLOSING, CONNECTING, JOINED, NEVER, NEW, WAITING, PassingState
from coatcheck.takeover.rules.tls_records import BadRecord

_MAX_REFUSALS: Final = 16
"""Connections to web servers that one client's connection may be refused in a row."""


class PassingServers(PassingState):
    """The half of a connection that concerns web servers."""

    __slots__ = ()

    # Events

    def woken(self, admitted: ServerState | None) -> None:
        """The health of a web server changed while this one waited."""
        if self.state is WAITING:
            if admitted is not None:
                self._tried = ()
            self._choose()

    def server_died(self) -> None:
        """The process that has it has ended. What it has said on its link counts, and may not have been read."""
        if self.state is JOINED:
            self.actions.append(Order.END_SERVER)
        elif self.state is CONNECTING:
            self._server_gone()

    def server_full(self) -> None:
        """The web server does not take what is written."""
        self._server_full = True
        if not self._held_back and self.state is not CLOSING:
            self.actions.append(Order.PAUSE_CLIENT)

    def server_ready(self) -> None:
        """The web server takes bytes again."""
        self._server_full = False
        if not self._held_back and self.state is not CLOSING:
            self.actions.append(Order.RESUME_CLIENT)

    def connected(self, *, reused: bool, full: bool) -> None:
        """A link was had."""
        assert self.state is CONNECTING and self.server is not None
        self.state = JOINED
        self._has_it = False
        self._refusals = 0
        self._server_full = full
        said = self.carried.give(self._addresses.peer, self._addresses.local, looked_at=self._looked_at)
        self.actions.append(ToServer(said))
        if self._client_full:
            self.actions.append(Order.PAUSE_SERVER)
        if self._held_back and not full:
            self.actions.append(Order.RESUME_CLIENT)
        elif full and not self._held_back:
            self.actions.append(Order.PAUSE_CLIENT)
        self._held_back = False
        if self._client_full:
            self.due_at = self._traffic.now + self._traffic.limits.body_timeout_s
        else:
            self._rest()
        behind, self._behind = self._behind, b""
        if behind:
            self._pass_on(behind)
        if self.server is not None and self.server.draining:
            self.draining()
        if self._traffic.stopping:
            self.end_when_idle()

    def not_connected(self, failure: Failure) -> None:
        """No link was to be had."""
        assert self.state is CONNECTING and self.server is not None
        server = self.server
        self._let_go_of_server()
        self.state = WAITING
        if failure is not Failure.STALLED:
            self._tried = [*self._tried, server]
        self._refusals += 1
        if self._refusals > _MAX_REFUSALS:
            self._traffic.count(FAULT_OF_FAILURE[failure])
            self._close(Order.ABORT_CLIENT)
            return
        self._choose()

    def server_bytes(self, data: bytes) -> None:
        """Bytes came from the web server."""
        if self.state is not JOINED:
            return
        self._traffic.heard(self.server)
        self._has_it = True
        try:
            out, said = self.carried.from_server(data)
        except BadRecord:
            self._traffic.count(Fault.BAD_RESPONSE)
            self._close(Order.ABORT_CLIENT)
            return
        if out:
            self.actions.append(ToClient(out))
        if self.carried.established and not self._client_full and not self._ending:
            self._rest()
        for word in said:
            if word is ServerSays.ESTABLISHED:
                self._traffic.end_handshake(self)
            elif word is ServerSays.RELEASED:
                self._released()
                return
            else:
                self._close(Order.CLOSE_CLIENT if word is ServerSays.CLOSE else Order.RESET_CLIENT)
                return

    def server_ended(self, ending: Ending) -> None:
        """The link has ended, and it did not say that the connection is over."""
        if self.state is JOINED:
            assert self.server is not None
            self._traffic.check_now(self.server)
            self._server_gone()

    def end_when_idle(self) -> None:
        """The director stops: no further request is begun, and the client is told so by the web server."""
        if self.state is NEW:
            self._close(Order.CLOSE_CLIENT)
        elif self.state is JOINED and not self._ending:
            self._ending = True
            self.actions.append(ToServer(frame(Frame.END)))

    def draining(self) -> None:
        """Its web server is to have no more connections: another one goes on as soon as nothing is under way."""
        if self.state is JOINED and not self._moving and self.carried.may_be_given:
            self._moving = True
            self.actions.append(ToServer(frame(Frame.MOVE)))

    @property
    def _is_being_released(self) -> bool:
        """Whether its web server has let go of it, or will as soon as it hears that it has to."""
        return self._moving and bool(self.carried.state) and self.carried.is_settled

    # Who goes on

    def _released(self) -> None:
        self.actions.append(Order.LEAVE_SERVER)
        self._let_go_of_server()
        self.state = WAITING
        if not self.carried.is_kept_whole:
            self._broken_off(Loss.NOT_KEPT)
            return
        self._counts["moved"] += 1
        self._looked_at = False
        self._tried = ()
        self._choose()

    def _server_gone(self) -> None:
        server = self.server
        assert server is not None
        was_joined = self.state is JOINED
        self.actions.append(Order.LEAVE_SERVER)
        self._let_go_of_server()
        self.state = WAITING
        if not was_joined:
            self._tried = [server]
            self._choose()
            return
        loss = self.carried.loss()
        if not loss.goes_on:
            self._broken_off(loss)
            return
        if self._has_it or loss is not Loss.RESUME:  # else this is still the loss of the one before
            self._counts[loss.name.lower()] += 1
        self._looked_at = loss is Loss.RESUME
        self._tried = [server]
        self._traffic.retries += 1
        self._choose()

    def _broken_off(self, loss: Loss) -> None:
        self._counts[loss.name.lower()] += 1
        self._traffic.count(Fault.UPSTREAM_LOST)
        self._close(Order.RESET_CLIENT)

    def _choose(self) -> None:
        traffic = self._traffic
        first = preferred(self._addresses.peer[0], traffic.servers)
        chosen = traffic.balancer.choose(first.tag if first is not None else None, self._tried, patient=False)
        if chosen is None:
            self._wait()
            return
        self._waiting_since = None
        self.state = CONNECTING
        self.server = chosen
        chosen.in_flight += 1
        chosen.requests += 1
        self._moving = False
        self.actions.append(Reach(chosen, certain=True, fresh=True))

    def _wait(self) -> None:
        traffic = self._traffic
        self.state = WAITING
        if self._waiting_since is None:
            self._waiting_since = traffic.now
            # Who asks for nothing at the moment waits for as long as it likes.
            self.due_at = NEVER if self.is_idle else traffic.now + traffic.limits.no_server_wait_s
        if not traffic.park(self):
            traffic.count(Fault.NO_SERVER)
            self._close(Order.ABORT_CLIENT)
