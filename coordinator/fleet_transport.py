"""Rounds that are ordered from outside, by a TFF program, over the same fleet and the same admission as the server's.

The counterpart of `round_loop`: there the coordinator decides which round comes next, here a TFF context does.
"""

import collections
import logging
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import msgspec

from broker_link.link import BrokerLink, EventSink, LinkEvent
from coordinator.actions import Action, Fold, Publish, RoundEnded, RoundOrder
from coordinator.aggregation import ClientUpdate
from coordinator.device_guard import MakeGuard, open_guard
from coordinator.errors import InvalidConfig
from coordinator.fleet import FleetCoordinator
from coordinator.refusals import GuardRefusal
from coordinator.round_table import RoundEvent, RoundState
from wire_protocol.messages import RoundKind
from wire_protocol.tensors import Tensors, encode_tensors

__all__ = ["DeviceCohort", "FleetTransport"]

_LOG = logging.getLogger(__name__)
_MAX_WAIT_S = 1.0


class DeviceCohort(Protocol):
    """The devices that a round asks."""

    @property
    def device_ids(self) -> tuple[str, ...]:
        """Their ids."""


class FleetTransport:
    """Reaches cohorts over a broker; a ``RoundTransport`` of ``coordinator.tff.contexts``.

    Args:
        fleet: The coordinator's talk with the devices; its policy must let as many devices wait as a cohort has.
        connect: Makes the link, given where its events are to go.
        clock: Monotonic seconds.
        make_guard: Makes what decides who is heard: ``device_guard.roster_guard(...)``, or everybody.

    Raises:
        InvalidConfig: The task is confidential: there are no single updates to hand over.
        RosterUnusable: From the guard: its roster cannot be read.
    """

    def __init__(
        self,
        *,
        fleet: FleetCoordinator,
        connect: Callable[[EventSink], BrokerLink],
        clock: Callable[[], float] = time.monotonic,
        make_guard: MakeGuard = open_guard,
    ) -> None:
        if fleet.plan.confidentiality is not msgspec.UNSET:
            raise InvalidConfig("a TFF program is given each update: a task with confidential sums is run by 'serve'")
        self._fleet = fleet
        self._clock = clock
        self._events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        self._pending: collections.deque[Action] = collections.deque()
        self._link = connect(self._events.put)
        self._guard = make_guard(self._link.publish)

    def start(self) -> None:
        """Connects."""
        self._link.start()

    def stop(self) -> None:
        """Tells waiting devices that no round is coming, and disconnects."""
        for action in self._fleet.dismiss():
            self._perform(action)
        self._link.stop()
        self._guard.close()

    @property
    def refusals(self) -> Mapping[GuardRefusal, int]:
        """Messages that the guard has refused since the start, by reason."""
        return self._guard.refusals

    def publish(self, round_id: int, cohort: DeviceCohort, weights: Tensors) -> None:
        """Opens a round for a cohort; assignments go out when its devices have checked in."""
        order = RoundOrder(
            round_id=round_id,
            kind=RoundKind.TRAIN,
            checkpoint=encode_tensors(weights),
            only=frozenset(cohort.device_ids),
        )
        self._pending.extend(self._fleet.open_round(order, now=self._clock()))

    def reports(self, round_id: int) -> Iterator[tuple[str, ClientUpdate]]:
        """Yields admitted updates; a device gets its receipt when the next one is asked for. Ends with the round."""
        del round_id
        while True:
            if not self._pending:
                self._pending.extend(self._next_actions())
                continue
            match self._pending.popleft():
                case Fold() as fold:
                    yield fold.device_id, fold.update
                    self._pending.extend(self._fleet.folded(fold.device_id, now=self._clock()))
                case RoundEnded():
                    return
                case action:
                    self._perform(action)

    def close_round(self, round_id: int) -> None:
        """Ends the round: whoever has not reported is told that it is over."""
        round_ = self._fleet.current_round
        if round_ is None or round_.round_id != round_id:
            return
        while self._pending:
            self._perform(self._pending.popleft())
        is_aggregated = round_.state is RoundState.AGGREGATING
        event = RoundEvent.RESULT_STORED if is_aggregated else RoundEvent.CANCELLED
        for action in self._fleet.close_round(event, now=self._clock()):
            self._perform(action)

    def _next_actions(self) -> list[Action]:
        wakeup = self._fleet.next_wakeup()
        wait_s = _MAX_WAIT_S if wakeup is None else min(_MAX_WAIT_S, max(0.0, wakeup - self._clock()))
        try:
            event: LinkEvent | None = self._events.get(timeout=wait_s)
        except queue.Empty:
            event = None
        actions: list[Action] = []
        screened = None if event is None else self._guard.screen(event)
        if screened is not None:
            actions.extend(self._fleet.handle(screened, now=self._clock()))
        for device_id in self._guard.refresh(now=self._clock()):
            _LOG.info("device_expelled device_id=%s", device_id)
            actions.extend(self._fleet.expel(device_id, now=self._clock()))
        return actions + self._fleet.tick(now=self._clock())

    def _perform(self, action: Action) -> None:
        if isinstance(action, Publish):
            self._link.publish(action.topic, action.payload, retain=action.retain)
