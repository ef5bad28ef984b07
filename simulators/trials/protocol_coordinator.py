"""The coordinator's machine in the protocol model: the real parts on a disk that forgets what was not synced.

`RoundLoop`, `RoundJournal` on SQLite, `CheckpointStore` and `RoundIds` are the real ones; what stands around them can
stop the machine between any two steps that the outside sees.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from broker_link.link import LinkEvent
from broker_link.memory_broker import MemoryBroker, MemoryLink
from coordinator.aggregation import ClientUpdate, ServerState
from coordinator.checkpoints import CheckpointStore
from coordinator.errors import JournalUnwritable
from coordinator.fleet import FleetCoordinator
from coordinator.late_aggregator import LateAggregator
from coordinator.round_ids import RoundIds
from coordinator.round_journal import Contribution, RoundJournal
from coordinator.round_loop import RoundLoop, RoundSchedule, RoundSummary
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import RoundState
from simulators.trials.exact_mean import ExactMean, FoldWatcher
from simulators.trials.protocol_reference import ProtocolReference
from simulators.trials.protocol_trial import POPULATION, Fuse, PowerCut, trial_task
from wire_protocol.messages import Assignment, Receipt, RoundKind, decode_message
from wire_protocol.tensors import decode_tensors

__all__ = ["CoordinatorHost"]

_POLICY: Final = RoundPolicy(
    report_goal=2, min_reports=1, over_selection=1.5, selection_timeout_s=30.0, report_timeout_s=120.0
)
_FOR_EVER: Final = 10**9


class _WatchedJournal(RoundJournal):
    """The real journal; the reference is told, and the machine may stop before and after each step."""

    def __init__(self, path: Path, reference: ProtocolReference, fuse: Fuse) -> None:
        super().__init__(path)
        self._reference = reference
        self._fuse = fuse
        self.is_disk_full = False
        self.synced_wal_bytes = self.wal_bytes()

    def wal_bytes(self) -> int:
        """Length of the write-ahead log as it is now."""
        wal = self._path.with_name(self._path.name + "-wal")
        return wal.stat().st_size if wal.exists() else 0

    def open_round(self, round_id: int, kind: RoundKind, *, base_commits: int) -> None:
        self._reference.round_opened(round_id)
        super().open_round(round_id, kind, base_commits=base_commits)

    def add(self, round_id: int, contribution: Contribution) -> None:
        self._fuse.burn()
        self._reference.noted(round_id, contribution)
        super().add(round_id, contribution)
        self._fuse.burn()

    def stop_reporting(self, round_id: int) -> None:
        self._fuse.burn()
        super().stop_reporting(round_id)

    def close_round(self, round_id: int, state: RoundState) -> None:
        self._fuse.burn()
        if state is RoundState.ABANDONED:
            self._reference.abandoned_round(round_id)
        super().close_round(round_id, state)

    def sync(self) -> None:
        self._fuse.burn()
        if self.is_disk_full and self._is_writing:
            raise JournalUnwritable("the disk is full")
        super().sync()
        self.synced_wal_bytes = self.wal_bytes()
        self._reference.synced()
        self._fuse.burn()

    def drop_dead(self) -> None:
        """Lets go of the file as a killed process does: an open transaction is never committed."""
        self._db.close()


class _Folds(FoldWatcher):
    """What the accumulator holds."""

    def __init__(self, reference: ProtocolReference) -> None:
        self._reference = reference
        self._current: list[ClientUpdate] = []

    def begun(self) -> None:
        self._current = []

    def folded(self, update: ClientUpdate) -> None:
        self._current.append(update)
        self._reference.folded(self._current)


class CoordinatorHost:
    """The coordinator's machine.

    Args:
        disk: Its disk.
        broker: Where its link goes.
        reference: Told of everything.
        rng: Everything random.
    """

    def __init__(self, *, disk: Path, broker: MemoryBroker, reference: ProtocolReference, rng: random.Random) -> None:
        self._disks = disk
        self._num_disks = 0
        self._disk = disk / "0"
        self._broker = broker
        self._reference = reference
        self._rng = rng
        self._task = trial_task()
        self._late: LateAggregator | None = None
        self._journal: _WatchedJournal | None = None
        self._store: CheckpointStore | None = None
        self.fuse = Fuse()
        self.num_boots = 0
        self.fleet: FleetCoordinator | None = None
        self.loop: RoundLoop | None = None
        self.link: MemoryLink | None = None
        self.now = 0.0
        self.sent: Callable[[str, bytes], None] = lambda _topic, _payload: None

    @property
    def is_up(self) -> bool:
        """Whether the process lives."""
        return self.loop is not None

    def boot(self, now: float) -> None:
        """Starts a new process on what the disk holds."""
        self.now = now
        self.num_boots += 1
        self.fuse.left = None
        self._disk.mkdir(exist_ok=True)
        journal = self._journal = _WatchedJournal(self._disk / "journal.sqlite", self._reference, self.fuse)
        rounds = {known.round_id: known.state for known in journal.rounds()}
        self._reference.resumed(
            {
                round_id: {row.device_id for row in journal.contributions(round_id)}
                for round_id, state in rounds.items()
                if state not in {RoundState.COMMITTED, RoundState.ABANDONED}
            }
        )
        aggregator = ExactMean(self._task.plan.weights, _Folds(self._reference))
        self._late = LateAggregator(lambda: aggregator)
        if self._rng.random() < 0.5:  # noqa: PLR2004 - a coin
            self._late.make_now()
        store = self._store = CheckpointStore(self._disk / "states")
        state = store.load_latest() or aggregator.initialize(self._task.initial_weights)
        fleet = self.fleet = FleetCoordinator(
            population=POPULATION,
            bundle=self._task,
            policy=_POLICY,
            rng=self._rng,
            token=self._rng.randbytes,
            upload_budget_bytes=3000,
        )
        loop = RoundLoop(
            fleet=fleet,
            aggregator=self._late,
            state=state,
            schedule=RoundSchedule(num_commits=_FOR_EVER, evaluate_every=4, max_abandoned_in_a_row=_FOR_EVER),
            store=self,
            publish=self._publish,
            round_ids=RoundIds(self._disk / "last_round_id", start=state.num_commits),
            on_round=self._round_over,
            journal=journal,
            flushes_itself=self._rng.random() < 0.5,  # noqa: PLR2004 - a coin
        )
        self.link = self._broker.link(subscriptions=fleet.subscriptions, sink=self._on_link_event)
        self.loop = loop
        self.guarded(lambda: loop.start(now=now))
        if self.is_up:
            self.link.start()

    def _on_link_event(self, event: LinkEvent) -> None:
        loop = self.loop
        if loop is not None:
            self.guarded(lambda: loop.handle(event, now=self.now))

    def guarded(self, act: Callable[[], None]) -> None:
        """Does something; a power cut or a full disk ends the process."""
        try:
            act()
        except (PowerCut, JournalUnwritable):
            self.die(is_power_cut=True)

    def die(self, *, is_power_cut: bool) -> None:
        """The process ends. A power cut leaves what was synced, a kill whatever had been written."""
        journal, link = self._journal, self.link
        if journal is None or self.loop is None:
            return
        self.loop = None
        if link is not None:
            link.lose("died")
        self._reference.lost()
        self._num_disks += 1
        image = self._disks / str(self._num_disks)
        shutil.copytree(self._disk, image)
        wal = image / "journal.sqlite-wal"
        if is_power_cut and wal.exists():
            with wal.open("r+b") as stream:
                stream.truncate(min(wal.stat().st_size, journal.synced_wal_bytes))
        journal.drop_dead()
        shutil.rmtree(self._disk)
        self._disk = image

    def fill_disk(self) -> None:
        """From now on the journal cannot be written."""
        if self._journal is not None:
            self._journal.is_disk_full = True

    def bring_aggregator(self) -> None:
        """The aggregator of this life is there, if it was not before."""
        if self._late is not None and self._late.get() is None:
            self._late.make_now()

    def tick(self, now: float) -> None:
        """Lets time pass."""
        self.now = now
        loop = self.loop
        if loop is not None:
            self.guarded(lambda: loop.tick(now=now))

    def save(self, state: ServerState) -> None:
        """Stores a committed state (the loop's ``StateStore``)."""
        fleet, journal, store = self.fleet, self._journal, self._store
        if fleet is None or journal is None or store is None or fleet.current_round is None:
            raise AssertionError("a state is saved outside a round")
        self.fuse.burn()
        store.save(state)
        round_id = fleet.current_round.round_id
        self._reference.committed_round(state, list(journal.contributions(round_id)), round_id)
        self.fuse.burn()

    def _round_over(self, summary: RoundSummary, state: ServerState) -> None:
        del state
        if summary.state is RoundState.ABANDONED:
            self._reference.abandoned_round(summary.round_id)

    def _publish(self, topic: str, payload: bytes, retain: bool) -> None:  # noqa: FBT001 - the loop's signature
        self.fuse.burn()
        parts = topic.split("/")
        if parts[-1] == "receipt":
            self._reference.receipt_sent(parts[4], decode_message(payload, Receipt))
        elif parts[-1] == "assignment" and self.fleet is not None:
            message = decode_message(payload, Assignment)
            encoded = b"".join(piece.data for piece in self.fleet.shelf.pieces(message.checkpoint.sha256, (0,)))
            [weights] = decode_tensors(encoded, self._task.plan.weights)
            self._reference.assigned(parts[4], message, weights.tobytes())
        self.sent(topic, payload)
        if self.link is not None:
            self.link.publish(topic, payload, retain=retain)
        self.fuse.burn()
