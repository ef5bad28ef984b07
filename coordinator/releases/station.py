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
from wire_protocol.topics import TOPIC_ROOT, parse_device_topic, release_file_filter

__all__ = ["ReleaseStation", "ReportGuard", "report_filter"]

_LOG = logging.getLogger(__name__)
_STORE_AGAIN_S: Final = 5.0
_MAX_HEARD: Final = 100_000
"""Reports that wait to be written; more are dropped, and devices say them again when they connect."""
_MAX_RETAINED: Final = 65_536
"""Topics that are remembered; more would be the work of somebody else than this station."""
_BATCH_S: Final = 0.2
_RESIGN_S: Final = 24 * 3600.0
_BURST_BYTES: Final = 1 << 20
"""So much is published in one turn: paho keeps what it has not sent in memory."""


class ReportGuard(Protocol):
    """Lets a device's message through, or not; `report_guard.SignedReports` by its signature."""

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
        self._files_prefix = release_file_filter(population).removesuffix("+")
        self._step_s = step_s
        self._repository = repository
        self._rollouts = rollouts
        self._book = book
        self._guard = guard
        self._now = now
        self._is_up = False
        self._is_published = False
        self._retained: dict[str, bytes] = {}
        """Topic -> SHA-256 of what is retained there, as far as this connection has shown: published, or heard."""
        self._queue: Iterator[tuple[str, bytes]] | None = None
        self._version = b""
        """Of the channel that was published last: every piece is read and hashed, and only when something has changed."""
        self._wanted: set[str] = set()
        self._models: set[str] = set()
        """Models that have releases: nothing is kept of others, whoever speaks of them."""
        self._heard: list[tuple[str, ReleaseReport]] = []
        self._step_at = 0.0
        self._store_at = float("inf")
        self.num_published = 0
        self.num_bytes_published = 0
        self.refused: collections.Counter[str] = collections.Counter()

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """What the link must hear."""
        return (report_filter(self._population), release_file_filter(self._population))

    @property
    def is_published(self) -> bool:
        """Whether everything on disk is on the broker, as far as it is known."""
        return self._is_up and self._is_published

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
                self._is_up, self._is_published = True, False
                self._retained.clear()
                self._begin_publishing()
            case LinkDown():
                self._is_up = False
                self._queue = None
            case Incoming(topic=topic) if topic.startswith(self._files_prefix):
                self._note_retained(event)
            case Incoming():
                self._take(event, now)

    def turn(self, link: BrokerLink, now: float) -> None:
        """Does what is due.

        Raises:
            ReleaseError: The book cannot be read.
        """
        if now >= self._store_at:
            self._store(now)
        if now >= self._step_at:
            self._step_at = now + self._step_s
            self._step()
        if self._is_up and self._queue is not None:
            try:
                self._publish(link)
            except (ReleaseError, OSError) as error:
                # A command has changed the channel meanwhile, or the disk is ill: what is retained stays.
                _LOG.error("channel_not_published error=%r", str(error))
                self._queue, self._is_published = None, False

    def _take(self, event: Incoming, now: float) -> None:
        try:
            topic = parse_device_topic(event.topic)
            message = self._guard.open(event.topic, event.payload, topic.device_id)
            if message is None:
                self.refused["not_let_through"] += 1
                return
            report = decode_message(message, ReleaseReport)
        except (WireError, CoordinatorError) as error:
            self.refused[type(error).__name__] += 1
            return
        if report.name not in self._models:
            self.refused["unknown_model"] += 1
            return
        if len(self._heard) >= _MAX_HEARD:
            self.refused["too_many"] += 1
            return
        self._heard.append((topic.device_id, report))
        self._store_at = min(self._store_at, now + _BATCH_S)

    def _note_retained(self, event: Incoming) -> None:
        """What the broker holds of an earlier life, or of somebody else, is replaced or emptied by the next look."""
        digest = hashlib.sha256(event.payload).digest() if event.payload else None
        if self._retained.get(event.topic) == digest:
            return
        self._is_published = False
        if digest is None:
            del self._retained[event.topic]
        elif event.topic in self._retained or len(self._retained) < _MAX_RETAINED:
            self._retained[event.topic] = digest

    def _store(self, now: float) -> None:
        try:
            self.refused["too_many"] += self._book.note_reports(self._heard, now=self._now())
        except ReleaseError as error:
            # A command may keep the book for long; devices do not say it again by themselves.
            _LOG.error("reports_not_kept num=%d error=%r", len(self._heard), str(error))
            self._store_at = now + _STORE_AGAIN_S
            return
        self._heard = []
        self._store_at = float("inf")

    def _step(self) -> None:
        try:
            self._models = {manifest.name for manifest in self._repository.manifests()}
        except (ReleaseError, OSError) as error:
            _LOG.error("channel_not_read error=%r", str(error))
        for name in sorted({rollout.name for _, rollout in self._book.rollouts()}):
            try:
                decision = self._rollouts.step(name)
            except CoordinatorError as error:
                _LOG.error("rollout_not_moved name=%s error=%r", name, str(error))
                continue
            if decision is not None:
                _LOG.info("rollout_step name=%s verdict=%s reason=%r", name, decision.verdict.value, decision.reason)
        self._sign_in_time()
        if self._is_up and self._queue is None and self._has_changed():
            self._begin_publishing()

    def _has_changed(self) -> bool:
        """Whether the broker may hold something else than the disk."""
        try:
            return not self._is_published or self._repository.version() != self._version
        except OSError as error:
            _LOG.error("channel_not_read error=%r", str(error))
            return False

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
        try:
            # Before the files are read: what changes meanwhile is found at the next look.
            self._version = self._repository.version()
        except OSError as error:
            _LOG.error("channel_not_read error=%r", str(error))
            return
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
        self._queue, self._is_published = None, True
        self._forget(link, self._retained.keys() - self._wanted)

    def _forget(self, link: BrokerLink, topics: Collection[str]) -> None:
        for topic in topics:
            link.publish(topic, b"", retain=True)
            self._retained.pop(topic, None)
