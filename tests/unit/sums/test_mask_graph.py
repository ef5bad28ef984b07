"""Who shares a mask with whom."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_sum.mask_graph import MaskGraph, roster_digest, secrets_to_open

PINNED_DIGEST = "ae14a5fd1cf0a9a97b9a9e6093111f57b168b67b95fa766dd360111789bf6373"
PINNED_NEIGHBOURS = ("d00030", "d00033", "d00037", "d00055")


def _names(count):
    return tuple(f"d{index:05d}" for index in range(count))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40).map(lambda half: 2 * half), st.binary(min_size=32, max_size=32))
def test_neighbours_are_mutual_and_everybody_has_as_many(num_devices, num_neighbours, context):
    names = _names(num_devices)
    graph = MaskGraph(names, context=context, num_neighbours=num_neighbours)
    for name in names:
        neighbours = graph.neighbours(name)
        assert len(neighbours) == graph.degree
        assert list(neighbours) == sorted(set(neighbours) - {name})
        assert all(name in graph.neighbours(other) for other in neighbours)
    assert graph.degree == (num_devices - 1 if num_devices <= 64 else min(num_neighbours, num_devices - 1))


def test_up_to_64_devices_everybody_is_everybodys_neighbour():
    assert MaskGraph(_names(64), context=bytes(32), num_neighbours=2).degree == 63
    assert MaskGraph(_names(65), context=bytes(32), num_neighbours=2).degree == 2


def test_another_round_or_another_roster_puts_devices_beside_others():
    names = _names(100)
    one = MaskGraph(names, context=bytes(32), num_neighbours=8)
    assert one.neighbours("d00000") == MaskGraph(names, context=bytes(32), num_neighbours=8).neighbours("d00000")
    others = [
        MaskGraph(names, context=b"\1" * 32, num_neighbours=8),
        MaskGraph(names[:-1], context=bytes(32), num_neighbours=8),
    ]
    for other in others:
        assert sum(one.neighbours(name) == other.neighbours(name) for name in names[:-1]) < 5


def test_a_graph_is_pinned():
    # Both sides of the wire must compute the same one, in every version.
    graph = MaskGraph(_names(66), context=bytes(range(32)), num_neighbours=4)
    assert graph.digest.hex() == PINNED_DIGEST
    assert graph.neighbours("d00000") == PINNED_NEIGHBOURS


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 120), st.randoms(use_true_random=False))
def test_all_that_are_well_connected_have_half_their_neighbours_and_none_was_left_out_needlessly(num_devices, rng):
    names = _names(num_devices)
    graph = MaskGraph(names, context=os.urandom(32), num_neighbours=8)
    arrived = {name for name in names if rng.random() < 0.6}
    alive = graph.well_connected(arrived)
    assert alive <= arrived
    for name in alive:
        assert sum(other in alive for other in graph.neighbours(name)) >= graph.least_arrived
    # The largest such set: adding back everybody that was left out gives the same again.
    assert graph.well_connected(alive) == alive
    for name in arrived - alive:
        assert name not in graph.well_connected(alive | {name})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.randoms(use_true_random=False))
def test_of_no_device_both_sides_are_opened(num_devices, rng):
    names = _names(num_devices)
    graph = MaskGraph(names, context=bytes(32), num_neighbours=6)
    contributors = {name for name in names if rng.random() < 0.7}
    opened = secrets_to_open(graph, contributors)
    assert len(set(opened)) == len(opened)
    assert {name for name, peer in opened if peer is None} == contributors
    for name, peer in opened:
        assert name in contributors
        assert peer not in contributors
    dropped = {(name, peer) for name in contributors for peer in graph.neighbours(name) if peer not in contributors}
    assert {pair for pair in opened if pair[1] is not None} == dropped


@pytest.mark.parametrize("names", [(), ("b", "a"), ("a", "a")], ids=["empty", "not ascending", "twice"])
def test_what_is_no_roster_is_refused(names):
    with pytest.raises(ValueError, match="roster"):
        MaskGraph(names, context=bytes(32), num_neighbours=4)


@pytest.mark.parametrize("num_neighbours", [0, -2, 3])
def test_neighbours_come_in_pairs(num_neighbours):
    with pytest.raises(ValueError, match="even"):
        MaskGraph(("a", "b"), context=bytes(32), num_neighbours=num_neighbours)


def test_two_rosters_that_spell_the_same_have_different_names():
    assert roster_digest(("ab", "c")) != roster_digest(("a", "bc"))
