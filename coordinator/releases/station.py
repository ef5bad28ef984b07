"""The release station: keeps the channel on the broker, hears what devices say, and moves rollouts by their gates.

A process of its own beside the coordinator, which need not run. What is on disk is the truth: commands change it, and
the station notices, publishes and retains. Publication is one message per file and per piece, however large the fleet.

Runs without a clock or thread of its own: `serve` drives it with a real link, tests with an in-memory broker.
"""

import collections
import hashlib
import logging
from collections.abc import Callable, Collection, Iterator
from typing import Final, Protocol

from broker_link.link import BrokerLink, Incoming, LinkDown, LinkEvent, LinkUp
from coordinator.errors import CoordinatorError, ReleaseError
from coordinator.releases.publisher import channel_messages
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.rollout_book import RolloutBook
from coordinator.releases.rollouts import Rollouts
from wire_protocol.errors import WireError
from wire_protocol.messages import decode_message, message_kind
from wire_protocol.release_report import ReleaseReport
from wire_protocol.topics import TOPIC_ROOT, parse_device_topic

__all__ = ["ReleaseStation", "ReportGuard", "report_filter"]

_LOG = logging.getLogger(__name__)
_BATCH_S: Final = 0.2
_RESIGN_S: Final = 24 * 3600.0
_BURST_BYTES: Final = 1 << 20
"""So much is published in one turn: paho keeps what it has not sent in memory."""


class ReportGuard(Protocol):
    """Lets a device's message through, or not; `guarded_reports.RosterGuard` by its signature."""

    def open(self, topic: str, payload: bytes, device_id: str) -> bytes | None:
        """The message inside; None if it is refused."""


def report_filter(population: str) -> str:
    """Subscription filter for what devices say of releases."""
    return f"{TOPIC_ROOT}/{population}/d/+/up/{message_kind(ReleaseReport)}"


class ReleaseStation:
    """Serves one release channel to one population.

    Args:
        population: The population's name.
        repository: What is signed.
        rollouts: Moves them.
        book: Keeps what devices say.
        guard: Checks who says it.
        now: Seconds since 1970 UTC.
        step_s: Between two looks at the gates and at what is on disk.
    """

    def __init__(
        self,
        *,
        population: str,
        repository: ReleaseRepository,
        rollouts: Rollouts,
        book: RolloutBook,
        guard: ReportGuard,
        now: Callable[[], float],
        step_s: float = 5.0,
    ) -> None:
        self._population = population
        self._step_s = step_s
        self._repository = repository
        self._rollouts = rollouts
        self._book = book
        self._guard = guard
        self._now = now
        self._is_up = False
        self._retained: dict[str, bytes] = {}
        """Topic -> SHA-256 of what this station has retained there since the connection came up."""
        self._queue: Iterator[tuple[str, bytes]] | None = None
        self._wanted: set[str] = set()
        self._heard: list[tuple[str, ReleaseReport]] = []
        self._step_at = 0.0
        self._store_at = float("inf")
        self.num_published = 0
        self.num_bytes_published = 0
        self.refused: collections.Counter[str] = collections.Counter()

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """What the link must hear."""
        return (report_filter(self._population),)

    @property
    def is_published(self) -> bool:
        """Whether everything on disk is on the broker, as far as it is known."""
        return self._is_up and self._queue is None and bool(self._retained)

    def next_wakeup(self) -> float:
        """When ``turn`` is due, on the clock of ``now``."""
        if self._queue is not None and self._is_up:
            return 0.0
        return min(self._step_at, self._store_at)

    def handle(self, event: LinkEvent, now: float) -> None:
        """Takes an event of the link, at monotonic time ``now`` in seconds. Nothing that a device sent makes it raise."""
        match event:
            case LinkUp():
                # A broker without persistence has forgotten everything.
                self._is_up = True
                self._retained.clear()
                self._begin_publishing()
            case LinkDown():
                self._is_up = False
                self._queue = None
            case Incoming():
                self._take(event, now)

    def turn(self, link: BrokerLink, now: float) -> None:
        """Does what is due.

        Raises:
            ReleaseError: The channel or the book cannot be read or written.
        """
        if now >= self._store_at:
            self._store()
        if now >= self._step_at:
            self._step_at = now + self._step_s
            self._step()
        if self._is_up and self._queue is not None:
            self._publish(link)

    def _take(self, event: Incoming, now: float) -> None:
        try:
            topic = parse_device_topic(event.topic)
            message = self._guard.open(event.topic, event.payload, topic.device_id)
            if message is None:
                self.refused["not_let_through"] += 1
                return
            self._heard.append((topic.device_id, decode_message(message, ReleaseReport)))
        except WireError as error:
            self.refused[type(error).__name__] += 1
            return
        self._store_at = min(self._store_at, now + _BATCH_S)

    def _store(self) -> None:
        heard, self._heard = self._heard, []
        self._store_at = float("inf")
        self._book.note_reports(heard, now=self._now())

    def _step(self) -> None:
        for name in sorted({rollout.name for _, rollout in self._book.rollouts()}):
            try:
                decision = self._rollouts.step(name)
            except CoordinatorError as error:
                _LOG.error("rollout_not_moved name=%s error=%r", name, str(error))
                continue
            if decision is not None:
                _LOG.info("rollout_step name=%s verdict=%s reason=%r", name, decision.verdict.value, decision.reason)
        self._sign_in_time()
        if self._is_up and self._queue is None:
            self._begin_publishing()

    def _sign_in_time(self) -> None:
        """Long before the timestamp's word ends it is given again."""
        left_s = self._repository.expires_at("timestamp").timestamp() - self._now()
        if left_s < 6 * _RESIGN_S:
            try:
                self._repository.refresh()
            except ReleaseError as error:
                _LOG.error("timestamp_not_signed left_s=%.0f error=%r", left_s, str(error))

    def _begin_publishing(self) -> None:
        self._wanted = set()
        self._queue = channel_messages(self._repository, self._population)

    def _publish(self, link: BrokerLink) -> None:
        """The next megabyte of what the broker does not have; at the end, what it should have no more is emptied."""
        if self._queue is None:
            return
        num_bytes = 0
        for topic, payload in self._queue:
            self._wanted.add(topic)
            digest = hashlib.sha256(payload).digest()
            if self._retained.get(topic) == digest:
                continue
            link.publish(topic, payload, retain=True)
            self._retained[topic] = digest
            self.num_published += 1
            self.num_bytes_published += len(payload)
            num_bytes += len(payload)
            if num_bytes >= _BURST_BYTES:
                return
        self._queue = None
        self._forget(link, self._retained.keys() - self._wanted)

    def _forget(self, link: BrokerLink, topics: Collection[str]) -> None:
        for topic in topics:
            link.publish(topic, b"", retain=True)
            del self._retained[topic]
