"""Training with secret Poisson cohorts: the one setting in which amplification by sampling is claimed.

The coordinator of this simulation knows everybody, draws each device by a coin of its own from the operating system's
randomness, and tells nobody whom; nor does the report. What is released of a round has the same noise and the same
denominator whoever came, nobody included. Devices clip and round, and the coordinator checks, adds noise and steps, by
the code that is used in the field.

In the field devices check in by themselves: there is no such coordinator (`coordinator.secret_sampling`).
"""

import dataclasses
import random
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from coordinator.aggregation import Aggregator, ClientUpdate, ServerState
from coordinator.aggregation_spec import AggregationSpec
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.private_admission import is_overlong
from coordinator.secret_sampling import sampled_epsilon
from coordinator.sum_release import Released, SumRelease, sum_release
from edge_client.linear_trainer import LinearTrainer
from edge_client.privacy.integer_update import ClipRule, make_integer_update
from edge_client.training import ArrayExamples, TrainingJob
from integer_noise.secure_random import SecureRandom
from simulators.scenario import Scenario
from simulators.virtual_run import examples_of, held_out_figures
from wire_protocol.integer_updates import decode_sum, flatten_tensors, split_vector
from wire_protocol.messages import RoundKind
from wire_protocol.plan import TrainingPlan
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.private_reports import PRIVATE_METRICS
from wire_protocol.tensors import Tensors

__all__ = ["SecretCohortReport", "SecretCohortRun", "draw_secret_cohort", "run_secret_cohorts"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecretCohortRun:
    """What to simulate."""

    scenario: Scenario
    plan: TrainingPlan
    """A linear task of central mode (`coordinator.secret_sampling.calibrate_sampled`)."""
    sampling_rate: float
    num_rounds: int
    dropout: float = 0.0
    """Chance that a device that was drawn does not come: whatever keeps it away must not be its data."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SecretCohortReport:
    """What became of it. How many came in a round is not in it: that is a part of the secret."""

    num_rounds: int
    sampling_rate: float
    noise_multiplier: float
    epsilon: float
    """For whoever sees the models of every round, and knows of no coin."""
    epsilon_without_the_secret: float
    """For whoever knows that a device was in every round."""
    target_delta: float
    test_accuracy: float
    test_loss: float


def draw_secret_cohort(device_ids: Iterable[str], sampling_rate: float) -> list[str]:
    """Each device by a coin of its own, from the operating system's randomness; nobody may be in it, or everybody.

    Args:
        device_ids: Everybody who could be drawn.
        sampling_rate: q.
    """
    coins = random.SystemRandom()
    return [device_id for device_id in device_ids if coins.random() < sampling_rate]


def run_secret_cohorts(
    run: SecretCohortRun, *, aggregator: Aggregator | None = None, on_round: Callable[[int], None] | None = None
) -> SecretCohortReport:
    """Trains.

    Args:
        run: What to simulate.
        aggregator: Makes the server optimizer's step; the numpy mean if None.
        on_round: Told the number of each round that is over.

    Raises:
        InvalidConfig: No secret sample can support a claim for this mechanism.
    """
    spec = run.plan.privacy
    if spec is None:
        raise ValueError("the plan has no privacy specification")
    if run.scenario.num_devices > spec.max_contributors(run.plan.num_parameters):
        raise ValueError("everybody at once could leave the 32-bit words of the sum: lower grid_bits")
    fleet = _Fleet(run, spec)
    inner = aggregator or NumpyMeanAggregator(run.plan.weights, AggregationSpec())
    state = inner.initialize(tuple(np.zeros(known.shape, np.float32) for known in run.plan.weights))
    # The denominator is the number that is expected, never the number that came.
    denominator = max(1, round(run.sampling_rate * run.scenario.num_devices))
    release = sum_release(run.plan, num_devices=denominator)
    leaves = release.first_leaves()
    for round_id in range(1, run.num_rounds + 1):
        released = fleet.round(round_id, inner.weights(state), release, leaves)
        leaves = released.leaves
        state = _stepped(inner, state, run.plan, released.total / denominator)
        if on_round is not None:
            on_round(round_id)
    loss, accuracy = held_out_figures(run.scenario, run.plan, inner.weights(state))
    return SecretCohortReport(
        num_rounds=run.num_rounds,
        sampling_rate=run.sampling_rate,
        noise_multiplier=spec.noise_multiplier,
        epsilon=sampled_epsilon(spec, run.plan.num_parameters, run.num_rounds, run.sampling_rate),
        epsilon_without_the_secret=sampled_epsilon(spec, run.plan.num_parameters, run.num_rounds, 1.0),
        target_delta=spec.target_delta,
        test_accuracy=accuracy,
        test_loss=loss,
    )


class _Fleet:
    """Every device there is."""

    def __init__(self, run: SecretCohortRun, spec: PrivacySpec) -> None:
        self._run = run
        self._spec = spec
        self._examples: dict[str, ArrayExamples] = {
            run.scenario.device_id(index): examples_of(run.scenario, index) for index in range(run.scenario.num_devices)
        }

    def round(
        self, round_id: int, weights: Tensors, release: SumRelease, leaves: tuple[npt.NDArray[np.generic], ...]
    ) -> Released:
        """Draws a cohort, sums what it sends, and releases the sum."""
        run = self._run
        clip = ClipRule(clipping_norm=float(leaves[-1]) if self._spec.num_indicators else self._spec.clipping_norm)
        total = np.zeros(run.plan.num_update_numbers, np.uint32)
        # Who was drawn and does not come, was not drawn: two coins.
        for device_id in draw_secret_cohort(self._examples, run.sampling_rate * (1.0 - run.dropout)):
            total += self._update(device_id, round_id, weights, clip)
        return release.release(decode_sum(total), leaves, round_id)

    def _update(self, device_id: str, round_id: int, weights: Tensors, clip: ClipRule) -> npt.NDArray[np.uint32]:
        job = TrainingJob(
            kind=RoundKind.TRAIN,
            plan=self._run.plan,
            model=b"",
            checkpoint=weights,
            round_id=round_id,
            device_id=device_id,
        )
        learnt = LinearTrainer().train(job, self._examples[device_id]).model_delta
        if learnt is None:
            raise AssertionError("training without an update")
        update = make_integer_update(flatten_tensors(learnt), self._spec, SecureRandom(), clip)
        if is_overlong(update, self._spec):
            raise AssertionError("an honest update is longer than its clip")
        return update


def _stepped(inner: Aggregator, state: ServerState, plan: TrainingPlan, mean: npt.NDArray[np.float64]) -> ServerState:
    accumulator = inner.begin(state)
    delta = split_vector(mean.astype(np.float32), plan.weights)
    accumulator.fold(ClientUpdate(model_delta=delta, aggregation_weight=1.0, metrics=PRIVATE_METRICS))
    return accumulator.finish().state
