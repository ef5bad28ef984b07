"""The coordinator's composition root: wires link, fleet, aggregator and store, keeps the clock, decides nothing."""

import contextlib
import dataclasses
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from broker_link.link import LinkEvent
from broker_link.paho_link import LinkTiming, PahoLink
from broker_link.tls import ClientCertificate
from coordinator.admission import AdmissionPolicy
from coordinator.aggregation import Aggregator, ServerState, check_tensors
from coordinator.aggregation_spec import AggregationSpec
from coordinator.checkpoints import CheckpointStore
from coordinator.device_guard import DeviceGuard, open_guard, roster_guard
from coordinator.down_signing import DownSigner
from coordinator.errors import InvalidConfig
from coordinator.fleet import FleetCoordinator
from coordinator.late_aggregator import LateAggregator
from coordinator.opening import OpeningSettings
from coordinator.round_ids import RoundIds
from coordinator.round_journal import RoundJournal
from coordinator.round_loop import RoundLoop, RoundSchedule, RoundSummary
from coordinator.round_policy import RoundPolicy
from coordinator.sum_openings import open_sums
from coordinator.task_bundle import TaskBundle
from wire_protocol.identifiers import checked_identifier
from wire_protocol.privacy_spec import PrivacySpec

if TYPE_CHECKING:
    from coordinator.privacy_budget import RoundBudget

__all__ = [
    "ServerConfig",
    "TaskState",
    "artefact_aggregator",
    "open_task_state",
    "run_rounds",
    "tff_aggregator",
    "write_artefact",
]

_LOG = logging.getLogger(__name__)
_MAX_WAIT_S = 1.0
_GROUP_COMMIT_S = 0.1
# No SimpleQueue: CPython's waits for ever if a signal's handler returns after the time-out, as it does when an import of
# TensorFlow in the other thread keeps the interpreter's lock; the signal to stop would be lost.
_EventQueue = queue.Queue[LinkEvent]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How one coordinator runs."""

    broker_url: str
    population: str
    policy: RoundPolicy
    schedule: RoundSchedule
    admission: AdmissionPolicy
    ca_file: str | None = None
    certificate: ClientCertificate | None = None
    link_timing: LinkTiming | None = None
    """How patient the link is; its own defaults if None."""
    roster_file: Path | None = None
    """The devices that may take part; None believes everybody."""
    upload_budget_bytes: int = 256 * 1024 * 1024
    signer: DownSigner | None = None
    """Signs what is said to devices; None says it unsigned."""
    directory: bytes | None = None
    """The key directory that the plan of a confidential task names."""
    encryption_keys: bytes | None = None
    """What the key authority of a task with encrypted sums released."""
    opening: OpeningSettings = dataclasses.field(default_factory=OpeningSettings)
    """How patient it is with those who open the sums of a confidential task."""

    def __post_init__(self) -> None:
        """Checks the population's name.

        Raises:
            InvalidIdentifier: It may not be part of a topic.
        """
        checked_identifier(self.population, kind="population")


def tff_aggregator(bundle: TaskBundle, spec: AggregationSpec) -> Aggregator:
    """TFF's aggregation, compiled for a task. Imports TensorFlow; takes seconds."""
    from coordinator.tff.aggregator import TffAggregator

    return TffAggregator(bundle.plan.weights, spec)


def artefact_aggregator(directory: Path, bundle: TaskBundle) -> Aggregator:
    """A compiled aggregation from its files: needs TensorFlow, but not TFF.

    Raises:
        CoordinatorError: The files are damaged, or were compiled for another model.
    """
    from coordinator.tff.artefact_aggregator import ArtefactAggregator
    from coordinator.tff.server_artefact import read_server_artefact

    aggregator = ArtefactAggregator(read_server_artefact(directory))
    aggregator.initialize(bundle.initial_weights)
    return aggregator


def write_artefact(bundle: TaskBundle, spec: AggregationSpec, directory: Path) -> int:
    """Compiles a task's aggregation with TFF and writes it; returns its size in bytes."""
    from coordinator.tff.aggregator import TffAggregator
    from coordinator.tff.server_artefact import write_server_artefact

    write_server_artefact(TffAggregator(bundle.plan.weights, spec).artefact, directory)
    return sum(path.stat().st_size for path in directory.iterdir())


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskState:
    """What a task keeps on disk: committed states, the journal of rounds, the last round id; and where to go on from."""

    store: CheckpointStore
    journal: RoundJournal
    round_ids: RoundIds
    state: ServerState
    is_resumed: bool


def open_task_state(state_dir: Path, bundle: TaskBundle) -> TaskState:
    """Opens a task's directory under ``state_dir``; goes on where it stopped, or starts from the bundle's weights.

    Needs no aggregator, and so no TensorFlow. The weights that the first round starts from are stored like any state:
    reports of that round belong to them, also if the bundle is exported again before it has ended.

    Raises:
        InvalidBundle: The file that remembers the last round id is damaged.
        JournalDamaged: The journal is damaged, or another coordinator is using it.
        UpdateMismatch: The stored weights are not the plan's.
    """
    directory = state_dir / bundle.task_id
    store = CheckpointStore(directory / "states")
    found = store.load_latest()
    weights = bundle.initial_weights
    state = found or ServerState(num_commits=0, num_weights=len(weights), leaves=weights)
    check_tensors(state.weights, bundle.plan.weights)
    if found is None:
        store.save(state)
    round_ids = RoundIds(directory / "last_round_id", start=state.num_commits)
    journal = RoundJournal(directory / "journal.sqlite")
    return TaskState(store=store, journal=journal, round_ids=round_ids, state=state, is_resumed=found is not None)


def run_rounds(
    config: ServerConfig,
    *,
    bundle: TaskBundle,
    aggregator: Aggregator | LateAggregator,
    task: TaskState,
    on_round: Callable[[RoundSummary, ServerState], None],
    stop: threading.Event,
) -> RoundLoop:
    """Runs rounds over a real broker until the schedule is done or ``stop`` is set.

    Args:
        config: Broker, population, goals.
        bundle: The task.
        aggregator: Folds updates. One that is still to be made is started when the devices can be answered.
        task: Where to start from, and where committed states and counted updates go; its journal is closed at the end.
        on_round: Told of each round that is over, from this thread.
        stop: Set from anywhere to end after the message at hand.

    Returns:
        The loop, with its last state and counts.

    Raises:
        InvalidBrokerUrl: The broker's address cannot be understood.
        InvalidConfig: Evaluation rounds of a private task: their figures would be an unpriced release. Or a confidential
            task without the key directory that its plan names.
        StateMismatch: The stored state is not one of this aggregator's (the aggregation settings were changed).
        Exception: Whatever making the aggregator raised; what was counted is in the journal.
    """
    if bundle.plan.privacy is not None and config.schedule.evaluate_every:
        raise InvalidConfig("devices refuse to evaluate a private task: set evaluate_every to 0")
    fleet = FleetCoordinator(
        population=config.population,
        bundle=bundle,
        policy=config.policy,
        admission=config.admission,
        upload_budget_bytes=config.upload_budget_bytes,
        rng=random.SystemRandom(),
        token=os.urandom,
    )
    openings = open_sums(
        fleet,
        population=config.population,
        bundle=bundle,
        directory=config.directory,
        encryption_keys=config.encryption_keys,
        settings=config.opening,
    )
    events = _EventQueue()
    link = PahoLink(
        url=config.broker_url,
        client_id=f"coordinator-{config.population}",
        subscriptions=fleet.subscriptions,
        sink=events.put,
        ca_file=config.ca_file,
        certificate=config.certificate,
        timing=config.link_timing,
    )
    guard = _guard(config, link)
    seal = _unsigned if config.signer is None else config.signer.seal
    loop = RoundLoop(
        fleet=fleet,
        aggregator=aggregator,
        state=task.state,
        schedule=config.schedule,
        store=task.store,
        publish=lambda topic, payload, retain: link.publish(topic, seal(topic, payload), retain=retain),
        round_ids=task.round_ids,
        on_round=lambda summary, state: on_round(_with_refusals(summary, guard), state),
        budget=None if bundle.plan.privacy is None else _round_budget(bundle.plan.privacy),
        journal=task.journal,
        openings=openings,
        flushes_itself=False,
    )
    link.start()
    try:
        loop.start(now=time.monotonic())
        if isinstance(aggregator, LateAggregator) and not loop.is_done:
            aggregator.start()
        while not loop.is_done and not stop.is_set():
            _step(loop, events, guard)
        loop.flush(now=time.monotonic())
    finally:
        link.stop()
        task.journal.close()
        guard.close()
    return loop


def _unsigned(topic: str, payload: bytes) -> bytes:
    del topic
    return payload


def _round_budget(spec: PrivacySpec) -> "RoundBudget":
    from coordinator.privacy_budget import RoundBudget

    return RoundBudget(spec)


def _guard(config: ServerConfig, link: PahoLink) -> DeviceGuard:
    if config.roster_file is None:
        return open_guard(link.publish)
    return roster_guard(config.roster_file, population=config.population, wall_clock=time.time)(link.publish)


def _with_refusals(summary: RoundSummary, guard: DeviceGuard) -> RoundSummary:
    return dataclasses.replace(summary, refusals={reason.value: num for reason, num in guard.refusals.items()})


def _step(loop: RoundLoop, events: _EventQueue, guard: DeviceGuard) -> None:
    """Waits for the next event or deadline and lets the loop deal with it, and with whatever else has come by then.

    What comes together shares one flush of the disk; nobody waits longer than the window for his receipt.
    """
    wakeup = loop.next_wakeup()
    wait_s = _MAX_WAIT_S if wakeup is None else min(_MAX_WAIT_S, max(0.0, wakeup - time.monotonic()))
    with contextlib.suppress(queue.Empty):
        event = events.get(timeout=wait_s)
        window_ends_at = time.monotonic() + _GROUP_COMMIT_S
        _take(loop, guard.screen(event))
        while time.monotonic() < window_ends_at:
            _take(loop, guard.screen(events.get_nowait()))
    for device_id in guard.refresh(now=time.monotonic()):
        loop.expel(device_id, now=time.monotonic())
    loop.tick(now=time.monotonic())


def _take(loop: RoundLoop, event: LinkEvent | None) -> None:
    if event is not None:
        loop.handle(event, now=time.monotonic())
