"""Softmax regression in numpy: exact gradients, the same order as every trainer, refusals before arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.errors import ContractViolation, DataError, ExampleMismatch, NonFiniteUpdate, TooFewExamples
from edge_client.linear_trainer import LinearTrainer, linear_weights, softmax_loss_and_gradients
from edge_client.model_delta import compute_model_delta
from edge_client.training import ArrayExamples, TrainingJob, withdrawal_reason
from wire_protocol.local_order import local_steps
from wire_protocol.messages import RoundKind, WithdrawalReason
from wire_protocol.plan import TensorSpec, TrainingPlan


def _plan(**fields):
    shape, classes = fields.pop("input_shape", (2, 3)), fields.pop("num_classes", 4)
    defaults = {
        "batch_size": 4,
        "num_epochs": 2,
        "learning_rate": 0.1,
        "weights": linear_weights(input_shape=shape, num_classes=classes),
    }
    return TrainingPlan(**(defaults | fields), input_shape=shape, num_classes=classes)


def _examples(n=10, *, seed=0, shape=(2, 3), classes=4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *shape)).astype(np.float32)
    return ArrayExamples(x=x, y=rng.integers(0, classes, n).astype(np.int32))


def _job(plan, kind=RoundKind.TRAIN, *, seed=1, round_id=5):
    rng = np.random.default_rng(seed)
    checkpoint = tuple(rng.normal(size=spec.shape).astype(np.float32) for spec in plan.weights)
    return TrainingJob(kind=kind, plan=plan, model=b"", checkpoint=checkpoint, round_id=round_id, device_id="d1")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 9), d=st.integers(1, 5), c=st.integers(2, 5))
def test_gradients_agree_with_central_differences(seed, n, d, c):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.integers(0, c, n).astype(np.int32)
    weights = [rng.normal(size=(d, c)), rng.normal(size=c)]  # float64: differences of float32 would be noise
    _, *gradients = softmax_loss_and_gradients(*weights, x, y)
    step = 1e-6
    for weight, gradient in zip(weights, gradients, strict=True):
        for at in np.ndindex(weight.shape):
            kept = weight[at]
            weight[at] = kept + step
            above = softmax_loss_and_gradients(*weights, x, y)[0].loss_sum / n
            weight[at] = kept - step
            below = softmax_loss_and_gradients(*weights, x, y)[0].loss_sum / n
            weight[at] = kept
            assert gradient[at] == pytest.approx((above - below) / (2 * step), abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 9), clip=st.floats(1e-3, 10))
def test_a_clip_scales_each_examples_gradient_over_both_weights(seed, n, clip):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.integers(0, 4, n).astype(np.int32)
    weights = rng.normal(size=(3, 4)), rng.normal(size=4)
    _, *clipped = softmax_loss_and_gradients(*weights, x, y, clip=clip)
    expected = [np.zeros((3, 4)), np.zeros(4)]
    for place in range(n):
        _, *own = softmax_loss_and_gradients(*weights, x[place : place + 1], y[place : place + 1])
        norm = math.sqrt(sum(float((value**2).sum()) for value in own))
        expected = [total + value * min(1, clip / norm) / n for total, value in zip(expected, own, strict=True)]
    for one, other in zip(clipped, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_the_plans_clip_bounds_a_step_of_the_linear_trainer():
    plan = _plan(batch_size=10, num_epochs=1, per_example_clipping_norm=0.01)
    job = _job(plan)
    delta = LinearTrainer().train(job, _examples(10)).model_delta
    moved = math.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in delta))
    assert 0 < moved <= 0.1 * 0.01 * (1 + 1e-4)


def test_one_epoch_of_full_batches_without_momentum_is_gradient_descent_by_hand():
    plan = _plan(num_epochs=1, batch_size=10)
    job, examples = _job(plan), _examples(10)
    kernel, bias = (tensor.astype(np.float64) for tensor in job.checkpoint)
    x, y = examples.inputs(np.arange(10)).reshape(10, -1).astype(np.float64), examples.labels
    p = np.exp(x @ kernel + bias)
    p /= p.sum(axis=1, keepdims=True)
    residual = (p - np.eye(4)[y]) / 10
    result = LinearTrainer().train(job, examples)
    np.testing.assert_allclose(result.model_delta[0], -0.1 * x.T @ residual, atol=1e-6)
    np.testing.assert_allclose(result.model_delta[1], -0.1 * residual.sum(axis=0), atol=1e-6)


def test_momentum_accumulates_over_the_steps_in_the_order_that_the_plan_fixes():
    plan = _plan(momentum=0.9, num_epochs=2, batch_size=4)
    job, examples = _job(plan), _examples(10)
    weights = [tensor.astype(np.float64) for tensor in job.checkpoint]
    velocities = [np.zeros_like(weight) for weight in weights]
    for step in local_steps(plan, num_examples=10, round_id=5, device_id="d1"):
        x = examples.inputs(step.indices).reshape(len(step.indices), -1).astype(np.float64)
        _, *gradients = softmax_loss_and_gradients(*weights, x, examples.labels[step.indices])
        velocities = [0.9 * v - 0.1 * g for v, g in zip(velocities, gradients, strict=True)]
        weights = [w + v for w, v in zip(weights, velocities, strict=True)]
    result = LinearTrainer().train(job, examples)
    for delta, weight, received in zip(result.model_delta, weights, job.checkpoint, strict=True):
        np.testing.assert_allclose(delta, weight - received, atol=2e-6)


def test_the_received_checkpoint_is_not_touched():
    job = _job(_plan())
    before = [tensor.copy() for tensor in job.checkpoint]
    LinearTrainer().train(job, _examples())
    for tensor, kept in zip(job.checkpoint, before, strict=True):
        np.testing.assert_array_equal(tensor, kept)


@pytest.mark.parametrize(("max_steps", "visits"), [(0, 20), (1, 4), (3, 10), (4, 14), (99, 20)])
def test_the_aggregation_weight_counts_the_visits_that_really_happened(max_steps, visits):
    result = LinearTrainer().train(_job(_plan(max_steps=max_steps)), _examples(10))
    assert result.aggregation_weight == result.metrics.weight_sum == visits
    assert result.num_examples == 10


def test_an_evaluation_sees_every_example_once_and_changes_nothing():
    plan = _plan()
    job, examples = _job(plan, RoundKind.EVALUATE), _examples(10)
    result = LinearTrainer().evaluate(job, examples)
    x = examples.inputs(np.arange(10)).reshape(10, -1)
    sums, *_ = softmax_loss_and_gradients(*job.checkpoint, x, examples.labels)
    assert result.model_delta is None
    assert result.metrics.weight_sum == result.aggregation_weight == 10
    assert result.metrics.loss_sum == pytest.approx(sums.loss_sum, rel=1e-5)
    assert result.metrics.num_correct == sums.num_correct


def test_huge_logits_give_finite_losses():
    sums, *gradients = softmax_loss_and_gradients(
        np.array([[1e30, -1e30]], np.float32), np.zeros(2, np.float32), np.ones((1, 1), np.float32), np.array([1])
    )
    assert math.isfinite(sums.loss_sum)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_diverging_training_is_refused_as_not_finite():
    with pytest.raises(NonFiniteUpdate):
        LinearTrainer().train(_job(_plan(learning_rate=1e38, num_epochs=20)), _examples())


def test_weights_of_another_model_are_refused():
    plan = _plan(weights=(TensorSpec(shape=(5, 4)), TensorSpec(shape=(4,))))
    with pytest.raises(ContractViolation, match=r"\[6, 4\]"):
        LinearTrainer().train(_job(plan), _examples())


@pytest.mark.parametrize(
    ("examples", "plan", "error", "reason"),
    [
        (_examples(3), _plan(min_examples=4), TooFewExamples, WithdrawalReason.TOO_FEW_EXAMPLES),
        (_examples(shape=(7,)), _plan(), ExampleMismatch, WithdrawalReason.DATA_MISMATCH),
        (_examples(50, classes=9), _plan(), ExampleMismatch, WithdrawalReason.DATA_MISMATCH),
    ],
)
def test_examples_that_do_not_fit_are_refused_before_training(examples, plan, error, reason):
    for run in (LinearTrainer().train, LinearTrainer().evaluate):
        with pytest.raises(error) as caught:
            run(_job(plan), examples)
        assert isinstance(caught.value, DataError)
        assert withdrawal_reason(caught.value) is reason


def test_inputs_of_another_shape_but_as_many_features_are_taken():
    flat = _examples(10, shape=(6,))
    assert LinearTrainer().train(_job(_plan()), flat).num_examples == 10


def test_bytes_are_scaled_on_the_way_in():
    examples = ArrayExamples(x=np.array([[0, 255]], np.uint8), y=np.array([1]), scale=1 / 255)
    np.testing.assert_array_equal(examples.inputs(np.array([0])), np.array([[0, 1]], np.float32))


def test_the_model_delta_is_trained_minus_received():
    trained, received = (np.array([3.0], np.float32),), (np.array([1.0], np.float32),)
    assert compute_model_delta(trained=trained, received=received)[0] == np.float32(2.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_model_delta_holds_nan_or_infinity(bad):
    with pytest.raises(NonFiniteUpdate, match="w1"):
        compute_model_delta(
            trained=(np.ones(2, np.float32), np.array([1, bad], np.float32)),
            received=(np.ones(2, np.float32), np.ones(2, np.float32)),
        )


def test_a_difference_that_overflows_is_refused():
    big = np.array([3e38], np.float32)
    with pytest.raises(NonFiniteUpdate):
        compute_model_delta(trained=(big,), received=(-big,))
