"""The frontier's fast path is what devices do, one by one."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.aggregation import ClientUpdate
from coordinator.aggregation_spec import AggregationSpec
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.private_sum import PrivateSumAggregator
from edge_client.linear_trainer import LinearTrainer
from edge_client.privacy.integer_update import noise_vector
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.release_desk import ReleaseDesk
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from edge_client.training import ArrayExamples, TrainingJob
from integer_noise.secure_random import SecureRandom
from simulators.curve import draw_frontier
from simulators.gradient_features import NUM_FEATURES, gradient_features
from simulators.trials import privacy_frontier
from simulators.trials.privacy_frontier import (
    FrontierCase,
    FrontierData,
    FrontierRow,
    model_deltas,
    private_mean,
    run_case,
)
from simulators.virtual_run import linear_task
from wire_protocol.integer_updates import decode_integer_update
from wire_protocol.messages import RoundKind
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.private_reports import PRIVATE_METRICS

NUM_DEVICES, NUM_EXAMPLES, NUM_INPUTS, NUM_CLASSES = 8, 6, 5, 3
# The least noise that a device agrees to add: 16 grid units of 16,384, so that the two ways can be held side by side.
SPEC = PrivacySpec(
    mode="distributed",
    clipping_norm=0.3,
    noise_multiplier=17.0 * NUM_DEVICES**0.5 / 2**14,
    min_contributors=NUM_DEVICES,
    num_rounds=1,
    target_epsilon=1.0,
)


def _fleet(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(NUM_DEVICES, NUM_EXAMPLES, NUM_INPUTS)).astype(np.float32)
    y = rng.integers(0, NUM_CLASSES, (NUM_DEVICES, NUM_EXAMPLES)).astype(np.int32)
    model = rng.normal(size=(NUM_INPUTS + 1, NUM_CLASSES)).astype(np.float32)
    return x, y, model


def _with_ones(x):
    return np.concatenate([x, np.ones((*x.shape[:-1], 1), np.float32)], axis=-1)


def _job(model):
    plan = linear_task(NUM_INPUTS, NUM_CLASSES, batch_size=NUM_EXAMPLES, learning_rate=1.0).plan
    plan = msgspec.structs.replace(plan, privacy=SPEC)
    return TrainingJob(
        kind=RoundKind.TRAIN, plan=plan, model=b"", checkpoint=(model[:-1], model[-1]), round_id=1, device_id="d"
    )


def test_the_fast_path_learns_what_each_device_learns():
    x, y, model = _fleet()
    fast = model_deltas(model, _with_ones(x), y)
    for index in range(NUM_DEVICES):
        slow = LinearTrainer().train(_job(model), ArrayExamples(x=x[index], y=y[index])).model_delta
        np.testing.assert_allclose(np.concatenate([part.reshape(-1) for part in slow]), fast[index], atol=1e-6)


def test_the_fast_path_moves_the_model_as_a_round_of_devices_does():
    x, y, model = _fleet()
    fast, num_clipped = private_mean(iter([model_deltas(model, _with_ones(x), y)]), SPEC, num_devices=NUM_DEVICES)
    assert num_clipped > 0
    job, budget = _job(model), PrivacyBudget(epsilon=1e9)
    rules = PrivacyRules(budget=budget, min_contributors=1, min_noise_multiplier=1e-9)
    aggregator = PrivateSumAggregator(
        NumpyMeanAggregator(job.plan.weights, AggregationSpec()), job.plan, denominator=NUM_DEVICES
    )
    accumulator = aggregator.begin(aggregator.initialize(job.checkpoint))
    for index in range(NUM_DEVICES):
        desk = ReleaseDesk(lambda: PrivacyLedger(None, budget=budget), rules)
        released = desk.release(job, LinearTrainer().train(job, ArrayExamples(x=x[index], y=y[index])))
        integers = decode_integer_update(released.private_update, job.plan.num_update_numbers)
        accumulator.fold(
            ClientUpdate(model_delta=(), integers=integers, aggregation_weight=1.0, metrics=PRIVATE_METRICS)
        )
    moved = np.concatenate([part.reshape(-1) for part in accumulator.finish().state.weights]) - model.reshape(-1)
    # Each way has its own rounding (at most 8 units) and noise (sum: 48 units of standard deviation); ten of them.
    tolerance = (8 + 10 * 17.0 * NUM_DEVICES**0.5) * 2**0.5 / SPEC.units_per_weight / NUM_DEVICES
    assert np.abs(moved).max() > 3 * tolerance
    np.testing.assert_allclose(fast, moved, atol=tolerance)


@pytest.mark.parametrize("mode", ["distributed", "local"])
def test_the_noise_that_is_drawn_at_once_is_that_of_all_devices(mode):
    changes = {"mode": mode, "noise_multiplier": 20.0, "min_contributors": 400, "grid_bits": 10}
    spec, size = msgspec.structs.replace(SPEC, **changes), 4000
    at_once = privacy_frontier._summed_noise(size, spec, 400, SecureRandom())
    one_by_one = sum(noise_vector(size, spec, SecureRandom()) for _ in range(400))
    wanted = spec.sum_noise_units(size) * (20.0 if mode == "local" else 1.0)
    # 4,000 draws: six standard errors of a standard deviation are 6.7 %.
    assert at_once.std() == pytest.approx(wanted, rel=0.067)
    assert one_by_one.std() == pytest.approx(wanted, rel=0.067)


def test_a_frontier_case_learns_and_keeps_to_its_target():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 10))
    y = rng.integers(0, 3, 4500).astype(np.int32)
    x = (centres[y] + 0.3 * rng.normal(size=(4500, 10))).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    data = FrontierData(x_train=x[:4000], y_train=y[:4000], x_test=x[4000:], y_test=y[4000:], num_classes=3)
    case = FrontierCase(num_devices=400, epsilon=8, num_rounds=10, clipping_norm=0.1, server_learning_rate=2.0)
    row = run_case(case, data, seed=0)
    assert row.accuracy > 0.9
    assert 7.9 < row.claimed_epsilon <= 8.0
    local = FrontierCase(
        num_devices=400, epsilon=8, num_rounds=10, clipping_norm=0.1, server_learning_rate=2.0, mode="local"
    )
    assert run_case(local, data, seed=0).noise_multiplier < row.noise_multiplier


def test_the_page_says_what_was_measured_of_each_case_and_seed():
    docs = Path(__file__).resolve().parents[2] / "docs"
    rows = msgspec.json.decode((docs / "figures" / "frontier.json").read_bytes(), type=list[FrontierRow])
    page = (docs / "privacy.md").read_text()
    cases = {row.case for row in rows}
    assert {(case.num_devices, case.epsilon) for case in cases if case.mode == "distributed"} >= {
        (6000, 1), (6000, 2), (6000, 8), (1000, 2)
    }  # fmt: skip
    for case in cases:
        found = [row.accuracy for row in rows if row.case == case]
        assert sorted(row.seed for row in rows if row.case == case) == [0, 1, 2]
        assert all(row.claimed_epsilon <= case.epsilon for row in rows if row.case == case)
        assert f"| {case.epsilon:g} | {np.mean(found):.2%} | {min(found):.2%}".replace("%", " %") in page, case


def test_a_frontier_is_drawn_with_one_point_or_many(tmp_path):
    series = {"one": {2.0: [0.96]}, "many": {1.0: [0.3, 0.31], 8.0: [0.98, 0.981, 0.979]}}
    draw_frontier(tmp_path / "frontier.png", series=series, title="t")
    assert (tmp_path / "frontier.png").read_bytes()[:4] == b"\x89PNG"


def test_features_of_an_image_do_not_depend_on_its_neighbours_and_have_norm_one():
    images = np.random.default_rng(0).random((5, 28, 28, 1), np.float32)
    features = gradient_features(images)
    assert features.shape == (5, NUM_FEATURES) == (5, 392)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-4)
    np.testing.assert_allclose(gradient_features(images[3:4])[0], features[3], atol=1e-6)
    assert not gradient_features(np.zeros((1, 28, 28), np.float32)).any()
