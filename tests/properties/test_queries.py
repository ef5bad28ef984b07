"""Questions to a fleet: what devices contribute is bounded, and answers without noise are exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.privacy.integer_update import clip_and_round, make_integer_update
from integer_noise.noise_tables import polya_table
from integer_noise.secure_random import SecureRandom
from wire_protocol.dyadic_tree import cumulative, leaf_counts, num_nodes, path_to
from wire_protocol.integer_updates import decode_sum
from wire_protocol.query import Query, contribution
from wire_protocol.query_answer import answer_query

KINDS = {
    "count": {"edges": (10.0, 20.0)},
    "mean": {"edges": (0.0, 40.0)},
    "histogram": {"edges": (0.0, 10.0, 15.0, 20.0, 40.0)},
    "quantiles": {"edges": (0.0, 40.0), "num_bins": 64},
}
VALUES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(-10.0, 50.0))


def _query(kind="count", **values):
    settings_ = {"name": "q", "period": "2026-11", "kind": kind, "epsilon": 1.0, "min_contributors": 3}
    return Query(**(settings_ | KINDS[kind] | values))


def _exact_sum(query, values):
    """The integers of all devices without their noise."""
    spec = query.privacy_spec()
    rows = [clip_and_round(contribution(query, value), spec, SecureRandom()).values for value in values]
    return np.sum(rows, axis=0)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(KINDS)), VALUES, st.sampled_from([0.02, 0.1, 1.0, 9.0]))
def test_whatever_a_device_holds_its_vector_is_no_longer_than_one(kind, value, epsilon):
    query = _query(kind, epsilon=epsilon)
    vector = contribution(query, value)
    assert vector.shape == (query.num_cells,)
    assert np.abs(vector.astype(np.float64)).sum() <= 1.0
    rounded = clip_and_round(vector, query.privacy_spec(), SecureRandom())
    assert not rounded.was_clipped
    assert np.abs(rounded.values).sum() <= query.privacy_spec().sensitivity_units(query.num_cells)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5.0, 45.0), min_size=3, max_size=60))
def test_counts_and_histograms_without_noise_are_exact(values):
    count = answer_query(_query(), _exact_sum(_query(), values), num_reports=len(values)).estimates[0].value
    assert count == sum(10 <= value <= 20 for value in values)
    query = _query("histogram")
    found = [bin_.value for bin_ in answer_query(query, _exact_sum(query, values), num_reports=len(values)).estimates]
    assert found == np.histogram(values, query.edges)[0].tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-100, 500).map(lambda tenths: tenths / 10), min_size=3, max_size=60))
def test_quantiles_without_noise_are_within_a_bin_of_the_exact_ones(values):
    query = _query("quantiles")
    answer = answer_query(query, _exact_sum(query, values), num_reports=len(values), probabilities=(0.1, 0.5, 0.9))
    clamped = np.clip(values, 0, 40)
    width = 40 / 64
    for p, estimate in zip((0.1, 0.5, 0.9), answer.estimates, strict=True):
        # Some value has at most a share p below it and at least p at or below it; the answer is in that value's bin.
        near = clamped[(clamped >= estimate.value - width - 1e-6) & (clamped <= estimate.value + width + 1e-6)]
        assert any((clamped < v).mean() <= p + 1e-9 and (clamped <= v).mean() >= p - 1e-9 for v in near)


def test_a_mean_without_noise_is_exact_but_for_rounding_at_random():
    values = np.random.default_rng(1).uniform(-5, 45, 2000)
    query = _query("mean")
    mean, devices = answer_query(query, _exact_sum(query, values), num_reports=2000).estimates
    assert devices.value == 2000
    # A rounding has a standard deviation of at most half a unit, of which half the range has 128: six of their mean's.
    assert mean.value == pytest.approx(np.clip(values, 0, 40).mean(), abs=6 * 0.5 * 20 / 128 / np.sqrt(2000))


def test_a_device_without_a_value_adds_nothing_to_any_answer():
    for kind in KINDS:
        assert not contribution(_query(kind), None).any()
        assert not contribution(_query(kind), float("nan")).any()


@given(st.integers(1, 6), st.data())
def test_a_tree_whose_levels_agree_gives_its_bins_exactly(num_levels, data):
    leaves = data.draw(st.lists(st.integers(0, 1 << num_levels).map(lambda i: i % (1 << num_levels)), max_size=40))
    nodes = np.zeros(num_nodes(num_levels))
    for leaf in leaves:
        path = path_to(leaf, num_levels)
        assert len(set(path)) == num_levels
        nodes[list(path)] += 1
    expected = np.bincount(leaves, minlength=1 << num_levels) if leaves else np.zeros(1 << num_levels)
    np.testing.assert_allclose(leaf_counts(nodes, num_levels), expected, atol=1e-9)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=64))
def test_a_distribution_never_falls_and_is_not_lifted_by_cutting_bins_at_zero(counts):
    sums = cumulative(np.array(counts))
    assert (np.diff(sums) >= 0).all()
    assert sums[0] >= 0
    if min(np.cumsum(counts)) >= 0:
        # The total stays between the true one and the largest partial sum; cut bins would add up to more.
        assert sums[-1] <= max(np.cumsum(counts)) + 1e-9


def test_negative_bins_are_summed_before_anything_is_cut():
    # Ten bins of noise around nothing, then a hundred devices: cut at 0 first, the median would move into the noise.
    counts = np.array([30.0, -30.0] * 20 + [100.0])
    assert cumulative(counts)[-2] <= 30
    assert cumulative(counts)[-1] == pytest.approx(100, abs=30)
    assert np.maximum(counts, 0).sum() == 700


@pytest.mark.parametrize("mode", ["distributed", "local"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_error_bars_hold_the_exact_count_nineteen_times_in_twenty(kind, mode):
    query = _query(kind, min_contributors=8, mode=mode, **({"num_bins": 8} if kind == "quantiles" else {}))
    values = np.linspace(1.0, 39.0, 8)
    exact = answer_query(query, _exact_sum(query, values), num_reports=8)
    spec, hits, total = query.privacy_spec(), 0, 0
    for _ in range(60):
        noisy = np.sum(
            [make_integer_update(contribution(query, value), spec, SecureRandom()) for value in values],
            axis=0, dtype=np.uint32,
        )  # fmt: skip
        answer = answer_query(query, decode_sum(noisy), num_reports=8)
        for ours, theirs in zip(answer.estimates, exact.estimates, strict=True):
            total += 1
            hits += ours.low - 1e-6 <= theirs.value <= ours.high + 1e-6
    # 95 % at least; by chance alone below 80 % of 60 or more less than once in a million.
    assert hits / total >= 0.80


def test_the_noise_of_the_least_cohort_is_two_sided_geometric_of_the_epsilon_that_is_claimed():
    query = _query(epsilon=1.0, min_contributors=50)
    spec = query.privacy_spec()
    assert 1 / spec.noise_multiplier == pytest.approx(query.epsilon)
    table, random, scale = polya_table(spec.sum_noise_units(1), 50), SecureRandom(), spec.sum_noise_units(1)
    sums = (table.sample(50 * 4000, random) - table.sample(50 * 4000, random)).reshape(50, 4000).sum(axis=0)
    for scales in (0.5, 1.0, 2.0):
        expected = np.exp(-scales)
        # Six standard errors of a share of 4,000.
        assert (np.abs(sums) > scales * scale).mean() == pytest.approx(expected, abs=6 * np.sqrt(expected / 4000))


def test_in_local_mode_every_answer_has_the_whole_noise_by_itself():
    query, random = _query(epsilon=1.0, mode="local", min_contributors=50), SecureRandom()
    spec, value = query.privacy_spec(), contribution(_query(), 15.0)
    scale = spec.sum_noise_units(1)
    said = np.array([make_integer_update(value, spec, random)[0] for _ in range(2000)]).view(np.int32) - 256
    # Six standard errors of a share of 2,000. A share of the noise of 50 would be next to nothing.
    assert (np.abs(said) > scale).mean() == pytest.approx(np.exp(-1.0), abs=6 * np.sqrt(np.exp(-1.0) / 2000))
    shared = answer_query(_query(min_contributors=50), [0], num_reports=50).noise_stddev
    assert answer_query(query, [0], num_reports=50).noise_stddev == pytest.approx(shared * np.sqrt(50))


def test_with_too_few_answers_there_is_none():
    with pytest.raises(ValueError, match="fewer than 3 there is none"):
        answer_query(_query(), [512], num_reports=2)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"edges": (3.0, 1.0)}, "rise"),
        ({"edges": (0.0, float("nan"))}, "rise"),
        ({"edges": (0.0, 1.0, 2.0)}, "two bounds"),
        ({"epsilon": 0.0}, "epsilon must be"),
        ({"epsilon": float("nan")}, "epsilon must be"),
        ({"min_contributors": 1}, "at least 2"),
        ({"kind": "quantiles", "num_bins": 100}, "power of 2"),
        ({"name": "../x"}, "not allowed"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(values, text):
    with pytest.raises(Exception, match=text):
        Query(
            **(
                {"name": "q", "period": "p", "kind": "count", "epsilon": 1.0, "min_contributors": 3}
                | KINDS["count"]
                | values
            )
        )
