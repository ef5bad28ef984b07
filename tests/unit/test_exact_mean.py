"""The aggregator that checks itself: it agrees with the mean, and says so when the mean is wrong."""

import numpy as np
import pytest

from coordinator.aggregation import ClientUpdate
from coordinator.numpy_mean import _MeanAccumulator
from simulators.trials.errors import ReferenceMismatch
from simulators.trials.exact_mean import ExactMean
from wire_protocol.messages import Metrics
from wire_protocol.plan import TensorSpec

SPECS = (TensorSpec(shape=(3, 4)), TensorSpec(shape=(4,)))


def _update(rng, weight):
    delta = tuple(rng.normal(size=spec.shape).astype(np.float32) for spec in SPECS)
    return ClientUpdate(
        model_delta=delta,
        aggregation_weight=weight,
        metrics=Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=2.0),
    )


def _round(mean):
    rng = np.random.default_rng(5)
    accumulator = mean.begin(mean.initialize(tuple(np.zeros(spec.shape, np.float32) for spec in SPECS)))
    for weight in (1.0, 3.0, 2.5):
        accumulator.fold(_update(rng, weight))
    return accumulator


def test_a_right_result_passes_and_is_counted():
    mean = ExactMean(SPECS)
    assert _round(mean).finish().state.num_commits == 1
    assert (mean.num_folded, mean.num_checked) == (3, 1)
    assert 0 < mean.max_error < 1e-6


def test_an_update_that_is_added_twice_is_found(monkeypatch):
    fold = _MeanAccumulator.fold
    monkeypatch.setattr(_MeanAccumulator, "fold", lambda self, update: (fold(self, update), fold(self, update)))
    accumulator = _round(ExactMean(SPECS))
    monkeypatch.undo()
    accumulator.fold(_update(np.random.default_rng(6), 1.0))  # otherwise twice everything has the same mean
    with pytest.raises(ReferenceMismatch):
        accumulator.finish()


def test_a_resumed_round_is_checked_too():
    mean = ExactMean(SPECS)
    first = _round(mean)
    second = mean.begin(mean.initialize(tuple(np.zeros(spec.shape, np.float32) for spec in SPECS)))
    second.resume(first.snapshot(), num_folded=3)
    for ours, theirs in zip(second.finish().state.weights, first.finish().state.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
