"""Central mode: devices clip and round, the coordinator checks every update exactly, and adds the noise itself."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.admission import AdmissionPolicy, admit_update
from coordinator.aggregation import ClientUpdate
from coordinator.aggregation_spec import AggregationSpec
from coordinator.central_noise import draw_central_noise
from coordinator.errors import InvalidConfig, UpdateRejected
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.private_admission import is_overlong
from coordinator.private_sum import PrivateSumAggregator, check_private_rounds
from coordinator.private_task import PrivacyWish, made_private
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from edge_client.errors import PrivacyRefused
from edge_client.privacy.integer_update import clip_and_round, make_integer_update
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.release_desk import ReleaseDesk
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from edge_client.training import TrainingJob, TrainingResult
from integer_noise.secure_random import SecureRandom
from simulators.scenario import load_scenario
from simulators.virtual_fleet import BadWorld
from simulators.virtual_run import VirtualRun, linear_task, run_virtual
from wire_protocol.blobs import split_blob
from wire_protocol.integer_updates import decode_integer_update, encode_integer_update
from wire_protocol.messages import RejectionReason, Report, RoundKind
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.private_reports import PRIVATE_METRICS

BUNDLE = made_private(
    linear_task(8, 3),
    PrivacyWish(epsilon=4.0, num_rounds=3, clipping_norm=0.5, min_contributors=4, mode="central"),
)
PLAN = BUNDLE.plan
SPEC = PLAN.privacy
D = PLAN.num_parameters
RULES = PrivacyRules(budget=PrivacyBudget(epsilon=4.0), modes=frozenset({"central"}))
REPORT = Report(
    round_id=1,
    nonce=bytes(16),
    update=split_blob(bytes(4 * D)).ref,
    piece_digests=b"",
    num_examples=1,
    aggregation_weight=1.0,
    metrics=PRIVATE_METRICS,
)


def _job():
    return TrainingJob(
        kind=RoundKind.TRAIN, plan=PLAN, model=b"", checkpoint=BUNDLE.initial_weights, round_id=1, device_id="d",
        nonce=b"n" * 16,
    )  # fmt: skip


def _result(scale):
    delta = tuple(np.full(spec.shape, scale, np.float32) for spec in PLAN.weights)
    return TrainingResult(
        model_delta=delta, num_examples=9, aggregation_weight=9.0, metrics=PRIVATE_METRICS, duration_s=1.0
    )


def _desk(rules=RULES):
    return ReleaseDesk(lambda: PrivacyLedger(None, budget=rules.budget), rules)


def _admit(integers):
    return admit_update(encode_integer_update(integers), REPORT, plan=PLAN, policy=AdmissionPolicy())


def test_a_device_takes_part_only_if_its_owner_trusts_the_coordinator():
    default = PrivacyRules(budget=PrivacyBudget(epsilon=4.0))
    with pytest.raises(PrivacyRefused, match="'central' is not one of"):
        _desk(default).check(_job())
    _desk().check(_job())


def test_what_a_device_sends_is_its_clipped_update_without_noise_and_charged_like_any():
    desk = _desk()
    sent = decode_integer_update(desk.release(_job(), _result(3.0)).private_update, PLAN.num_update_numbers).view(
        np.int32
    )
    expected = SPEC.clip_units / math.sqrt(D)
    assert np.abs(sent - expected).max() <= 1
    assert len(desk._ledger.entries) == 1


@given(st.integers(0, 2**32 - 1), st.floats(0, 1e6), st.integers(6, 16), st.integers(1, 200))
def test_every_update_that_a_device_makes_is_admitted(seed, scale, grid_bits, d):
    spec = msgspec.structs.replace(SPEC, grid_bits=grid_bits)
    delta = (scale * np.random.default_rng(seed).normal(size=d)).astype(np.float32)
    assert not is_overlong(make_integer_update(delta, spec, SecureRandom()), spec)


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_sum_of_squares_is_compared_to_the_last_unit(over):
    left = math.floor(SPEC.sensitivity_units(D) ** 2) + over
    update = np.zeros(D, np.int64)
    for index in range(D):  # the largest square that fits, again and again, ends at exactly this sum
        update[index] = (-1) ** index * math.isqrt(left)
        left -= int(update[index]) ** 2
    assert left == 0
    assert is_overlong(update.astype(np.uint32), SPEC) is (over > 0)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_an_update_is_refused_exactly_if_it_is_longer_than_the_sensitivity(words):
    signed = [(word + 2**31) % 2**32 - 2**31 for word in words]
    bound = SPEC.sensitivity_units(len(words))
    is_long = sum(value * value for value in signed) > math.floor(bound * bound)
    assert is_overlong(np.array(words, np.uint32), SPEC) is is_long


@pytest.mark.parametrize(("noise", "clipping"), [("discrete_gaussian", "l2"), ("geometric", "l1")])
def test_one_grid_unit_beyond_the_sensitivity_is_refused_and_none_before_it(noise, clipping):
    spec = PrivacySpec(
        mode="central", noise=noise, clipping=clipping, clipping_norm=0.5, noise_multiplier=2.0, num_rounds=3,
        target_epsilon=4.0, grid_bits=10,
    )  # fmt: skip
    longest = math.floor(spec.sensitivity_units(D))
    for sign in (1, -1):
        update = np.zeros(D, np.int64)
        update[5] = sign * longest
        assert not is_overlong(update.astype(np.uint32), spec)
        update[5] = sign * (longest + 1)
        assert is_overlong(update.astype(np.uint32), spec)
    assert is_overlong(np.full(1 << 20, 2**31, np.uint32), spec)  # squares that would overflow 64 bits


def test_a_device_that_does_not_clip_is_told_so_and_not_summed():
    boosted = (1000 * clip_and_round(np.ones(D, np.float32), SPEC, SecureRandom()).values).astype(np.uint32)
    with pytest.raises(UpdateRejected) as refused:
        _admit(boosted)
    assert refused.value.reason is RejectionReason.NORM_TOO_LARGE


def _mean_moved(updates, denominator=4):
    aggregator = PrivateSumAggregator(
        NumpyMeanAggregator(PLAN.weights, AggregationSpec()), PLAN, denominator=denominator
    )
    accumulator = aggregator.begin(aggregator.initialize(BUNDLE.initial_weights))
    for update in updates:
        accumulator.fold(ClientUpdate(model_delta=(), integers=update, aggregation_weight=1.0, metrics=PRIVATE_METRICS))
    state = accumulator.finish().state
    return np.concatenate([weight.reshape(-1) for weight in state.weights]).astype(float)


def test_the_released_sum_has_the_noise_that_is_claimed_once_whatever_the_cohort():
    for num_updates in (4, 16):
        updates = [make_integer_update(np.ones(D, np.float32), SPEC, SecureRandom()) for _ in range(num_updates)]
        exact = sum(update.view(np.int32).astype(float) for update in updates)
        noise = [_mean_moved(updates) * SPEC.units_per_weight * 4 - exact for _ in range(40)]
        # 1,080 draws: six standard errors of a standard deviation are 13 %.
        assert np.concatenate(noise).std() == pytest.approx(SPEC.sum_noise_units(D), rel=0.13)


def test_the_same_sum_is_never_noised_the_same_way_twice():
    updates = [make_integer_update(np.ones(D, np.float32), SPEC, SecureRandom()) for _ in range(4)]
    assert (_mean_moved(updates) != _mean_moved(updates)).any()


def test_geometric_noise_of_the_coordinator_is_two_sided_geometric():
    spec = PrivacySpec(
        mode="central", noise="geometric", clipping="l1", clipping_norm=0.5, noise_multiplier=2.0, num_rounds=3,
        target_epsilon=4.0, grid_bits=6,
    )  # fmt: skip
    scale = spec.sum_noise_units(D)
    draws = np.concatenate([draw_central_noise(spec, D, SecureRandom()) for _ in range(2000)])
    a = math.exp(-1 / scale)
    assert draws.var() == pytest.approx(2 * a / (1 - a) ** 2, rel=0.1)


@pytest.mark.parametrize(
    ("noise", "clipping", "text"),
    [
        ("gaussian", "l2", "can be predicted .*; use discrete_gaussian"),
        ("laplace", "l1", "can be predicted .*; use geometric"),
        ("skellam", "l2", "no price for it; use discrete_gaussian"),
    ],
)
def test_noise_that_the_coordinator_does_not_draw_is_refused_before_a_round_begins(noise, clipping, text):
    spec = PrivacySpec(
        mode="central", noise=noise, clipping=clipping, clipping_norm=0.5, noise_multiplier=2.0, num_rounds=3,
        target_epsilon=4.0,
    )  # fmt: skip
    plan = msgspec.structs.replace(PLAN, privacy=spec)
    with pytest.raises(InvalidConfig, match=text):
        check_private_rounds(plan, RoundPolicy(report_goal=4, min_reports=4))


def test_a_sum_that_could_leave_its_words_is_not_begun():
    most = SPEC.max_contributors(D)
    assert most * SPEC.sensitivity_units(D) < 2**31
    check_private_rounds(PLAN, RoundPolicy(report_goal=most, min_reports=4, over_selection=1.0))
    with pytest.raises(InvalidConfig, match="leave its 32-bit words"):
        check_private_rounds(PLAN, RoundPolicy(report_goal=most + 1, min_reports=4, over_selection=1.0))


@pytest.mark.parametrize("mode", ["local", "central"])
def test_a_wish_takes_the_finest_grid_whose_noise_can_be_drawn(mode):
    wish = PrivacyWish(epsilon=1.0, num_rounds=30, clipping_norm=0.5, min_contributors=4, mode=mode)
    spec = made_private(linear_task(8, 3), wish).plan.privacy
    spec.check_for(D)
    assert (spec.grid_bits == 14) is (mode == "central")
    if mode == "local":
        with pytest.raises(ValueError, match="lower grid_bits"):
            msgspec.structs.replace(spec, grid_bits=spec.grid_bits + 1).check_for(D)


def _fleet_run(**changes):
    scenario = load_scenario("digits", num_devices=12, partition="iid", alpha=1.0, seed=0)
    task = linear_task(64, 10, batch_size=8, num_epochs=1, learning_rate=0.5)
    wish = PrivacyWish(epsilon=200.0, num_rounds=4, clipping_norm=2.0, min_contributors=10, mode="central")
    run = VirtualRun(
        scenario=scenario,
        plan=made_private(task, wish).plan,
        policy=RoundPolicy(report_goal=12, min_reports=10, over_selection=1.0, selection_timeout_s=60.0),
        schedule=RoundSchedule(num_commits=4, max_abandoned_in_a_row=2),
        world=BadWorld(),
        seed=1,
    )
    return dataclasses.replace(run, **changes)


def test_a_fleet_whose_owners_agree_learns_and_one_whose_owners_do_not_takes_no_part():
    trusting = PrivacyRules(budget=PrivacyBudget(epsilon=300.0), min_noise_multiplier=0.0, modes=frozenset({"central"}))
    report = run_virtual(_fleet_run(privacy=trusting))
    assert report.num_commits == 4
    assert report.test_accuracy > 0.7
    wary = dataclasses.replace(trusting, modes=frozenset({"distributed", "local"}))
    assert run_virtual(_fleet_run(privacy=wary)).num_commits == 0
