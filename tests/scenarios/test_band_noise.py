"""Noise that is correlated over rounds: closed forms, exact rows, spacing on both sides, and restarts."""

import dataclasses
import math
import random

import msgspec
import numpy as np
import pytest

from coordinator.aggregation import ClientUpdate
from coordinator.aggregation_spec import AggregationSpec
from coordinator.band_history import empty_history, history_from
from coordinator.checkpoints import CheckpointStore
from coordinator.errors import StateMismatch
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.participation_spacing import ParticipationSpacing
from coordinator.population import Population
from coordinator.privacy_accounting import claimed_epsilon, forecast
from coordinator.privacy_budget import RoundBudget
from coordinator.private_sum import PrivateSumAggregator
from coordinator.private_task import PrivacyWish, made_private
from coordinator.round_journal import Contribution, RoundJournal
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import Member, RoundState
from coordinator.sum_release import sum_release
from edge_client.errors import PrivacyRefused
from edge_client.privacy.accountant import cost_of, epsilon_of
from edge_client.privacy.integer_update import make_integer_update
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.release_desk import ReleaseDesk
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from edge_client.training import TrainingJob, TrainingResult
from integer_noise.secure_random import SecureRandom
from simulators.scenario import load_scenario
from simulators.virtual_fleet import BadWorld
from simulators.virtual_run import VirtualRun, linear_task, run_virtual
from wire_protocol.band_matrix import band_denominator, band_numerators, band_price, num_participations
from wire_protocol.messages import RoundKind
from wire_protocol.plan import TensorSpec
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.private_reports import PRIVATE_METRICS

BANDS = 4
BUNDLE = made_private(
    linear_task(8, 3),
    PrivacyWish(epsilon=4.0, num_rounds=12, clipping_norm=0.5, min_contributors=4, mode="central", num_bands=BANDS),
)
PLAN = BUNDLE.plan
SPEC = PLAN.privacy
D = PLAN.num_parameters
RULES = PrivacyRules(budget=PrivacyBudget(epsilon=100.0), modes=frozenset({"central"}))


def _inverse(num_bands, size):
    """C as a dense matrix, and its inverse."""
    c = [value / band_denominator(num_bands) for value in band_numerators(num_bands)]
    matrix = np.zeros((size, size))
    for j, value in enumerate(c):
        matrix += value * np.eye(size, k=-j)
    return matrix, np.linalg.inv(matrix)


# -- closed forms


def test_the_coefficients_are_those_of_the_root_of_prefix_sums():
    denominator, numerators = band_denominator(10), band_numerators(10)
    expected = 1.0
    for j, numerator in enumerate(numerators):
        assert numerator / denominator == pytest.approx(expected, rel=1e-15)
        expected *= (2 * j + 1) / (2 * j + 2)
    full, _ = _inverse(10, 10)
    np.testing.assert_allclose(full @ full, np.tril(np.ones((10, 10))), atol=1e-12)


def test_ten_bands_cost_1_791_single_releases_and_one_band_costs_one():
    assert band_price(10) == pytest.approx(1.791, abs=5e-4)
    assert (band_price(1), band_numerators(1)) == (1.0, (1,))


def test_ten_bands_have_2_34_times_less_error_in_prefix_sums_than_independent_noise_of_the_same_price():
    num_rounds, k = 100, num_participations(100, 10)
    assert k == 10
    inverse = _inverse(10, num_rounds)[1]
    prefix = np.tril(np.ones((num_rounds, num_rounds)))
    banded = math.sqrt(k * band_price(10)) * np.linalg.norm(prefix @ inverse)
    independent = math.sqrt(k) * np.linalg.norm(prefix)
    assert independent / banded == pytest.approx(2.34, abs=0.01)


def test_no_device_that_keeps_its_distance_changes_the_rows_by_more_than_it_pays_for():
    rng = np.random.default_rng(0)
    matrix, _ = _inverse(BANDS, 40)
    worst = 0.0
    for _ in range(300):
        rounds, at = [], int(rng.integers(0, BANDS))
        while at < 40:
            rounds.append(at)
            at += BANDS + int(rng.integers(0, 3))
        x = np.zeros((40, 5))
        for t in rounds:
            x[t] = rng.normal(size=5)
            x[t] /= np.linalg.norm(x[t])
        worst = max(worst, np.linalg.norm(matrix @ x) ** 2 / (len(rounds) * band_price(BANDS)))
    assert 0.9 < worst <= 1 + 1e-12
    near = np.zeros((40, 1))
    near[[0, 1]] = 1.0  # and one that does not keep it
    assert np.linalg.norm(matrix @ near) ** 2 > 1.2 * 2 * band_price(BANDS)


# -- the price, on both sides


def test_a_device_pays_per_participation_and_both_accountants_agree():
    device = epsilon_of(cost_of(SPEC.event(D)).times(SPEC.num_participations(12)), 1e-5)
    assert SPEC.num_participations(12) == 3
    assert device == pytest.approx(claimed_epsilon(SPEC, 12), rel=1e-6)
    assert 3.9 < device <= 4.0
    independent = msgspec.structs.replace(
        SPEC, num_bands=1, noise_multiplier=SPEC.noise_multiplier / math.sqrt(band_price(BANDS))
    )
    assert forecast(SPEC, 12).epsilon_by_pld == pytest.approx(forecast(independent, 3).epsilon_by_pld, rel=1e-9)


def test_the_coordinator_opens_as_many_rounds_as_the_devices_can_pay_for():
    budget = RoundBudget(SPEC)
    assert [budget.allows(round_id) for round_id in (1, 4, 12, 13)] == [True, True, True, False]
    assert budget.epsilon_after(1) == budget.epsilon_after(4) < budget.epsilon_after(5)


@pytest.mark.parametrize(
    "changes", [{"mode": "distributed"}, {"mode": "local"}, {"noise": "gaussian"}, {"num_bands": 13}]
)
def test_bands_are_refused_where_nobody_remembers_the_noise(changes):
    values = {"mode": "central", "clipping_norm": 0.5, "noise_multiplier": 2.0, "num_rounds": 3, "target_epsilon": 4.0}
    with pytest.raises(ValueError, match="num_bands"):
        PrivacySpec(**{**values, "num_bands": 2, **changes})


# -- rows and estimates


def _played(history, rounds, sums, noises):
    estimates = []
    for round_id, total, noise in zip(rounds, sums, noises, strict=True):
        history = history.after(round_id, total, history.row(round_id, total, noise))
        estimates.append(history.estimates[0])
    return np.array(estimates)


def test_estimates_are_the_sums_plus_the_inverse_matrix_times_the_noise_with_abandoned_rounds_as_rows_of_zero():
    rng = np.random.default_rng(1)
    rounds = [1, 2, 5, 6, 7, 15, 16]
    sums, noises = rng.integers(-(2**20), 2**20, (2, len(rounds), D))
    estimates = _played(empty_history(BANDS, D), rounds, sums, noises)
    matrix, _ = _inverse(BANDS, 16)
    rows = [round_id - 1 for round_id in rounds]
    # A row that nobody sees: its estimate is 0, like its sum, and only the others are solved for.
    expected = sums + np.linalg.solve(matrix[np.ix_(rows, rows)], noises) / band_denominator(BANDS)
    np.testing.assert_allclose(estimates, expected, rtol=1e-9, atol=1e-6)


def test_what_is_released_depends_on_sums_and_noise_by_the_rows_alone_to_the_last_bit():
    rng = np.random.default_rng(2)
    rounds = list(range(1, 9))
    sums, noises = rng.integers(-(2**25), 2**25, (2, 8, D))
    other, moved = sums.copy(), noises.copy()
    other[2] += rng.integers(-(2**14), 2**14, D)
    for j, numerator in enumerate(band_numerators(BANDS)):
        moved[2 + j] -= numerator * (other[2] - sums[2])
    one = _played(empty_history(BANDS, D), rounds, sums, noises)
    two = _played(empty_history(BANDS, D), rounds, other, moved)
    assert one.tobytes() == two.tobytes()


def test_each_row_has_fresh_noise_of_the_size_that_is_claimed():
    spec = msgspec.structs.replace(SPEC, grid_bits=6)
    plan = msgspec.structs.replace(PLAN, weights=(TensorSpec(shape=(20_000,)),), privacy=spec)
    release, total = sum_release(plan, num_devices=4), np.zeros(20_000, np.int64)
    scale, leaves = spec.sum_noise_units(20_000), release.first_leaves()
    rows = []
    for round_id in (1, 2):
        released = release.release(total, leaves, round_id)
        leaves = released.leaves
        c1 = band_numerators(BANDS)[1] / band_denominator(BANDS)
        rows.append(released.total * spec.units_per_weight + (c1 * rows[-1] if rows else 0))
    for row in rows:
        assert row.std() / scale == pytest.approx(1.0, abs=0.03)  # six standard errors
    assert abs(np.corrcoef(rows)[0, 1]) < 0.05


def test_a_round_that_comes_again_after_a_later_one_is_refused():
    history = empty_history(BANDS, 3)
    zero = np.zeros(3, np.int64)
    history = history.after(5, zero, history.row(5, zero, zero))
    for round_id in (5, 4):
        with pytest.raises(StateMismatch, match="comes after round 5"):
            history.row(round_id, zero, zero)


def _released_rows(history, sums):
    """{round: row without noise}, and the history after them; ``sums`` is {round: sum}."""
    rows = {}
    for round_id, total in sums.items():
        rows[round_id] = history.row(round_id, total, np.zeros_like(total))
        history = history.after(round_id, total, rows[round_id])
    return rows, history


@pytest.mark.parametrize("device_round", [1, 2, 3, 4, 5, 6])
def test_after_a_state_was_put_back_no_device_is_in_more_than_it_pays_for(device_round):
    """Rounds 3 and 4 are lost with the states after them; their numbers are not used again."""
    one, nothing = np.ones(1, np.int64), np.zeros(1, np.int64)
    sums = {round_id: one if round_id == device_round else nothing for round_id in range(1, 9)}
    before, old = _released_rows(empty_history(BANDS, 1), {t: sums[t] for t in (1, 2)})
    lost, _ = _released_rows(old, {t: sums[t] for t in (3, 4)})
    after, _ = _released_rows(old, {t: sums[t] for t in (5, 6, 7, 8)})
    everything = np.array([*before.values(), *lost.values(), *after.values()], np.float64) / band_denominator(BANDS)
    assert 0 < (everything**2).sum() <= band_price(BANDS)


def test_a_round_whose_number_was_used_before_is_refused_before_any_device_is_asked():
    aggregator = _aggregator()
    state = _round(aggregator, aggregator.initialize(BUNDLE.initial_weights), 7)
    with pytest.raises(StateMismatch, match="last_round_id"):
        aggregator.begin_round(state, round_id=7)
    aggregator.begin_round(state, round_id=8)


def test_noise_whose_draws_would_leave_64_bits_is_refused_with_the_task():
    wide = msgspec.structs.replace(SPEC, num_bands=12, noise_multiplier=2.0**20)
    with pytest.raises(ValueError, match="64-bit"):
        wide.check_for(D)
    msgspec.structs.replace(wide, grid_bits=8).check_for(D)


def _aggregator():
    return PrivateSumAggregator(NumpyMeanAggregator(PLAN.weights, AggregationSpec()), PLAN, denominator=4)


def _round(aggregator, state, round_id):
    accumulator = aggregator.begin_round(state, round_id=round_id)
    for _ in range(4):
        integers = make_integer_update(np.ones(D, np.float32), SPEC, SecureRandom())
        accumulator.fold(
            ClientUpdate(model_delta=(), integers=integers, aggregation_weight=1.0, metrics=PRIVATE_METRICS)
        )
    return accumulator.finish().state


def test_the_history_is_stored_with_the_model_in_one_state_and_found_again(tmp_path):
    aggregator = _aggregator()
    state = aggregator.initialize(BUNDLE.initial_weights)
    for round_id in (1, 2, 4):
        state = _round(aggregator, state, round_id)
    store = CheckpointStore(tmp_path)
    store.save(state)
    found = CheckpointStore(tmp_path).load_latest()
    mine, kept = (history_from(s.leaves[-3:], BANDS, D) for s in (state, found))
    assert kept.round_id == mine.round_id == 4
    np.testing.assert_array_equal(kept.sums, mine.sums)
    np.testing.assert_array_equal(kept.estimates, mine.estimates)
    assert (kept.sums[0] > 0).all()
    assert not kept.sums[1].any()  # round 3 was abandoned
    aggregator.weights(found)
    _round(aggregator, found, 5)


def test_a_state_without_history_is_refused():
    aggregator = _aggregator()
    state = aggregator.initialize(BUNDLE.initial_weights)
    bare = dataclasses.replace(state, leaves=(*state.leaves[:-1], state.leaves[-1][:, :5]))
    with pytest.raises(StateMismatch, match="not the history"):
        aggregator.begin_round(bare, round_id=1)


# -- distance


def _job(round_id, nonce=b"n" * 16):
    return TrainingJob(
        kind=RoundKind.TRAIN, plan=PLAN, model=b"", checkpoint=BUNDLE.initial_weights, round_id=round_id, device_id="d",
        nonce=nonce,
    )  # fmt: skip


def _result():
    delta = tuple(np.zeros(spec.shape, np.float32) for spec in PLAN.weights)
    return TrainingResult(
        model_delta=delta, num_examples=9, aggregation_weight=9.0, metrics=PRIVATE_METRICS, duration_s=1.0
    )


def test_a_device_keeps_its_distance_by_its_own_ledger_whatever_it_is_asked(tmp_path):
    def desk():
        return ReleaseDesk(lambda: PrivacyLedger(tmp_path / "ledger", budget=RULES.budget), RULES)

    first = desk().release(_job(7), _result()).private_update
    for round_id in (4, 6, 8, 10):
        with pytest.raises(PrivacyRefused, match="too near to round 7"):
            desk().check(_job(round_id))
    with pytest.raises(PrivacyRefused, match="too near to round 7"):
        desk().check(_job(7, nonce=b"m" * 16))
    assert desk().release(_job(7), _result()).private_update == first
    desk().release(_job(11), _result())
    desk().check(_job(3))


def test_devices_that_were_asked_rest_and_are_not_drawn():
    spacing = ParticipationSpacing(3)
    spacing.note(5, ["a", "b"])
    spacing.note(6, ["c"])
    assert [spacing.resting(r) for r in (6, 7, 8, 9)] == [{"a", "b", "c"}, {"a", "b", "c"}, {"c"}, set()]
    every_round = ParticipationSpacing(1)
    every_round.note(5, ["a"])
    assert not every_round.resting(6)
    population = Population(RoundPolicy(report_goal=2, min_reports=1))
    for device_id in "abd":
        population.enqueue(device_id, b"n" * 16, now=0.0)
    population.rest(frozenset("ab"))
    assert population.num_eligible(None) == 1
    assert population.num_eligible(frozenset("ab")) == 0
    drawn = population.draw_cohort(3, rng=random.Random(0))
    assert [waiting.device_id for waiting in drawn] == ["d"]
    population.note_presence("a", is_online=False)
    population.rest(frozenset())
    assert [waiting.device_id for waiting in population.drain()] == ["b"]


def test_those_who_rest_take_nobodys_place_among_those_who_wait():
    population = Population(RoundPolicy(report_goal=1, min_reports=1, over_selection=1.0))
    resting = [f"r{index}" for index in range(20)]
    population.rest(frozenset(resting))
    assert all(population.enqueue(device_id, b"n" * 16, now=0.0) for device_id in resting)
    room = [population.enqueue(f"d{index}", b"n" * 16, now=0.0) for index in range(6)]
    assert room == [True] * 4 + [False] * 2
    assert (population.num_eligible(None), population.num_waiting) == (4, 24)


def test_a_restart_finds_who_has_to_rest(tmp_path):
    with RoundJournal(tmp_path / "journal.sqlite") as journal:
        for round_id in range(1, 13):
            journal.open_round(round_id, RoundKind.TRAIN, base_commits=round_id - 1)
            journal.assign(round_id, {f"d{round_id}": Member(nonce=b"n" * 16)})
            journal.add(
                round_id,
                Contribution(
                    device_id=f"d{round_id}", model_delta=b"", aggregation_weight=1.0, metrics=PRIVATE_METRICS
                ),
            )
            journal.close_round(round_id, RoundState.COMMITTED)
        known = journal.rounds()
    spacing = ParticipationSpacing(12)
    for round_ in known:
        spacing.note(round_.round_id, round_.members)
    assert spacing.resting(13) == {f"d{round_id}" for round_id in range(2, 13)}


def test_a_fleet_of_little_more_than_its_cohorts_learns_with_correlated_noise_and_is_never_asked_too_often():
    scenario = load_scenario("digits", num_devices=80, partition="iid", alpha=1.0, seed=0)
    task = linear_task(64, 10, batch_size=8, num_epochs=1, learning_rate=0.5)
    wish = PrivacyWish(epsilon=300.0, num_rounds=16, clipping_norm=2.0, min_contributors=8, mode="central", num_bands=7)
    run = VirtualRun(
        scenario=scenario,
        plan=made_private(task, wish).plan,
        policy=RoundPolicy(report_goal=10, min_reports=8, over_selection=1.0, selection_timeout_s=600.0),
        schedule=RoundSchedule(num_commits=16),
        world=BadWorld(),
        seed=1,
        privacy=PrivacyRules(
            budget=PrivacyBudget(epsilon=500.0), min_noise_multiplier=0.0, modes=frozenset({"central"})
        ),
    )
    report = run_virtual(run)
    assert (report.num_commits, report.num_abandoned) == (16, 0)
    # Had the coordinator asked a device too early, the device would have withdrawn, and the round had fewer reports.
    assert {summary.num_reports for summary in report.rounds} == {10}
    assert report.test_accuracy > 0.6
