"""A few organisations train one linear model together on virtual time: what the examples share.

Devices, openers, coordinator and messages are the real ones; only time and network are not. So an example takes seconds
and needs no broker, no TensorFlow and no second machine.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from coordinator.aggregation import ServerState
from coordinator.aggregation_spec import AggregationSpec
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.round_loop import RoundSchedule, RoundSummary
from coordinator.round_policy import RoundPolicy
from edge_client.linear_trainer import LinearTrainer
from edge_client.privacy.rules import PrivacyRules
from edge_client.training import ArrayExamples, TrainingJob
from simulators.datasets import Dataset
from simulators.errors import FleetFailed
from simulators.scenario import Scenario
from simulators.virtual_fleet import BadWorld
from simulators.virtual_openers import VirtualConfidentiality
from simulators.virtual_run import VirtualRun, linear_task, run_virtual
from wire_protocol.confidentiality import Confidentiality
from wire_protocol.messages import RoundKind
from wire_protocol.plan import TrainingPlan
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.tensors import Tensors

__all__ = [
    "POPULATION",
    "Consortium",
    "JointModel",
    "linear_plan",
    "mean_of_rounds",
    "scores",
    "train_alone",
    "train_together",
]

POPULATION: Final = "virtual"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consortium:
    """Who takes part, with what, and what is asked of the model."""

    members: Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]]
    """Name -> inputs [n, features] and labels [n]."""
    x_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.int32]
    plan: TrainingPlan
    """Of `linear_task`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointModel:
    """What came of a training together."""

    weights: Tensors
    test_accuracy: float
    num_commits: int
    num_reports: tuple[int, ...]
    """Members whose update counted, by round."""
    virtual_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _NamedScenario(Scenario):
    names: tuple[str, ...]

    def device_id(self, index: int) -> str:
        return self.names[index]


class _LastWeights(NumpyMeanAggregator):
    """Remembers the weights that were looked at last."""

    def __init__(self, plan: TrainingPlan) -> None:
        super().__init__(plan.weights, AggregationSpec())
        self.last: Tensors = ()

    def weights(self, state: ServerState) -> Tensors:
        self.last = super().weights(state)
        return self.last


def train_together(
    consortium: Consortium,
    *,
    num_rounds: int,
    privacy: PrivacySpec,
    rules: PrivacyRules,
    way: Confidentiality,
    confidentiality: VirtualConfidentiality,
    world: BadWorld | None = None,
    on_round: Callable[[RoundSummary], None] | None = None,
) -> JointModel:
    """Federated rounds whose coordinator sees sums alone.

    Args:
        consortium: Who, with what.
        num_rounds: Rounds to commit.
        privacy: The mechanism.
        rules: What each member insists on.
        way: Who opens the sums, as the plan names them.
        confidentiality: Their keys.
        world: What goes wrong; nothing if None.
        on_round: Told of each round.

    Raises:
        FleetFailed: The rounds were not all committed.
    """
    plan = msgspec.structs.replace(consortium.plan, privacy=privacy, confidentiality=way)
    goal = len(consortium.members)
    aggregator = _LastWeights(plan)
    run = VirtualRun(
        scenario=_scenario(consortium),
        plan=plan,
        policy=RoundPolicy(report_goal=goal, min_reports=privacy.min_contributors, over_selection=1.0),
        schedule=RoundSchedule(num_commits=num_rounds),
        world=world or BadWorld(seconds_per_example=0.001),
        privacy=rules,
        confidentiality=confidentiality,
    )
    report = run_virtual(run, aggregator=aggregator, on_round=on_round)
    if report.num_commits < num_rounds:
        reasons = {summary.abandon_reason for summary in report.rounds if summary.abandon_reason}
        raise FleetFailed(f"{report.num_commits} of {num_rounds} rounds were committed; others failed: {reasons}")
    return JointModel(
        weights=aggregator.last,
        test_accuracy=report.test_accuracy,
        num_commits=report.num_commits,
        num_reports=tuple(summary.num_reports for summary in report.rounds if not summary.abandon_reason),
        virtual_s=report.virtual_s,
    )


def train_alone(consortium: Consortium, name: str, *, num_rounds: int) -> Tensors:
    """What a member comes to with its own data, in as many passes."""
    weights: Tensors = tuple(np.zeros(spec.shape, np.float32) for spec in consortium.plan.weights)
    for round_id in range(1, num_rounds + 1):
        delta = _delta(consortium, name, weights, round_id)
        weights = tuple(one + change for one, change in zip(weights, delta, strict=True))
    return weights


def mean_of_rounds(consortium: Consortium, *, num_rounds: int) -> Tensors:
    """The same rounds without clip, noise or masks: what privacy is compared with."""
    weights: Tensors = tuple(np.zeros(spec.shape, np.float32) for spec in consortium.plan.weights)
    for round_id in range(1, num_rounds + 1):
        deltas = [_delta(consortium, name, weights, round_id) for name in consortium.members]
        means = [np.mean([delta[at] for delta in deltas], axis=0) for at in range(len(weights))]
        weights = tuple(one + mean.astype(np.float32) for one, mean in zip(weights, means, strict=True))
    return weights


def scores(weights: Tensors, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """[n] how much rather class 1 than class 0."""
    matrix, bias = (np.asarray(part, np.float64) for part in weights)
    logits = x.astype(np.float64) @ matrix + bias
    difference: npt.NDArray[np.float64] = logits[:, 1] - logits[:, 0]
    return difference


def _delta(consortium: Consortium, name: str, weights: Tensors, round_id: int) -> Tensors:
    x, y = consortium.members[name]
    job = TrainingJob(
        kind=RoundKind.TRAIN, plan=consortium.plan, model=b"", checkpoint=weights, round_id=round_id, device_id=name
    )
    delta = LinearTrainer().train(job, ArrayExamples(x=x, y=y)).model_delta
    if delta is None:
        raise FleetFailed(f"{name} has learnt nothing")
    return delta


def _scenario(consortium: Consortium) -> _NamedScenario:
    sizes = [len(y) for _, y in consortium.members.values()]
    ends = np.cumsum(sizes)
    x = np.concatenate([x for x, _ in consortium.members.values()])
    y = np.concatenate([y for _, y in consortium.members.values()])
    dataset = Dataset(name="consortium", x_train=x, y_train=y, x_test=consortium.x_test, y_test=consortium.y_test)
    parts = [np.arange(end - size, end, dtype=np.int64) for size, end in zip(sizes, ends, strict=True)]
    return _NamedScenario(dataset=dataset, parts=parts, names=tuple(consortium.members))


def linear_plan(num_features: int, *, num_epochs: int, batch_size: int, learning_rate: float) -> TrainingPlan:
    """Softmax regression over two classes."""
    return linear_task(num_features, 2, num_epochs=num_epochs, batch_size=batch_size, learning_rate=learning_rate).plan
