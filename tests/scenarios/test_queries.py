"""Questions to a fleet, whole: real agents answer with noise, charge their ledgers, and answer each question once."""

import msgspec
import numpy as np
import pytest

from coordinator.aggregation import ClientUpdate
from coordinator.checkpoints import CheckpointStore
from coordinator.errors import QuorumMissed, StateMismatch, UpdateMismatch
from coordinator.query_round import QueryAggregator, answer_in, query_bundle
from edge_client.errors import BudgetExceeded, ExampleMismatch, PrivacyRefused
from edge_client.events import TrainingFailed, TrainingFinished
from edge_client.linear_trainer import LinearTrainer
from edge_client.local_answer import local_value
from edge_client.privacy.accountant import cost_of, epsilon_of
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.let_out import let_out
from edge_client.privacy.release_desk import ReleaseDesk
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from edge_client.run_job import run_job
from edge_client.training import ArrayExamples, TrainingJob, withdrawal_reason
from simulators.virtual_fleet import BadNetwork, BadWorld
from simulators.virtual_key_authority import VirtualKeyAuthority, trust_with_key_authority
from simulators.virtual_openers import VirtualConfidentiality
from simulators.virtual_query import OpenedBy, ask_virtual_fleet, rehearse_query
from simulators.virtual_run import linear_task
from simulators.virtual_trust import VirtualTrust
from wire_protocol.integer_updates import decode_integer_update
from wire_protocol.messages import RoundKind, WithdrawalReason
from wire_protocol.plan import decode_plan, encode_plan
from wire_protocol.privacy_spec import GaussianEvent, GeometricEvent, PrivacySpec
from wire_protocol.private_reports import PRIVATE_METRICS
from wire_protocol.query import Query

RULES = PrivacyRules(budget=PrivacyBudget(epsilon=2.0), min_contributors=2)


def _query(**values):
    given = {"name": "temperature", "period": "2026-11", "kind": "mean", "of": "input_mean", "edges": (0.0, 40.0),
             "epsilon": 1.0, "min_contributors": 20}  # fmt: skip
    return Query(**(given | values))


def _device(value, num_examples=4):
    x = np.full((num_examples, 2), value, np.float32)
    x[:, 1] = 7
    return ArrayExamples(x=x, y=np.arange(num_examples, dtype=np.int32) % 3)


def _job(query, *, round_id=1, nonce=b"n" * 16, kind=RoundKind.TRAIN):
    bundle = query_bundle(query)
    return TrainingJob(
        kind=kind, plan=bundle.plan, model=b"", checkpoint=bundle.initial_weights, round_id=round_id, device_id="d",
        nonce=nonce,
    )  # fmt: skip


def _desk(rules=RULES, path=None):
    return ReleaseDesk(lambda: PrivacyLedger(path, budget=rules.budget), rules)


def _answer(desk, job, examples):
    try:
        ended = TrainingFinished(round_id=job.round_id, result=run_job(LinearTrainer(), job, examples))
    except ExampleMismatch as error:
        ended = TrainingFailed(round_id=job.round_id, reason=withdrawal_reason(error), detail=str(error))
    return let_out(desk, job, ended)


def _fleet(count):
    values = np.clip(np.random.default_rng(3).normal(21, 4, count), 0, 40)
    return values, {f"device-{i:04d}": _device(value) for i, value in enumerate(values)}


def test_a_thousand_devices_in_a_bad_world_answer_within_the_error_bar():
    values, examples = _fleet(1000)
    query = _query(min_contributors=800)
    world = BadWorld(dropout=0.02, away_s=(30.0, 60.0), network=BadNetwork(loss=0.01, duplication=0.01))
    answer = ask_virtual_fleet(query, examples, world=world, seed=5)
    mean, devices = answer.estimates
    assert 900 <= answer.num_reports <= 1000
    # Six standard deviations of the noise, and those few who vanished and did not come back in time.
    assert abs(devices.value - answer.num_reports) < 6 * answer.noise_stddev
    assert mean.value == pytest.approx(values.mean(), abs=6 * 20 * answer.noise_stddev / 900 + 0.5)


def test_a_fleet_that_is_too_small_gives_no_answer():
    assert ask_virtual_fleet(_query(min_contributors=20), _fleet(19)[1], world=BadWorld()) is None
    assert ask_virtual_fleet(_query(min_contributors=20), _fleet(20)[1], world=BadWorld()) is not None


def test_owners_who_allow_no_queries_are_not_in_the_answer():
    rules = PrivacyRules(budget=PrivacyBudget(epsilon=2.0), min_contributors=2, allow_queries=False)
    assert ask_virtual_fleet(_query(), _fleet(30)[1], world=BadWorld(), privacy=rules) is None
    with pytest.raises(PrivacyRefused, match="allow_queries"):
        _desk(rules).check(_job(_query()))


def test_owners_who_trust_no_coordinator_answer_in_local_mode_alone():
    rules = PrivacyRules(budget=PrivacyBudget(epsilon=2.0), modes=frozenset({"local"}))
    values, examples = _fleet(30)
    assert ask_virtual_fleet(_query(), examples, world=BadWorld(), privacy=rules) is None
    answer = ask_virtual_fleet(_query(mode="local"), examples, world=BadWorld(), privacy=rules)
    assert answer.num_reports == 30
    # Six standard deviations of the noise of thirty devices, each with all of it.
    assert abs(answer.estimates[1].value - 30) < 6 * answer.noise_stddev
    assert answer.estimates[0].low <= values.mean() + 20
    assert answer.estimates[0].high >= values.mean() - 20


def _opened_by(way):
    devices = list(_fleet(12)[1])
    if way == "he":
        trust = trust_with_key_authority("virtual", devices)
        authority = VirtualKeyAuthority(trust)
        plan_word = authority.sums()
    else:
        trust, authority = VirtualTrust("virtual", devices), None
        plan_word = trust.helper_sums() if way == "helpers" else trust.masked_sums(devices[:4])
    people = VirtualConfidentiality(trust=trust, min_contributors=10, key_authority=authority)
    return OpenedBy(way=plan_word, people=people)


@pytest.mark.parametrize("way", ["helpers", "masks", "he"])
def test_the_sum_of_the_answers_is_opened_by_others_and_the_coordinator_sees_none(way, monkeypatch):
    seen, fold = [], QueryAggregator.begin
    monkeypatch.setattr(QueryAggregator, "begin", lambda *args: _watched(fold(*args), seen))
    values, examples = _fleet(12)
    query = _query(min_contributors=10, epsilon=3.0)
    rules = PrivacyRules(budget=PrivacyBudget(epsilon=4.0), confidentiality=frozenset({way}))
    answer = ask_virtual_fleet(query, examples, world=BadWorld(), privacy=rules, opened_by=_opened_by(way))
    assert answer.num_reports == 12
    # Noise of scale 1/3 device on halves: e^-18 that it is more than 12.
    assert abs(answer.estimates[1].value - 12) < 12
    assert answer.estimates[0].low <= values.mean() + 20
    assert seen == []
    # Owners who take part in such sums alone answer no other question.
    assert ask_virtual_fleet(query, examples, world=BadWorld(), privacy=rules) is None


def _watched(accumulator, seen):
    accumulator.fold = seen.append
    return accumulator


def test_a_rehearsal_asks_a_virtual_fleet_for_the_values_that_are_given():
    question = _query(
        of="num_examples", kind="histogram", edges=(0.0, 10.0, 20.0, 30.0), epsilon=3.0, min_contributors=30
    )
    values = [5.0] * 20 + [15.0] * 10 + [99.0, None]
    answer = rehearse_query(question, values)
    assert answer.query == question
    assert answer.num_reports == 32
    # Noise of scale 1/3 device: e^-18 that it is more than 6.
    assert [estimate.value for estimate in answer.estimates] == pytest.approx([20, 10, 0], abs=6)
    assert rehearse_query(question, values[:29]) is None
    # As real owners do, who have said nothing: their privacy.min_noise_multiplier is 0.3.
    assert rehearse_query(msgspec.structs.replace(question, epsilon=4.0), values) is None


def test_an_answer_is_integers_charged_at_the_questions_epsilon_and_says_nothing_else(tmp_path):
    path = tmp_path / "privacy.sqlite"
    said = _answer(_desk(path=path), _job(_query()), _device(21.0))
    assert said.result.model_delta is None
    assert said.result.metrics == PRIVATE_METRICS
    assert decode_integer_update(said.result.private_update, query_bundle(_query()).plan.num_update_numbers).shape == (
        2,
    )
    with PrivacyLedger(path, budget=None) as ledger:
        assert ledger.spent_epsilon == pytest.approx(1.0)
        assert ledger.entries[0].release_id.startswith("query/temperature/2026-11/")


def test_a_question_is_answered_once_in_its_period_whatever_it_asks_the_second_time(tmp_path):
    desk = _desk(path=tmp_path / "privacy.sqlite")
    first = _answer(desk, _job(_query(epsilon=0.5)), _device(21.0))
    again = _answer(_desk(path=tmp_path / "privacy.sqlite"), _job(_query(epsilon=0.5)), _device(35.0))
    assert again.result.private_update == first.result.private_update
    for other in (_job(_query(epsilon=0.5), nonce=b"m" * 16), _job(_query(epsilon=0.25)), _job(_query(kind="count"))):
        with pytest.raises(PrivacyRefused, match="answered before"):
            desk.check(other)
        assert _answer(desk, other, _device(21.0)).reason is WithdrawalReason.NOT_ELIGIBLE
    desk.check(_job(_query(period="2026-12")))


def _training_job(round_id):
    plan = linear_task(2, 3).plan
    spec = PrivacySpec(mode="distributed", clipping_norm=0.5, noise_multiplier=5.0, min_contributors=20, num_rounds=9,
                       target_epsilon=9.0, grid_bits=12)  # fmt: skip
    return TrainingJob(
        kind=RoundKind.TRAIN, plan=msgspec.structs.replace(plan, privacy=spec), model=b"", device_id="d",
        checkpoint=tuple(np.zeros(part.shape, np.float32) for part in plan.weights), round_id=round_id, nonce=b"t" * 16,
    )  # fmt: skip


def test_questions_and_training_share_one_budget(tmp_path):
    path = tmp_path / "privacy.sqlite"
    desk = _desk(path=path)
    assert _answer(desk, _job(_query(name="q1")), _device(21.0)).result.private_update
    assert _answer(desk, _training_job(1), _device(0.5)).result.private_update
    with PrivacyLedger(path, budget=None) as ledger:
        assert [type(entry.event) for entry in ledger.entries] == [GeometricEvent, GaussianEvent]
        both = cost_of(ledger.entries[0].event) + cost_of(ledger.entries[1].event)
        assert 1.0 < ledger.spent_epsilon == epsilon_of(both, 1e-5) < 2.0
    with pytest.raises(BudgetExceeded):
        desk.check(_job(_query(name="q2")))
    # Dearer than a cheap question, which is still let through.
    with pytest.raises(BudgetExceeded):
        desk.check(_training_job(2))
    assert _answer(desk, _job(_query(name="q2", epsilon=0.02)), _device(21.0)).result.private_update


def test_questions_alone_share_one_budget():
    desk = _desk()
    for number in (1, 2):
        assert _answer(desk, _job(_query(name=f"q{number}")), _device(21.0)).result.private_update
    with pytest.raises(BudgetExceeded):
        desk.check(_job(_query(name="q3")))


def test_an_evaluation_of_a_question_is_refused():
    with pytest.raises(PrivacyRefused, match="unpriced"):
        _desk().check(_job(_query(), kind=RoundKind.EVALUATE))


def test_a_device_without_the_column_answers_with_noise_and_tells_nobody():
    said = _answer(_desk(), _job(_query(column=9)), _device(21.0))
    assert isinstance(said, TrainingFinished)
    assert said.result.private_update is not None


def test_a_devices_one_value_is_what_the_question_is_about():
    examples = _device(21.5, num_examples=5)
    assert local_value(_query(of="num_examples"), examples) == 5
    assert local_value(_query(of="input_mean", column=1), examples) == 7
    assert local_value(_query(of="class_share", column=0), examples) == pytest.approx(0.4)
    assert local_value(_query(of="label_mean"), examples) == pytest.approx(0.8)
    numbers = ArrayExamples(x=np.zeros((2, 1), np.float32), y=np.array([[1.0, 5.0], [3.0, 7.0]], np.float32))
    assert local_value(_query(of="label_mean", column=1), numbers) == 6
    for wrong in (_query(of="class_share"), _query(of="label_mean", column=2), _query(of="input_mean", column=1)):
        with pytest.raises(ExampleMismatch):
            local_value(wrong, numbers)


def test_a_plan_cannot_ask_with_less_noise_than_its_question_says():
    plan = query_bundle(_query()).plan
    assert decode_plan(encode_plan(plan)) == plan
    for change in (
        {"privacy": None},
        {"privacy": _query(epsilon=2.0).privacy_spec()},
        {"weights": linear_task(2, 3).plan.weights},
    ):
        with pytest.raises(ValueError, match="query"):
            msgspec.structs.replace(plan, **change)


def test_a_plan_without_a_question_has_the_bytes_that_it_always_had():
    assert b"query" not in encode_plan(linear_task(2, 3).plan)


def _update(*numbers):
    integers = np.array(numbers, np.int64).astype(np.uint32)
    return ClientUpdate(model_delta=(), integers=integers, aggregation_weight=1.0, metrics=PRIVATE_METRICS)


def test_the_sum_is_signed_kept_through_a_restart_and_suppressed_below_the_least_number(tmp_path):
    query = _query(min_contributors=2)
    bundle = query_bundle(query)
    aggregator = QueryAggregator(bundle.plan)
    accumulator = aggregator.begin(aggregator.initialize(bundle.initial_weights))
    accumulator.fold(_update(-300, 128))
    with pytest.raises(QuorumMissed, match="fewer than 2 there is none"):
        accumulator.finish()
    with pytest.raises(UpdateMismatch):
        accumulator.fold(_update(1, 2, 3))
    resumed = aggregator.begin(aggregator.initialize(bundle.initial_weights))
    resumed.resume(accumulator.snapshot(), num_folded=1)
    resumed.fold(_update(44, 128))
    store = CheckpointStore(tmp_path)
    store.save(resumed.finish().state)
    answer = answer_in(store.load_latest(), query)
    assert answer.noisy_sum == (-256, 256)
    assert answer.num_reports == 2
    assert answer.estimates[0].value == 0.0
    with pytest.raises(StateMismatch):
        answer_in(store.load_latest(), _query(kind="count"))
