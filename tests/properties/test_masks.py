"""Masks mode: the opened sum is the plain sum, bit for bit, whoever drops out, comes late, comes twice or is offline."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_sum.errors import MalformedSealed, OpeningFailed, SharesDisagree
from secure_sum.pairwise_masks import CommitteePacket, decode_packet
from secure_sum.sealed_update import decode_sealed_update, encode_sealed_update, vector_of
from simulators.masked_round import MaskedRoundInMemory, masked_total


def _updates(rng, names, num_values):
    """Updates over the whole word: sums wrap."""
    return {name: np.array([rng.getrandbits(32) for _ in range(num_values)], np.uint32) for name in names}


def _sum(updates):
    return np.sum(list(updates), axis=0, dtype=np.uint32)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 14),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.integers(3, 7),
    st.randoms(use_true_random=False),
)
def test_the_opened_sum_is_the_plain_sum_with_dropouts_and_members_offline(devices, values, dropouts, members, rng):
    round_ = MaskedRoundInMemory(num_devices=devices, num_members=members)
    updates = _updates(rng, round_.roster, values)
    arrived = [name for name in round_.roster if rng.random() >= dropouts]
    if len(round_.graph.well_connected(arrived)) < 2:
        return
    sealed = {name: round_.seal(name, updates[name]) for name in arrived}
    online = rng.sample(round_.committee, round_.threshold)
    contributors = round_.opening(arrived).contributors
    assert round_.plain_sum(sealed, online).tolist() == _sum(updates[name] for name in contributors).tolist()


@pytest.mark.parametrize("dropouts", [0, 7, 21], ids=["none", "10 %", "30 %"])
def test_on_a_sparse_graph_the_sum_is_exact_too_and_lonely_devices_are_left_out(dropouts):
    rng = np.random.default_rng(dropouts)
    round_ = MaskedRoundInMemory(num_devices=70, num_neighbours=6)
    gone = set(rng.choice(round_.roster, dropouts, replace=False).tolist())
    arrived = [name for name in round_.roster if name not in gone]
    updates = {name: rng.integers(0, 2**32, 5, dtype=np.uint32) for name in arrived}
    opening = round_.opening(arrived)
    assert (not opening.left_out) or dropouts == 21
    sealed = {name: round_.seal(name, updates[name]) for name in arrived}
    assert round_.plain_sum(sealed).tolist() == _sum(updates[name] for name in opening.contributors).tolist()


def test_a_device_without_enough_neighbours_counts_as_not_arrived_and_costs_the_sum_nothing():
    round_ = MaskedRoundInMemory(num_devices=80, num_neighbours=4)
    lonely = round_.roster[0]
    gone = set(round_.graph.neighbours(lonely)[:3])
    arrived = [name for name in round_.roster if name not in gone]
    updates = {name: np.full(3, index, np.uint32) for index, name in enumerate(arrived, start=1)}
    opening = round_.opening(arrived)
    assert lonely in opening.left_out
    assert lonely in opening.missing
    sealed = {name: round_.seal(name, updates[name]) for name in arrived}
    total = masked_total(sealed, arrived)
    for name in opening.left_out:
        total -= vector_of(sealed[name].payload, 3)
    for number, member in enumerate(round_.committee, start=1):
        opening.take(number, round_.ask(round_.order(opening, sealed, member), member).data)
    assert opening.take_masks_off(total).tolist() == _sum(updates[name] for name in opening.contributors).tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(3, 10), st.randoms(use_true_random=False))
def test_late_and_repeated_updates_change_nothing(devices, rng):
    round_ = MaskedRoundInMemory(num_devices=devices)
    updates = _updates(rng, round_.roster, 4)
    late = rng.choice(round_.roster)
    sealed = {name: round_.seal(name, updates[name]) for name in round_.roster}
    punctual = {name: update for name, update in sealed.items() if name != late}
    if late in round_.opening(punctual).contributors or len(round_.opening(punctual).contributors) < 2:
        return
    expected = _sum(updates[name] for name in punctual)
    for _ in range(2):
        # Repeated by the network: the same bytes are the same update, and the same question gets the same answer.
        again = {
            name: decode_sealed_update(encode_sealed_update(update), max_bytes=10**6)
            for name, update in punctual.items()
        }
        assert round_.plain_sum(again).tolist() == expected.tolist()


def test_with_one_answer_too_few_nothing_is_opened():
    round_ = MaskedRoundInMemory(num_devices=4, num_members=4)
    sealed = {name: round_.seal(name, np.zeros(2, np.uint32)) for name in round_.roster}
    with pytest.raises(OpeningFailed, match="answers"):
        round_.plain_sum(sealed, round_.committee[: round_.threshold - 1])


def _with_answers(num_members, lies):
    """An opening with every member's answer, in which some members lie about one share."""
    round_ = MaskedRoundInMemory(num_devices=5, num_members=num_members)
    arrived = round_.roster[:4]
    updates = {name: np.arange(6, dtype=np.uint32) * index for index, name in enumerate(arrived)}
    sealed = {name: round_.seal(name, updates[name]) for name in arrived}
    opening = round_.opening(arrived)
    for number, member in enumerate(round_.committee, start=1):
        data = bytearray(round_.ask(round_.order(opening, sealed, member), member).data)
        if number in lies:
            data[32 * number] ^= 1
        opening.take(number, bytes(data))
    return opening, masked_total(sealed, arrived), _sum(updates.values())


@pytest.mark.parametrize("liar", [1, 3, 7])
def test_one_lying_member_is_found_and_left_out_if_two_more_than_needed_have_answered(liar):
    opening, total, expected = _with_answers(7, {liar})
    assert opening.num_answers == 7
    assert opening.take_masks_off(total).tolist() == expected.tolist()


def test_more_lies_than_can_be_told_from_the_truth_give_no_sum():
    opening, total, _ = _with_answers(7, {1, 2})
    with pytest.raises(SharesDisagree, match="contradict"):
        opening.take_masks_off(total)


def test_a_second_answer_of_a_member_replaces_nothing():
    opening, total, expected = _with_answers(4, set())
    opening.take(1, bytes(opening.answer_bytes))
    assert opening.take_masks_off(total).tolist() == expected.tolist()


@pytest.mark.parametrize(("number", "change"), [(0, 0), (5, 0), (1, 1), (1, -32)])
def test_an_answer_of_nobody_or_of_another_length_is_refused(number, change):
    opening, _, _ = _with_answers(4, set())
    with pytest.raises(MalformedSealed):
        opening.take(number, bytes(opening.answer_bytes + change))


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=120), st.binary(min_size=38, max_size=70).map(lambda rest: b"FM\x01" + rest)))
def test_whatever_bytes_come_a_packet_is_read_or_refused(data):
    with contextlib.suppress(MalformedSealed):
        assert isinstance(decode_packet(data), CommitteePacket)


def test_sealing_leaves_the_update_itself_as_it_was():
    round_ = MaskedRoundInMemory(num_devices=3)
    values = np.arange(10, dtype=np.uint32)
    update = round_.seal("d00000", values)
    assert values.tolist() == list(range(10))
    assert vector_of(update.payload, 10).tolist() != list(range(10))
