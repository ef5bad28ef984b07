"""The coordinator's composition root: wires link, fleet, aggregator and store, keeps the clock, decides nothing."""

import dataclasses
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from broker_link.link import LinkEvent
from broker_link.paho_link import PahoLink
from coordinator.admission import AdmissionPolicy
from coordinator.aggregation import Aggregator, ServerState
from coordinator.aggregation_spec import AggregationSpec
from coordinator.fleet import FleetCoordinator
from coordinator.round_ids import RoundIds
from coordinator.round_loop import RoundLoop, RoundSchedule, RoundSummary, StateStore
from coordinator.round_policy import RoundPolicy
from coordinator.task_bundle import TaskBundle

__all__ = ["ServerConfig", "open_store", "run_rounds", "start_state", "tff_aggregator"]

_LOG = logging.getLogger(__name__)
_MAX_WAIT_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How one coordinator runs."""

    broker_url: str
    population: str
    policy: RoundPolicy
    schedule: RoundSchedule
    admission: AdmissionPolicy = AdmissionPolicy()
    ca_file: str | None = None
    upload_budget_bytes: int = 256 * 1024 * 1024


def tff_aggregator(bundle: TaskBundle, spec: AggregationSpec) -> Aggregator:
    """TFF's aggregation, compiled for a task. Imports TensorFlow; takes seconds."""
    from coordinator.tff.aggregator import TffAggregator

    return TffAggregator(bundle.plan.weights, spec)


def open_store(state_dir: Path, task_id: str) -> "StateStore":
    """The task's durable states: TFF's program state manager over fsynced files."""
    from coordinator.tff.state_manager import CheckpointStore

    return CheckpointStore(state_dir / task_id)


def run_rounds(
    config: ServerConfig,
    *,
    bundle: TaskBundle,
    aggregator: Aggregator,
    state: ServerState,
    store: StateStore,
    on_round: Callable[[RoundSummary], None],
    round_ids: RoundIds,
    stop: threading.Event,
) -> RoundLoop:
    """Runs rounds over a real broker until the schedule is done or ``stop`` is set.

    Args:
        config: Broker, population, goals.
        bundle: The task.
        aggregator: Folds updates.
        state: Where to start from.
        store: Where committed states go.
        on_round: Told of each round that is over, from this thread.
        round_ids: Numbers the rounds.
        stop: Set from anywhere to end after the message at hand.

    Returns:
        The loop, with its last state and counts.

    Raises:
        InvalidBrokerUrl: The broker's address cannot be understood.
    """
    fleet = FleetCoordinator(
        population=config.population,
        bundle=bundle,
        policy=config.policy,
        admission=config.admission,
        upload_budget_bytes=config.upload_budget_bytes,
        rng=random.SystemRandom(),
        token=os.urandom,
    )
    events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    link = PahoLink(
        url=config.broker_url,
        client_id=f"coordinator-{config.population}",
        subscriptions=fleet.subscriptions,
        sink=events.put,
        ca_file=config.ca_file,
    )
    loop = RoundLoop(
        fleet=fleet,
        aggregator=aggregator,
        state=state,
        schedule=config.schedule,
        store=store,
        publish=lambda topic, payload, retain: link.publish(topic, payload, retain=retain),
        round_ids=round_ids,
        on_round=on_round,
    )
    link.start()
    try:
        loop.start(now=time.monotonic())
        while not loop.is_done and not stop.is_set():
            _step(loop, events)
    finally:
        link.stop()
    return loop


def _step(loop: RoundLoop, events: "queue.SimpleQueue[LinkEvent]") -> None:
    """Waits for the next event or deadline and lets the loop deal with it."""
    wakeup = loop.next_wakeup()
    wait_s = _MAX_WAIT_S if wakeup is None else min(_MAX_WAIT_S, max(0.0, wakeup - time.monotonic()))
    try:
        event = events.get(timeout=wait_s)
    except queue.Empty:
        loop.tick(now=time.monotonic())
        return
    loop.handle(event, now=time.monotonic())
    loop.tick(now=time.monotonic())
