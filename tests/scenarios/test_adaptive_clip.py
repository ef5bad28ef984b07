"""A clip that follows the updates: what the bit costs, who may move the clip, and what survives a restart."""

import math

import dp_accounting
import msgspec
import numpy as np
import pytest
from dp_accounting import rdp
from hypothesis import given
from hypothesis import strategies as st

from coordinator.admission import AdmissionPolicy, admit_update
from coordinator.aggregation import ClientUpdate, ServerState
from coordinator.aggregation_spec import AggregationSpec
from coordinator.central_noise import draw_central_noise
from coordinator.checkpoints import CheckpointStore
from coordinator.errors import InvalidConfig, StateMismatch, UpdateRejected
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.privacy_accounting import claimed_epsilon
from coordinator.private_admission import is_overlong
from coordinator.private_sum import PrivateSumAggregator
from coordinator.private_task import PrivacyWish, made_private
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.sum_release import round_clip
from edge_client.errors import PrivacyRefused
from edge_client.privacy.integer_update import ClipRule, make_integer_update
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.release_desk import ReleaseDesk
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from edge_client.training import TrainingJob, TrainingResult
from integer_noise.secure_random import SecureRandom
from simulators.scenario import load_scenario
from simulators.virtual_fleet import BadWorld
from simulators.virtual_run import VirtualRun, linear_task, run_virtual
from wire_protocol.adaptive_clip import AdaptiveClip, next_clip, share_below
from wire_protocol.blobs import split_blob
from wire_protocol.integer_updates import decode_integer_update, encode_integer_update
from wire_protocol.messages import RejectionReason, Report, RoundKind
from wire_protocol.plan import decode_plan, encode_plan
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.private_reports import PRIVATE_METRICS

M = 100
WISH = PrivacyWish(
    epsilon=8.0, num_rounds=5, clipping_norm=0.5, min_contributors=M, mode="central", adaptive_quantile=0.5
)
BUNDLE = made_private(linear_task(8, 3), WISH)
PLAN = BUNDLE.plan
SPEC = PLAN.privacy
CLIP = SPEC.adaptive_clip
D = PLAN.num_parameters
RULES = PrivacyRules(budget=PrivacyBudget(epsilon=100.0), modes=frozenset({"central"}))
finite = st.floats(-(2.0**100), 2.0**100, width=32)


def _job(clipping_norm, plan=PLAN, round_id=1):
    return TrainingJob(
        kind=RoundKind.TRAIN, plan=plan, model=b"", checkpoint=BUNDLE.initial_weights, round_id=round_id, device_id="d",
        nonce=b"n" * 16, clipping_norm=clipping_norm,
    )  # fmt: skip


def _result(norm):
    delta = tuple(np.full(spec.shape, norm / math.sqrt(D), np.float32) for spec in PLAN.weights)
    return TrainingResult(
        model_delta=delta, num_examples=9, aggregation_weight=9.0, metrics=PRIVATE_METRICS, duration_s=1.0
    )


def _released(clipping_norm, norm, rules=RULES):
    desk = ReleaseDesk(lambda: PrivacyLedger(None, budget=rules.budget), rules)
    sent = desk.release(_job(clipping_norm), _result(norm)).private_update
    return decode_integer_update(sent, PLAN.num_update_numbers).view(np.int32).astype(np.int64)


# -- the price


def test_the_bit_is_charged_as_in_the_paper():
    """Andrew et al. 2021, theorem 1: 1/z^2 = 1/z_delta^2 + 1/(2 sigma_b)^2."""
    sigma = SPEC.sum_noise_units(D)
    z_delta, twice_sigma_b = sigma / SPEC.update_bound_units(D), sigma / SPEC.indicator_units
    assert SPEC.noise_multiplier**-2 == pytest.approx(z_delta**-2 + twice_sigma_b**-2, rel=1e-12)
    # The noise on the number of devices within the clip is the twentieth of them that the paper recommends.
    assert twice_sigma_b / 2 == pytest.approx(M / 20, rel=0.01)
    accountant = rdp.RdpAccountant()
    for z in (z_delta, twice_sigma_b):
        accountant.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(z), 5))
    assert accountant.get_epsilon(1e-5) == pytest.approx(claimed_epsilon(SPEC, 5), rel=1e-6)
    assert claimed_epsilon(SPEC, 5) <= 8.0


def test_the_coordinators_noise_is_on_the_bits_too_and_on_the_whole_as_large_as_claimed():
    noise = np.array([draw_central_noise(SPEC, D, SecureRandom()) for _ in range(2000)])
    assert noise.shape == (2000, D + 1)
    # Six standard errors of a standard deviation.
    assert noise[:, -1].std() == pytest.approx(SPEC.sum_noise_units(D), rel=6 / math.sqrt(2 * 2000))
    assert noise[:, 0].std() == pytest.approx(SPEC.sum_noise_units(D), rel=6 / math.sqrt(2 * 2000))
    assert abs(np.corrcoef(noise[:, 0], noise[:, -1])[0, 1]) < 6 / math.sqrt(2000)


def test_too_few_devices_for_the_bit_are_refused_with_how_many_it_takes():
    with pytest.raises(InvalidConfig, match=r"needs \d+ contributors"):
        made_private(linear_task(8, 3), PrivacyWish(**{**_wish(), "min_contributors": 10}))


def _wish():
    return {name: getattr(WISH, name) for name in WISH.__dataclass_fields__}


@pytest.mark.parametrize("changes", [{"mode": "distributed"}, {"mode": "local"}, {"num_bands": 2}])
def test_a_clip_adapts_in_central_mode_with_independent_noise_alone(changes):
    with pytest.raises(InvalidConfig, match="a clip that adapts"):
        made_private(linear_task(8, 3), PrivacyWish(**{**_wish(), **changes}))


def test_a_plan_with_a_clip_that_adapts_comes_back_and_one_without_does_not_mention_it():
    assert decode_plan(encode_plan(PLAN)) == PLAN
    fixed = made_private(linear_task(8, 3), PrivacyWish(**{**_wish(), "adaptive_quantile": None}))
    assert b"adaptive" not in fixed.plan_bytes
    assert (fixed.plan.num_update_numbers, PLAN.num_update_numbers) == (D, D + 1)


# -- on the device


@given(st.lists(finite, min_size=1, max_size=30), st.floats(1e-3, 1e3), st.floats(1e-4, 1e3), st.integers(6, 16))
def test_no_update_with_its_bit_is_longer_than_what_the_noise_was_sized_for(values, clipping_norm, cap, grid_bits):
    spec = msgspec.structs.replace(SPEC, grid_bits=grid_bits)
    delta = np.array(values, np.float32)
    rule = ClipRule(clipping_norm=clipping_norm, owners_cap=cap)
    sent = make_integer_update(delta, spec, SecureRandom(), rule)
    signed = [int(value) for value in sent.view(np.int32)]
    assert sum(value * value for value in signed) <= spec.sensitivity_units(len(values)) ** 2 * (1 + 1e-12)
    assert sum(value * value for value in signed[:-1]) <= spec.update_bound_units(len(values)) ** 2
    is_within = math.sqrt(sum(float(value) ** 2 for value in delta)) <= clipping_norm
    if not math.isclose(math.sqrt(sum(float(value) ** 2 for value in delta)), clipping_norm):
        assert signed[-1] == (spec.indicator_units if is_within else -spec.indicator_units)
    assert not is_overlong(sent, spec)


def test_a_grid_unit_is_worth_what_the_rounds_clip_says():
    for clipping_norm in (0.1, 0.5, 2.0):
        sent = _released(clipping_norm, norm=0.08)
        norm = math.sqrt(float((sent[:-1] ** 2).sum())) / (SPEC.clip_units / clipping_norm)
        assert norm == pytest.approx(0.08, rel=0.02)
        assert sent[-1] == SPEC.indicator_units
    assert _released(0.05, norm=0.08)[-1] == -SPEC.indicator_units


def test_the_owners_cap_rules_whatever_clip_is_published_and_the_bit_stays_that_of_the_update():
    rules = PrivacyRules(budget=RULES.budget, modes=RULES.modes, max_clipping_norm=0.3)
    sent = _released(2.0, norm=1.0, rules=rules)
    assert math.sqrt(float((sent[:-1] ** 2).sum())) / (SPEC.clip_units / 2.0) == pytest.approx(0.3, rel=0.01)
    assert sent[-1] == SPEC.indicator_units


@pytest.mark.parametrize("clipping_norm", [None, 500.1, 0.5 / 1001, math.inf, math.nan])
def test_a_clip_that_the_task_does_not_allow_is_refused_before_training(clipping_norm):
    desk = ReleaseDesk(lambda: PrivacyLedger(None, budget=RULES.budget), RULES)
    with pytest.raises(PrivacyRefused, match="names the clip"):
        desk.check(_job(clipping_norm))


def test_a_clip_for_a_task_whose_clip_is_fixed_is_refused():
    fixed = made_private(linear_task(8, 3), PrivacyWish(**{**_wish(), "adaptive_quantile": None})).plan
    desk = ReleaseDesk(lambda: PrivacyLedger(None, budget=RULES.budget), RULES)
    with pytest.raises(PrivacyRefused, match="task's is fixed"):
        desk.check(_job(5.0, plan=fixed))


# -- at the coordinator


@pytest.mark.parametrize("bit", [0, 1, -SPEC.indicator_units - 1, SPEC.indicator_units + 1, 2**31 - 1, -(2**31)])
def test_a_bit_of_another_size_is_refused(bit):
    update = make_integer_update(np.ones(D, np.float32), SPEC, SecureRandom())
    update[-1] = np.array(bit).astype(np.uint32)
    report = Report(
        round_id=1, nonce=bytes(16), update=split_blob(bytes(4 * D)).ref, piece_digests=b"", num_examples=1,
        aggregation_weight=1.0, metrics=PRIVATE_METRICS,
    )  # fmt: skip
    with pytest.raises(UpdateRejected) as refused:
        admit_update(encode_integer_update(update), report, plan=PLAN, policy=AdmissionPolicy())
    assert refused.value.reason is RejectionReason.NORM_TOO_LARGE


def test_an_update_may_not_use_the_room_of_its_bit():
    update = np.zeros(D + 1, np.int64)
    update[0], update[-1] = math.floor(SPEC.sensitivity_units(D)), SPEC.indicator_units
    assert is_overlong(update.astype(np.uint32), SPEC)
    update[0] = math.floor(SPEC.update_bound_units(D))
    assert not is_overlong(update.astype(np.uint32), SPEC)


@given(st.floats(CLIP.min_clipping_norm, CLIP.max_clipping_norm), st.floats(-1e9, 1e9))
def test_the_clip_moves_by_the_papers_rule_and_never_out_of_its_bounds(clipping_norm, share):
    moved = next_clip(CLIP, clipping_norm, share)
    assert CLIP.allows(moved)
    if abs(share) < 10 and CLIP.allows(expected := clipping_norm * math.exp(-0.2 * (share - 0.5))):
        assert moved == pytest.approx(expected)


def test_absent_devices_count_as_a_half():
    assert [share_below(sum_, 7, 10) for sum_ in (70, -70, 0, 7 * (6 - 2))] == [1.0, 0.0, 0.5, 0.7]


def _aggregator(plan=PLAN):
    return PrivateSumAggregator(NumpyMeanAggregator(plan.weights, AggregationSpec()), plan, denominator=M)


def _round(aggregator, state, norms):
    accumulator = aggregator.begin(state)
    rule = ClipRule(clipping_norm=round_clip(PLAN, state))
    for norm in norms:
        delta = np.full(D, norm / math.sqrt(D), np.float32)
        integers = make_integer_update(delta, SPEC, SecureRandom(), rule)
        accumulator.fold(
            ClientUpdate(model_delta=(), integers=integers, aggregation_weight=1.0, metrics=PRIVATE_METRICS)
        )
    return accumulator.finish()


def test_the_mean_is_in_the_models_units_by_the_clip_of_its_own_round():
    nearly_none = msgspec.structs.replace(PLAN, privacy=msgspec.structs.replace(SPEC, noise_multiplier=1e-3))
    aggregator = _aggregator(nearly_none)
    before = aggregator.initialize(BUNDLE.initial_weights)
    for norm, expected in ((0.2, 0.2), (3.0, 0.5 * math.exp(-0.1))):
        after = _round(aggregator, before, [norm] * M).state
        moved = aggregator.weights(after)[0] - aggregator.weights(before)[0]
        np.testing.assert_allclose(moved, expected / math.sqrt(D), rtol=0.01)
        before = after


def test_the_clip_finds_the_quantile_of_the_norms():
    rng = np.random.default_rng(3)
    aggregator = _aggregator()
    state = aggregator.initialize(BUNDLE.initial_weights)
    for _ in range(80):  # from 0.5 to 10: e^0.1 a round at the most
        result = _round(aggregator, state, 10.0 * np.exp(0.3 * rng.normal(size=M)))
        assert result.metrics["clipping_norm"] == round_clip(PLAN, state)
        state = result.state
    assert round_clip(PLAN, state) == pytest.approx(10.0, rel=0.15)


def test_the_clip_is_stored_with_the_model_in_one_state_and_found_again(tmp_path):
    aggregator = _aggregator()
    state = aggregator.initialize(BUNDLE.initial_weights)
    assert round_clip(PLAN, state) == 0.5
    bare = ServerState(num_commits=0, num_weights=2, leaves=BUNDLE.initial_weights)
    assert round_clip(PLAN, bare) == 0.5
    state = _round(aggregator, state, [100.0] * M).state
    assert 0.5 < round_clip(PLAN, state) < 0.5 * math.exp(0.2)
    CheckpointStore(tmp_path).save(state)
    found = CheckpointStore(tmp_path).load_latest()
    assert round_clip(PLAN, found) == round_clip(PLAN, state)
    _round(aggregator, found, [100.0] * M)


@pytest.mark.parametrize("leaf", [np.array(1e9), np.array(0.5, np.float32), np.zeros(3)])
def test_a_state_without_a_clip_of_this_task_is_refused(leaf):
    aggregator = _aggregator()
    state = aggregator.initialize(BUNDLE.initial_weights)
    with pytest.raises(StateMismatch, match="no clip"):
        aggregator.begin(ServerState(num_commits=1, num_weights=2, leaves=(*state.leaves[:-1], leaf)))


def test_a_plan_cannot_name_a_first_clip_outside_its_own_bounds():
    with pytest.raises(ValueError, match="outside"):
        PrivacySpec(
            mode="central", clipping_norm=3.0, noise_multiplier=1.0, num_rounds=1, target_epsilon=1.0,
            adaptive_clip=AdaptiveClip(indicator_weight=0.1, min_clipping_norm=0.1, max_clipping_norm=2.0),
        )  # fmt: skip


# -- a fleet


def _rounds(quantile, num_commits):
    scenario = load_scenario("digits", num_devices=40, partition="iid", alpha=1.0, seed=0)
    task = linear_task(64, 10, batch_size=8, num_epochs=1, learning_rate=0.5)
    wish = PrivacyWish(
        epsilon=200.0, num_rounds=12, clipping_norm=200.0, min_contributors=30, mode="central",
        adaptive_quantile=quantile,
    )  # fmt: skip
    report = run_virtual(
        VirtualRun(
            scenario=scenario,
            plan=made_private(task, wish).plan,
            policy=RoundPolicy(report_goal=30, min_reports=30, over_selection=1.0, selection_timeout_s=600.0),
            schedule=RoundSchedule(num_commits=num_commits),
            world=BadWorld(),
            seed=1,
            privacy=PrivacyRules(
                budget=PrivacyBudget(epsilon=300.0), min_noise_multiplier=0.0, modes=frozenset({"central"})
            ),
        )
    )
    assert (report.num_commits, report.num_abandoned) == (num_commits, 0)
    return report.rounds


def test_from_a_clip_that_is_far_too_large_a_fleet_finds_its_way_down():
    clips = [summary.metrics["clipping_norm"] for summary in _rounds(0.5, 12)]
    assert clips[0] == 200.0
    assert clips[-1] < 0.5 * clips[0]
    assert "clipping_norm" not in _rounds(None, 1)[0].metrics
