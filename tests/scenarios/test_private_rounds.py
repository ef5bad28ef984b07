"""Private rounds, whole: devices clip, round, add their share and charge their ledgers; the coordinator sees integers."""

import dataclasses
import sqlite3
import threading

import numpy as np
import pytest

from coordinator.admission import AdmissionPolicy, admit_update
from coordinator.aggregation import ClientUpdate
from coordinator.aggregation_spec import AggregationSpec
from coordinator.errors import InvalidConfig, QuorumMissed, UpdateMismatch, UpdateRejected
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.privacy_accounting import calibrate
from coordinator.privacy_budget import RoundBudget
from coordinator.private_admission import honest_l2_bound, is_overlong
from coordinator.private_sum import PrivateSumAggregator, private_aggregator
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.server import ServerConfig, run_rounds
from edge_client.errors import BudgetExceeded, LedgerDamaged, PrivacyRefused
from edge_client.events import TrainingFailed, TrainingFinished
from edge_client.linear_trainer import LinearTrainer
from edge_client.privacy.integer_update import clip_and_round, make_integer_update
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.let_out import let_out
from edge_client.privacy.release_desk import ReleaseDesk, release_id
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from edge_client.training import ArrayExamples, TrainingJob
from integer_noise.secure_random import SecureRandom
from simulators.virtual_run import linear_task
from wire_protocol.blobs import split_blob
from wire_protocol.integer_updates import decode_integer_update, encode_integer_update
from wire_protocol.messages import RejectionReason, Report, RoundKind, WithdrawalReason
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
REPORT = Report(
    round_id=1,
    nonce=bytes(16),
    update=split_blob(bytes(4 * 27)).ref,
    piece_digests=b"",
    num_examples=1,
    aggregation_weight=1.0,
    metrics=PRIVATE_METRICS,
)
RULES = PrivacyRules(budget=PrivacyBudget(epsilon=4.0), min_contributors=12)


def _job(round_id=1, plan=PLAN, kind=RoundKind.TRAIN, nonce=b"n" * 16):
    return TrainingJob(
        kind=kind, plan=plan, model=b"", checkpoint=BUNDLE.initial_weights, round_id=round_id, device_id="d",
        nonce=nonce,
    )  # fmt: skip


def _examples(seed=0):
    rng = np.random.default_rng(seed)
    return ArrayExamples(x=rng.normal(size=(20, 8)).astype(np.float32), y=rng.integers(0, 3, 20).astype(np.int32))


def _desk(path=None, rules=RULES):
    return ReleaseDesk(lambda: PrivacyLedger(path, budget=rules.budget), rules)


def test_what_leaves_the_device_is_integers_and_says_nothing_else():
    result = LinearTrainer().train(_job(), _examples())
    released = _desk().release(_job(), result)
    assert released.model_delta is None
    assert decode_integer_update(released.private_update, PLAN.num_update_numbers).shape == (27,)
    assert (released.num_examples, released.aggregation_weight, released.metrics) == (1, 1.0, PRIVATE_METRICS)


def test_the_same_round_has_the_same_bytes_after_a_restart_of_the_device(tmp_path):
    path = tmp_path / "privacy.sqlite"
    result = LinearTrainer().train(_job(), _examples())
    first = _desk(path).release(_job(), result).private_update
    assert _desk(path).release(_job(), result).private_update == first
    assert _desk(path).release(_job(2), result).private_update != first


def test_a_coordinator_that_lost_its_state_and_reuses_a_round_gets_new_noise_and_the_device_is_charged(tmp_path):
    # The old bytes in a second sum would cancel this device's noise in the difference of the two models.
    path = tmp_path / "privacy.sqlite"
    result = LinearTrainer().train(_job(), _examples())
    first = _desk(path).release(_job(), result).private_update
    again = _desk(path).release(_job(nonce=b"m" * 16), result).private_update
    difference = decode_integer_update(first, PLAN.num_update_numbers) - decode_integer_update(
        again, PLAN.num_update_numbers
    )
    assert (difference.view(np.int32) != 0).any()
    with PrivacyLedger(path, budget=None) as ledger:
        assert len(ledger.entries) == 2


def test_the_ledger_keeps_one_update_however_many_rounds_there_were(tmp_path):
    path = tmp_path / "privacy.sqlite"
    desk, result = _desk(path), LinearTrainer().train(_job(), _examples())
    for round_id in (1, 2, 3):
        desk.release(_job(round_id), result)
    with sqlite3.connect(path) as database:
        kept = database.execute("SELECT release_id FROM entries WHERE payload IS NOT NULL").fetchall()
    assert kept == [(release_id(_job(3)),)]


@pytest.mark.parametrize(
    "reason",
    [WithdrawalReason.TOO_FEW_EXAMPLES, WithdrawalReason.DATA_MISMATCH, WithdrawalReason.NON_FINITE_UPDATE],
)
def test_why_a_devices_data_could_not_be_used_is_not_told_in_a_private_task(reason):
    failed = TrainingFailed(round_id=1, reason=reason, detail="3 local examples")
    said = let_out(_desk(), _job(), failed)
    assert isinstance(said, TrainingFinished)
    assert said.result.model_delta is None
    assert said.result.metrics == PRIVATE_METRICS
    assert decode_integer_update(said.result.private_update, PLAN.num_update_numbers).any()  # noise, as everybody's
    assert let_out(_desk(), _job(plan=BUNDLE.plan), failed) is failed


def test_what_is_not_of_local_data_is_still_a_withdrawal():
    died = TrainingFailed(round_id=1, reason=WithdrawalReason.TRAINING_FAILED, trainer_died=True)
    assert let_out(_desk(), _job(), died) is died
    poor = PrivacyRules(budget=PrivacyBudget(epsilon=0.01), min_contributors=12)
    result = LinearTrainer().train(_job(), _examples())
    said = let_out(_desk(rules=poor), _job(), TrainingFinished(round_id=1, result=result))
    assert said.reason is WithdrawalReason.NOT_ELIGIBLE


def test_an_update_that_is_no_number_is_answered_with_noise_alone():
    result = LinearTrainer().train(_job(), _examples())
    broken = dataclasses.replace(result, model_delta=tuple(part * np.float32("nan") for part in result.model_delta))
    said = let_out(_desk(), _job(), TrainingFinished(round_id=1, result=broken))
    assert said.result.private_update is not None


def test_the_result_of_another_job_is_not_let_out():
    result = LinearTrainer().train(_job(), _examples())
    said = let_out(_desk(), _job(2), TrainingFinished(round_id=1, result=result))
    assert said.reason is WithdrawalReason.TRAINING_FAILED


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


def test_rounds_whose_sum_could_leave_its_words_are_refused_before_they_begin():
    inner = NumpyMeanAggregator(PLAN.weights, AggregationSpec())
    most = SPEC.max_contributors(27)
    private_aggregator(inner, PLAN, RoundPolicy(report_goal=most, min_reports=12, over_selection=1.0))
    with pytest.raises(InvalidConfig, match="leave its 32-bit words"):
        private_aggregator(inner, PLAN, RoundPolicy(report_goal=most + 1, min_reports=12, over_selection=1.0))
    with pytest.raises(InvalidConfig, match="over_selection"):
        private_aggregator(inner, PLAN, RoundPolicy(report_goal=most // 2, min_reports=12, over_selection=1.3))


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


def test_an_honest_update_is_always_admitted_and_one_that_no_device_would_send_is_not():
    for delta in _deltas(50):
        assert not is_overlong(make_integer_update(100.0 * delta, SPEC, SecureRandom()), SPEC)
    bound = int(honest_l2_bound(SPEC, 27))
    for boosted in (np.full(27, 2**31, np.uint32), np.eye(1, 27, dtype=np.uint32)[0] * np.uint32(bound + 1)):
        assert is_overlong(boosted, SPEC)
        with pytest.raises(UpdateRejected) as refused:
            admit_update(encode_integer_update(boosted), REPORT, plan=PLAN, policy=AdmissionPolicy())
        assert refused.value.reason is RejectionReason.NORM_TOO_LARGE


@pytest.mark.parametrize("noise", ["skellam", "geometric"])
def test_honest_updates_of_other_noise_are_admitted_too(noise):
    norm = {"clipping": "l1", "grid_bits": 6} if noise == "geometric" else {"grid_bits": 10}
    spec = PrivacySpec(
        mode="distributed", clipping_norm=0.5, noise=noise, noise_multiplier=20.0, min_contributors=12,
        num_rounds=3, target_epsilon=4.0, **norm,
    )  # fmt: skip
    for delta in _deltas(50):
        assert not is_overlong(make_integer_update(delta, spec, SecureRandom()), spec)
    assert is_overlong(np.full(27, 2**31, np.uint32), spec)


def test_evaluation_rounds_of_a_private_task_are_refused_before_they_begin():
    config = ServerConfig(
        broker_url="mqtt://127.0.0.1:9",
        population="p",
        policy=RoundPolicy(report_goal=12, min_reports=12),
        schedule=RoundSchedule(num_commits=1, evaluate_every=1),
        admission=AdmissionPolicy(),
    )
    bundle = dataclasses.replace(BUNDLE, plan=PLAN)
    with pytest.raises(InvalidConfig, match="evaluate_every"):
        run_rounds(config, bundle=bundle, aggregator=None, task=None, on_round=lambda *_: None, stop=threading.Event())
