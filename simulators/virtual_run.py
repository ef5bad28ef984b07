"""A whole federated training on virtual time, and what became of it."""

import dataclasses
import random
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from broker_link.link import LinkEvent
from coordinator.aggregation import Aggregator, ServerState
from coordinator.aggregation_spec import AggregationSpec
from coordinator.fleet import FleetCoordinator
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.privacy_budget import RoundBudget
from coordinator.private_sum import private_aggregator
from coordinator.round_ids import RoundIds
from coordinator.round_loop import RoundLoop, RoundSchedule, RoundSummary
from coordinator.round_policy import RoundPolicy
from coordinator.sum_openings import SumOpenings, open_sums
from coordinator.task_bundle import TaskBundle
from edge_client.linear_trainer import LinearTrainer
from edge_client.privacy.rules import PrivacyRules
from edge_client.training import ArrayExamples, TrainingJob
from simulators.round_memory import RoundMemory
from simulators.scenario import Scenario
from simulators.virtual_fleet import BadWorld, VirtualFleet
from simulators.virtual_openers import VirtualConfidentiality, virtual_openers
from simulators.virtual_time import VirtualTime
from wire_protocol.messages import RoundKind
from wire_protocol.plan import TensorSpec, TrainingPlan

__all__ = [
    "VirtualDriver",
    "VirtualReport",
    "VirtualRun",
    "examples_of",
    "held_out_figures",
    "linear_task",
    "run_virtual",
    "virtual_openings",
]

_LINEAR_MODEL = b"the exact linear trainer needs no model file"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VirtualRun:
    """What to simulate."""

    scenario: Scenario
    plan: TrainingPlan
    policy: RoundPolicy
    schedule: RoundSchedule
    world: BadWorld
    seed: int = 0
    limit_s: float = 30 * 86400.0
    """Virtual time after which the run is stopped."""
    privacy: PrivacyRules | None = None
    """The rules of the devices' owners; None agrees to distributed and local mode."""
    confidentiality: VirtualConfidentiality | None = None
    """Keys and openers of a confidential task, whose plan names them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VirtualReport:
    """What became of it."""

    rounds: tuple[RoundSummary, ...]
    num_commits: int
    num_abandoned: int
    finished: bool
    """Whether the schedule was completed (and not the time limit, or too many abandoned rounds, reached)."""
    test_accuracy: float
    test_loss: float
    rejections: Mapping[str, int]
    num_vanished: int
    """How often a device vanished while it trained."""
    num_messages_delivered: int
    num_messages_lost: int
    virtual_s: float
    num_events: int


class _Forget:
    """A simulation's states need not survive it."""

    def save(self, state: ServerState) -> None:
        del state


def linear_task(num_features: int, num_classes: int, **settings: float) -> TaskBundle:
    """Softmax regression as a task: weights [features, classes] and [classes], all zero at the start."""
    specs = (TensorSpec(shape=(num_features, num_classes)), TensorSpec(shape=(num_classes,)))
    plan = TrainingPlan(
        batch_size=int(settings.get("batch_size", 16)),
        num_epochs=int(settings.get("num_epochs", 1)),
        learning_rate=settings.get("learning_rate", 0.1),
        input_shape=(num_features,),
        num_classes=num_classes,
        weights=specs,
        seed=int(settings.get("seed", 0)),
    )
    zeros = tuple(np.zeros(spec.shape, np.float32) for spec in specs)
    return TaskBundle(plan=plan, model_bytes=_LINEAR_MODEL, initial_weights=zeros)


def run_virtual(
    run: VirtualRun, *, aggregator: Aggregator | None = None, on_round: Callable[[RoundSummary], None] | None = None
) -> VirtualReport:
    """Runs a fleet of softmax regressions until the schedule is done.

    Args:
        run: What to simulate; its plan must be one of ``linear_task``.
        aggregator: Which aggregation; the numpy mean if None.
        on_round: Told of each round that is over.
    """
    # Seeded on purpose: the same run again gives the same report.
    rng = random.Random(run.seed)  # noqa: S311
    time = VirtualTime()
    bundle = TaskBundle(plan=run.plan, model_bytes=_LINEAR_MODEL, initial_weights=_zeros(run.plan))
    scenario = run.scenario
    fleet = VirtualFleet(
        time=time,
        population="virtual",
        examples={scenario.device_id(i): examples_of(scenario, i) for i in range(scenario.num_devices)},
        trainer=LinearTrainer(),
        world=run.world,
        seed=rng.getrandbits(64),
        privacy=run.privacy,
        sealers=None if run.confidentiality is None else run.confidentiality.trust.sealer,
    )
    coordinator = FleetCoordinator(population="virtual", bundle=bundle, policy=run.policy, rng=rng, token=rng.randbytes)
    aggregator = private_aggregator(
        aggregator or NumpyMeanAggregator(run.plan.weights, AggregationSpec()), run.plan, run.policy
    )
    openings = virtual_openings(run.confidentiality, fleet, coordinator, bundle)
    rounds: list[RoundSummary] = []

    def note(summary: RoundSummary, state: ServerState) -> None:
        del state
        rounds.append(summary)
        if on_round is not None:
            on_round(summary)

    driver = VirtualDriver(time, fleet, coordinator)
    loop = RoundLoop(
        fleet=coordinator,
        aggregator=aggregator,
        state=aggregator.initialize(bundle.initial_weights),
        schedule=run.schedule,
        store=_Forget(),
        publish=lambda topic, payload, retain: driver.link.publish(topic, payload, retain=retain),
        round_ids=RoundIds(),
        on_round=note,
        budget=None if run.plan.privacy is None else RoundBudget(run.plan.privacy),
        openings=openings,
        journal=None if openings is None else RoundMemory(),
    )
    driver.drive(loop)
    finished = time.run(until=lambda: loop.is_done, limit_s=run.limit_s)
    loss, accuracy = held_out_figures(scenario, run.plan, aggregator.weights(loop.state))
    return VirtualReport(
        rounds=tuple(rounds),
        num_commits=loop.num_commits,
        num_abandoned=sum(summary.abandon_reason is not None for summary in rounds),
        finished=finished and not loop.gave_up,
        test_accuracy=accuracy,
        test_loss=loss,
        rejections={reason.value: count for reason, count in sorted(loop.rejections.items(), key=str)},
        num_vanished=fleet.num_vanished,
        num_messages_delivered=fleet.broker.num_delivered,
        num_messages_lost=fleet.broker.num_lost,
        virtual_s=time.now,
        num_events=time.num_events,
    )


def virtual_openings(
    confidentiality: VirtualConfidentiality | None,
    fleet: VirtualFleet,
    coordinator: FleetCoordinator,
    bundle: TaskBundle,
) -> SumOpenings | None:
    """Switches the openers on, and makes the coordinator one that needs them; None if nobody opens."""
    if confidentiality is None:
        return None
    for opener in virtual_openers(fleet, confidentiality, bundle.plan).values():
        opener.start()
    trust, authority = confidentiality.trust, confidentiality.key_authority
    return open_sums(
        coordinator,
        population=trust.population,
        bundle=bundle,
        directory=trust.directory_bytes,
        encryption_keys=None if authority is None else authority.released,
    )


class VirtualDriver:
    """Gives the round loop its events and its wake-ups on virtual time."""

    def __init__(self, time: VirtualTime, fleet: VirtualFleet, coordinator: FleetCoordinator) -> None:
        self._time = time
        self._fleet = fleet
        self._loop: RoundLoop | None = None
        self._timer_at: float | None = None
        self.link = fleet.connect(subscriptions=coordinator.subscriptions, sink=self._on_event)

    def drive(self, loop: RoundLoop) -> None:
        """Connects, starts the loop and switches the devices on."""
        self._loop = loop
        self.link.start()
        loop.start(now=self._time.now)
        self._set_timer()
        self._fleet.start()

    def _on_event(self, event: LinkEvent) -> None:
        if self._loop is not None:
            self._loop.handle(event, now=self._time.now)
            self._set_timer()

    def _set_timer(self) -> None:
        wakeup = None if self._loop is None else self._loop.next_wakeup()
        if wakeup is not None and wakeup != self._timer_at:
            self._timer_at = wakeup
            self._time.at(wakeup, self._on_timer)

    def _on_timer(self) -> None:
        if self._loop is not None and not self._loop.is_done:
            self._loop.tick(now=self._time.now)
            self._set_timer()


def _zeros(plan: TrainingPlan) -> tuple[npt.NDArray[np.float32], ...]:
    return tuple(np.zeros(spec.shape, np.float32) for spec in plan.weights)


def examples_of(scenario: Scenario, index: int) -> ArrayExamples:
    """What a device holds: x [n, f], y [n]."""
    x, y = scenario.examples(index)
    return ArrayExamples(x=x.reshape(len(x), -1), y=y)


def held_out_figures(
    scenario: Scenario, plan: TrainingPlan, weights: tuple[npt.NDArray[np.float32], ...]
) -> tuple[float, float]:
    """Loss and accuracy of a linear model on the examples that no device holds."""
    dataset = scenario.dataset
    job = TrainingJob(
        kind=RoundKind.EVALUATE,
        plan=plan,
        model=_LINEAR_MODEL,
        checkpoint=weights,
        round_id=1,
        device_id="test",
    )
    x = dataset.x_test.reshape(len(dataset.x_test), -1)
    metrics = LinearTrainer().evaluate(job, ArrayExamples(x=x, y=dataset.y_test)).metrics
    return metrics.loss_sum / metrics.weight_sum, metrics.num_correct / metrics.weight_sum
