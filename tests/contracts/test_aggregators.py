"""What every aggregator must do. Rows: numpy's mean, TFF's aggregation, and the same compiled, stored and read back."""

import functools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.aggregation import ClientUpdate, ServerState
from coordinator.aggregation_spec import AggregationSpec
from coordinator.errors import (
    AccumulatorClosed,
    EmptyRound,
    StateMismatch,
    UnsupportedAggregation,
    UpdateMismatch,
)
from coordinator.numpy_mean import NumpyMeanAggregator
from wire_protocol.messages import Metrics
from wire_protocol.plan import TensorSpec

SHAPES = ((4, 3), (3,), (2, 1, 2))
SPECS = tuple(TensorSpec(shape=shape) for shape in SHAPES)
FEDAVG = AggregationSpec()
HALF_STEP = AggregationSpec(server_learning_rate=0.5)
UNWEIGHTED = AggregationSpec(weighted=False)


def tff_aggregator(spec):
    from coordinator.tff.aggregator import TffAggregator

    return TffAggregator(SPECS, spec)


def read_back(artefact, directory):
    from coordinator.tff.artefact_aggregator import ArtefactAggregator
    from coordinator.tff.server_artefact import read_server_artefact, write_server_artefact

    write_server_artefact(artefact, directory)
    return ArtefactAggregator(read_server_artefact(directory))


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """A function from row and specification to an aggregator; each is compiled once."""

    @functools.cache
    def cached(row, spec):
        if row == "numpy":
            return NumpyMeanAggregator(SPECS, spec)
        if row == "tff":
            return tff_aggregator(spec)
        return read_back(cached("tff", spec).artefact, tmp_path_factory.mktemp("artefact"))

    yield cached
    cached.cache_clear()


@pytest.fixture(
    params=[
        "numpy",
        pytest.param("tff", marks=pytest.mark.tensorflow),
        pytest.param("artefact", marks=pytest.mark.tensorflow),
    ]
)
def aggregator(request, build):
    """A function from a specification to the row's aggregator."""
    return lambda spec=FEDAVG: build(request.param, spec)


def tensors(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return tuple((scale * rng.standard_normal(shape)).astype(np.float32) for shape in SHAPES)


def update(seed, weight=1.0, metrics=None):
    metrics = metrics or Metrics(loss_sum=2.0 * weight, num_correct=0.5 * weight, weight_sum=weight)
    return ClientUpdate(model_delta=tensors(seed, 0.1), aggregation_weight=weight, metrics=metrics)


UPDATES = [update(seed, weight) for seed, weight in ((1, 3.0), (2, 10.0), (3, 0.5))]


def finish(aggregator, updates, state=None):
    accumulator = aggregator.begin(state or aggregator.initialize(tensors(0)))
    for item in updates:
        accumulator.fold(item)
    return accumulator.finish()


def expected_weights(updates, *, weighted=True, step=1.0):
    """The definition, in float64."""
    weights = [item.aggregation_weight if weighted else 1.0 for item in updates]
    means = [
        sum(w * np.float64(item.model_delta[i]) for w, item in zip(weights, updates, strict=True)) / sum(weights)
        for i in range(len(SHAPES))
    ]
    return tuple(start + step * mean for start, mean in zip(tensors(0), means, strict=True))


def max_difference(leaves, others):
    return max(float(np.max(np.abs(np.float64(a) - b))) for a, b in zip(leaves, others, strict=True))


def test_the_initial_state_holds_the_given_weights(aggregator):
    state = aggregator().initialize(tensors(0))
    assert state.num_commits == 0
    assert max_difference(aggregator().weights(state), tensors(0)) == 0


def test_one_update_moves_the_weights_to_what_the_device_trained(aggregator):
    """Pins the sign: model_delta is trained minus received."""
    received, trained = tensors(0), tensors(9)
    delta = tuple(after - before for after, before in zip(trained, received, strict=True))
    metrics = Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=1.0)
    result = finish(aggregator(), [ClientUpdate(model_delta=delta, aggregation_weight=7.0, metrics=metrics)])
    assert max_difference(result.state.weights, trained) <= 1e-6


def test_the_new_weights_are_the_weighted_mean_of_the_updates(aggregator):
    assert max_difference(finish(aggregator(), UPDATES).state.weights, expected_weights(UPDATES)) <= 1e-6


def test_an_unweighted_mean_ignores_the_weights(aggregator):
    result = finish(aggregator(UNWEIGHTED), UPDATES)
    assert max_difference(result.state.weights, expected_weights(UPDATES, weighted=False)) <= 1e-6


def test_the_server_learning_rate_scales_the_step(aggregator):
    result = finish(aggregator(HALF_STEP), UPDATES)
    assert max_difference(result.state.weights, expected_weights(UPDATES, step=0.5)) <= 1e-6


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8),
    weights=st.lists(st.floats(0.125, 4096, width=32), min_size=8, max_size=8),
)
def test_any_cohort_gives_its_weighted_mean(aggregator, seeds, weights):
    updates = [update(seed, weight) for seed, weight in zip(seeds, weights, strict=False)]
    assert max_difference(finish(aggregator(), updates).state.weights, expected_weights(updates)) <= 2e-6


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(6)))
def test_the_order_of_arrival_hardly_matters(aggregator, order):
    updates = [update(seed, 1.0 + seed) for seed in range(6)]
    shuffled = finish(aggregator(), [updates[position] for position in order])
    assert max_difference(shuffled.state.weights, finish(aggregator(), updates).state.weights) <= 1e-6


def test_metrics_are_ratios_of_sums_and_not_means_of_ratios(aggregator):
    updates = [
        update(1, metrics=Metrics(loss_sum=10.0, num_correct=1.0, weight_sum=10.0)),
        update(2, metrics=Metrics(loss_sum=1.0, num_correct=2.0, weight_sum=2.0)),
    ]
    metrics = finish(aggregator(), updates).metrics
    assert metrics["loss"] == pytest.approx(11 / 12)
    assert metrics["accuracy"] == pytest.approx(3 / 12)
    assert metrics["weight_sum"] == 12


def test_evaluation_gives_ratios_of_sums(aggregator):
    accumulator = aggregator().begin_evaluation()
    accumulator.fold(Metrics(loss_sum=10.0, num_correct=1.0, weight_sum=10.0))
    accumulator.fold(Metrics(loss_sum=1.0, num_correct=2.0, weight_sum=2.0))
    assert accumulator.num_folded == 2
    metrics = accumulator.finish()
    assert dict(metrics) == pytest.approx({"loss": 11 / 12, "accuracy": 3 / 12, "weight_sum": 12.0})


def test_rounds_follow_one_another_and_are_counted(aggregator):
    first = finish(aggregator(), UPDATES)
    second = finish(aggregator(), UPDATES, first.state)
    assert (first.state.num_commits, second.state.num_commits) == (1, 2)
    steps = [after - before for after, before in zip(first.state.weights, tensors(0), strict=True)]
    expected = [weight + step for weight, step in zip(first.state.weights, steps, strict=True)]
    assert max_difference(second.state.weights, expected) <= 1e-6


def test_neither_the_old_state_nor_an_update_is_altered(aggregator):
    state = aggregator().initialize(tensors(0))
    read_only = update(1)
    for array in (*state.leaves, *read_only.model_delta):
        array.setflags(write=False)
    finish(aggregator(), [read_only], state)
    assert max_difference(state.weights, tensors(0)) == 0
    assert max_difference(read_only.model_delta, tensors(1, 0.1)) == 0


def test_an_update_may_be_reused_by_its_owner_once_it_is_folded(aggregator):
    reused = update(1, 2.0)
    accumulator = aggregator().begin(aggregator().initialize(tensors(0)))
    accumulator.fold(reused)
    for array in reused.model_delta:
        array.fill(math.nan)
    result = accumulator.finish()
    assert max_difference(result.state.weights, expected_weights([update(1, 2.0)])) <= 1e-6


def test_an_empty_round_is_refused(aggregator):
    with pytest.raises(EmptyRound):
        aggregator().begin(aggregator().initialize(tensors(0))).finish()
    with pytest.raises(EmptyRound):
        aggregator().begin_evaluation().finish()


def test_a_finished_round_takes_nothing_more(aggregator):
    accumulator = aggregator().begin(aggregator().initialize(tensors(0)))
    accumulator.fold(update(1))
    snapshot = accumulator.snapshot()
    accumulator.finish()
    with pytest.raises(AccumulatorClosed):
        accumulator.fold(update(2))
    with pytest.raises(AccumulatorClosed):
        accumulator.finish()
    with pytest.raises(AccumulatorClosed):
        accumulator.snapshot()
    with pytest.raises(AccumulatorClosed):
        accumulator.resume(snapshot, num_folded=1)


def test_a_finished_evaluation_takes_nothing_more(aggregator):
    accumulator = aggregator().begin_evaluation()
    metrics = Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=1.0)
    accumulator.fold(metrics)
    accumulator.finish()
    with pytest.raises(AccumulatorClosed):
        accumulator.fold(metrics)
    with pytest.raises(AccumulatorClosed):
        accumulator.finish()


@pytest.mark.parametrize(
    "delta",
    [tensors(1)[:2], (*tensors(1), tensors(1)[0]), (tensors(1)[0].T, *tensors(1)[1:])],
    ids=["one tensor less", "one tensor more", "transposed"],
)
def test_an_update_of_another_shape_is_refused_and_leaves_no_trace(aggregator, delta):
    accumulator = aggregator().begin(aggregator().initialize(tensors(0)))
    metrics = Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=1.0)
    with pytest.raises(UpdateMismatch):
        accumulator.fold(ClientUpdate(model_delta=delta, aggregation_weight=1.0, metrics=metrics))
    assert accumulator.num_folded == 0
    for item in UPDATES:
        accumulator.fold(item)
    assert max_difference(accumulator.finish().state.weights, expected_weights(UPDATES)) <= 1e-6


def test_an_update_in_double_precision_is_refused(aggregator):
    delta = tuple(np.float64(tensor) for tensor in tensors(1))
    metrics = Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=1.0)
    accumulator = aggregator().begin(aggregator().initialize(tensors(0)))
    with pytest.raises(UpdateMismatch, match="float64"):
        accumulator.fold(ClientUpdate(model_delta=delta, aggregation_weight=1.0, metrics=metrics))


def test_weights_of_another_model_are_refused(aggregator):
    with pytest.raises(UpdateMismatch):
        aggregator().initialize(tensors(0)[:2])


def test_a_state_of_another_model_is_refused(aggregator):
    other = ServerState(num_commits=3, num_weights=2, leaves=tensors(0)[:2])
    with pytest.raises(StateMismatch):
        aggregator().begin(other)
    with pytest.raises(StateMismatch):
        aggregator().weights(other)


def test_a_resumed_round_ends_exactly_like_one_that_was_not_interrupted(aggregator):
    state = aggregator().initialize(tensors(0))
    interrupted = aggregator().begin(state)
    for item in UPDATES[:2]:
        interrupted.fold(item)
    snapshot = interrupted.snapshot()
    interrupted.fold(update(99, 1e6))  # lost with the process: the snapshot must not feel it
    resumed = aggregator().begin(state)
    resumed.resume(snapshot, num_folded=2)
    resumed.fold(UPDATES[2])
    assert resumed.num_folded == 3
    result, whole = resumed.finish(), finish(aggregator(), UPDATES)
    assert max_difference(result.state.weights, whole.state.weights) == 0
    assert result.metrics == whole.metrics


def test_a_snapshot_of_another_model_is_refused(aggregator):
    accumulator = aggregator().begin(aggregator().initialize(tensors(0)))
    with pytest.raises(StateMismatch):
        accumulator.resume(accumulator.snapshot()[1:], num_folded=1)


def test_the_running_sums_do_not_grow_with_the_cohort(aggregator):
    accumulator = aggregator().begin(aggregator().initialize(tensors(0)))
    sizes = []
    for seed in range(40):
        accumulator.fold(update(seed))
        sizes.append(sum(array.nbytes for array in accumulator.snapshot()))
    model_bytes = sum(4 * math.prod(shape) for shape in SHAPES)
    assert len(set(sizes)) == 1
    assert sizes[0] <= model_bytes + 64


def test_a_mean_that_overflows_leaves_the_weights_as_they_were(aggregator):
    huge = tuple(np.full(shape, 3e38, np.float32) for shape in SHAPES)
    metrics = Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=1.0)
    result = finish(aggregator(), [ClientUpdate(model_delta=huge, aggregation_weight=10.0, metrics=metrics)])
    assert max_difference(result.state.weights, tensors(0)) == 0
    assert result.metrics["finalizer/update_non_finite"] == 1


@pytest.mark.tensorflow
@pytest.mark.parametrize("spec", [FEDAVG, UNWEIGHTED, HALF_STEP], ids=["fedavg", "unweighted", "half step"])
def test_numpy_and_tff_give_the_same_numbers(spec, build):
    ours, theirs = (finish(build(row, spec), UPDATES) for row in ("numpy", "tff"))
    assert max_difference(ours.state.weights, theirs.state.weights) <= 1e-7
    assert dict(ours.metrics) == pytest.approx(dict(theirs.metrics), rel=1e-6)


@pytest.mark.parametrize(
    "spec",
    [AggregationSpec(server_optimizer="adam"), AggregationSpec(clipping="adaptive")],
    ids=["adam", "adaptive clipping"],
)
def test_numpy_refuses_what_it_cannot_do(spec):
    with pytest.raises(UnsupportedAggregation):
        NumpyMeanAggregator(SPECS, spec)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_an_update_without_a_positive_finite_weight_cannot_be_made(weight):
    with pytest.raises(ValueError, match="aggregation_weight"):
        update(1, weight, Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=1.0))
