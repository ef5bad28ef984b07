"""Private rounds, whole: devices clip, round, add their share and charge their ledgers; the coordinator sees integers."""

import numpy as np
import pytest

from coordinator.aggregation import ClientUpdate
from coordinator.aggregation_spec import AggregationSpec
from coordinator.errors import InvalidConfig, QuorumMissed, UpdateMismatch
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.privacy_accounting import calibrate
from coordinator.privacy_budget import RoundBudget
from coordinator.private_sum import PrivateSumAggregator, private_aggregator
from coordinator.round_policy import RoundPolicy
from edge_client.errors import BudgetExceeded, LedgerDamaged, PrivacyRefused
from edge_client.linear_trainer import LinearTrainer
from edge_client.privacy.integer_update import clip_and_round, make_integer_update
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.release_desk import ReleaseDesk, release_id
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from edge_client.privacy.secure_random import SecureRandom
from edge_client.training import ArrayExamples, TrainingJob
from simulators.virtual_run import linear_task
from wire_protocol.integer_updates import decode_integer_update
from wire_protocol.messages import RoundKind
from wire_protocol.plan import decode_plan, encode_plan
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.private_reports import PRIVATE_METRICS

SPEC = calibrate(
    PrivacySpec(
        mode="distributed",
        clipping_norm=0.5,
        noise_multiplier=1.0,
        min_contributors=12,
        num_rounds=3,
        target_epsilon=4.0,
    )
)
BUNDLE = linear_task(8, 3, num_epochs=2)
PLAN = type(BUNDLE.plan)(
    **{name: getattr(BUNDLE.plan, name) for name in BUNDLE.plan.__struct_fields__} | {"privacy": SPEC}
)
RULES = PrivacyRules(budget=PrivacyBudget(epsilon=4.0), min_contributors=12)


def _job(round_id=1, plan=PLAN, kind=RoundKind.TRAIN):
    return TrainingJob(
        kind=kind, plan=plan, model=b"", checkpoint=BUNDLE.initial_weights, round_id=round_id, device_id="d"
    )


def _examples(seed=0):
    rng = np.random.default_rng(seed)
    return ArrayExamples(x=rng.normal(size=(20, 8)).astype(np.float32), y=rng.integers(0, 3, 20).astype(np.int32))


def _desk(path=None, rules=RULES):
    return ReleaseDesk(lambda: PrivacyLedger(path, budget=rules.budget), rules)


def test_what_leaves_the_device_is_integers_and_says_nothing_else():
    result = LinearTrainer().train(_job(), _examples())
    released = _desk().release(_job(), result)
    assert released.model_delta is None
    assert decode_integer_update(released.private_update, PLAN.weights).shape == (27,)
    assert (released.num_examples, released.aggregation_weight, released.metrics) == (1, 1.0, PRIVATE_METRICS)


def test_the_same_round_has_the_same_bytes_after_a_restart_of_the_device(tmp_path):
    path = tmp_path / "privacy.sqlite"
    result = LinearTrainer().train(_job(), _examples())
    first = _desk(path).release(_job(), result).private_update
    assert _desk(path).release(_job(), result).private_update == first
    assert _desk(path).release(_job(2), result).private_update != first


def test_a_device_takes_part_as_often_as_its_budget_allows_and_then_refuses_before_training():
    desk, result = _desk(), LinearTrainer().train(_job(), _examples())
    for round_id in range(1, 4):
        desk.check(_job(round_id))
        desk.release(_job(round_id), result)
    with pytest.raises(BudgetExceeded):
        desk.check(_job(4))
    with pytest.raises(BudgetExceeded):
        desk.release(_job(4), result)
    assert desk.release(_job(3), result).private_update is not None


@pytest.mark.parametrize(
    ("rules", "job", "text"),
    [
        ({"is_required": True}, _job(plan=BUNDLE.plan), "no differential privacy"),
        ({"min_contributors": 13}, _job(), "hides a device among 12"),
        ({"min_noise_multiplier": 50.0}, _job(), "below privacy.min_noise_multiplier"),
        ({"modes": frozenset({"local"})}, _job(), "not one of privacy.modes"),
        ({}, _job(kind=RoundKind.EVALUATE), "unpriced release"),
    ],
)
def test_a_plan_that_asks_for_more_than_the_owner_allows_is_refused(rules, job, text):
    values = {"budget": RULES.budget, "min_contributors": 12} | rules
    with pytest.raises(PrivacyRefused, match=text):
        _desk(rules=PrivacyRules(**values)).check(job)


def test_with_a_damaged_ledger_nothing_private_leaves_and_other_tasks_go_on(tmp_path):
    path = tmp_path / "privacy.sqlite"
    path.write_bytes(b"no database at all" * 100)
    result = LinearTrainer().train(_job(plan=BUNDLE.plan), _examples())
    assert _desk(path).release(_job(plan=BUNDLE.plan), result) is result
    with pytest.raises(LedgerDamaged):
        _desk(path).check(_job())


def test_a_device_without_private_tasks_has_no_ledger(tmp_path):
    path = tmp_path / "privacy.sqlite"
    result = LinearTrainer().train(_job(plan=BUNDLE.plan), _examples())
    _desk(path).release(_job(plan=BUNDLE.plan), result)
    assert not path.exists()


def _deltas(count):
    return [np.random.default_rng(seed).normal(0, 0.05, 27).astype(np.float32) for seed in range(count)]


def _fold_all(updates, denominator=12):
    aggregator = PrivateSumAggregator(
        NumpyMeanAggregator(PLAN.weights, AggregationSpec()), PLAN, denominator=denominator
    )
    accumulator = aggregator.begin(aggregator.initialize(BUNDLE.initial_weights))
    for update in updates:
        accumulator.fold(ClientUpdate(model_delta=(), integers=update, aggregation_weight=1.0, metrics=PRIVATE_METRICS))
    return accumulator


def test_the_model_moves_by_the_integer_sum_over_a_fixed_denominator():
    updates = [make_integer_update(delta, SPEC, SecureRandom()) for delta in _deltas(14)]
    state = _fold_all(updates, denominator=20).finish().state
    total = sum(update.astype(object) for update in updates)
    signed = [(int(value) + 2**31) % 2**32 - 2**31 for value in total]
    expected = np.array(signed) / SPEC.units_per_weight / 20
    got = np.concatenate([weight.reshape(-1) for weight in state.weights])
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def test_the_noise_on_the_sum_of_the_least_cohort_is_what_is_claimed():
    draws = []
    for _ in range(40):
        zero = np.zeros(27, np.float32)
        updates = [make_integer_update(zero, SPEC, SecureRandom()) for _ in range(SPEC.min_contributors)]
        total = np.zeros(27, np.uint32)
        for update in updates:
            total += update
        draws.append(total.view(np.int32).astype(float))
    noise = np.concatenate(draws)
    # 1,080 draws: six standard errors of a standard deviation are 13 %.
    assert noise.std() == pytest.approx(SPEC.sum_noise_units(27), rel=0.13)


def test_a_sum_of_too_few_is_not_looked_at():
    updates = [make_integer_update(delta, SPEC, SecureRandom()) for delta in _deltas(11)]
    with pytest.raises(QuorumMissed, match="fewer than 12"):
        _fold_all(updates).finish()


def test_an_interrupted_private_round_goes_on_from_its_snapshot():
    updates = [make_integer_update(delta, SPEC, SecureRandom()) for delta in _deltas(13)]
    whole = _fold_all(updates).finish().state
    half = _fold_all(updates[:6])
    again = _fold_all([])
    again.resume(half.snapshot(), num_folded=6)
    for update in updates[6:]:
        again.fold(ClientUpdate(model_delta=(), integers=update, aggregation_weight=1.0, metrics=PRIVATE_METRICS))
    for one, other in zip(whole.weights, again.finish().state.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_update_of_the_other_kind_is_not_folded():
    accumulator = _fold_all([])
    with pytest.raises(UpdateMismatch):
        accumulator.fold(
            ClientUpdate(model_delta=BUNDLE.initial_weights, aggregation_weight=1.0, metrics=PRIVATE_METRICS)
        )


def test_rounds_that_could_end_with_too_little_noise_are_refused_before_they_begin():
    inner = NumpyMeanAggregator(PLAN.weights, AggregationSpec())
    with pytest.raises(InvalidConfig, match="needs 12 reports at least"):
        private_aggregator(inner, PLAN, RoundPolicy(report_goal=12, min_reports=11))
    assert private_aggregator(inner, BUNDLE.plan, RoundPolicy(report_goal=2, min_reports=1)) is inner


def test_the_coordinator_stops_where_the_devices_budget_ends():
    budget = RoundBudget(SPEC)
    assert [budget.allows(round_id) for round_id in (1, 2, 3, 4)] == [True, True, True, False]
    assert budget.epsilon_after(1) < budget.epsilon_after(3) <= SPEC.target_epsilon


def test_a_private_plan_comes_back_as_it_was_and_one_that_cannot_be_is_refused():
    assert decode_plan(encode_plan(PLAN)) == PLAN
    assert release_id(_job()) != release_id(_job(plan=BUNDLE.plan))


def test_clipping_looks_at_the_whole_model_at_once():
    rounded = clip_and_round(np.full(27, 1.0, np.float32), SPEC, SecureRandom())
    assert rounded.was_clipped
    norm = float(np.sqrt((rounded.values.astype(float) ** 2).sum())) / SPEC.units_per_weight
    assert norm == pytest.approx(0.5, rel=1e-3)
