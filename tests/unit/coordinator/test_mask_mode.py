"""The coordinator's side of masks: whom it asks, whom it leaves out of the sum, and what it makes of lies."""

import msgspec
import numpy as np
import pytest

from coordinator.errors import InvalidConfig
from coordinator.mask_mode import MaskMode
from coordinator.sum_mode import Answered, SealedSet
from coordinator.sum_modes import sum_mode_of
from secure_sum.errors import OpeningFailed
from secure_sum.shamir import PRIME, ShareWeights
from simulators.masked_round import MaskedRoundInMemory, masked_total
from wire_protocol.blobs import split_blob
from wire_protocol.confidentiality import MaskedSums, SumOpener
from wire_protocol.plan import TensorSpec, TrainingPlan
from wire_protocol.privacy_spec import PrivacySpec

NUM_VALUES = 6
PRIVACY = PrivacySpec(
    mode="distributed", clipping_norm=1.0, noise_multiplier=1.0, min_contributors=3, num_rounds=3, target_epsilon=50.0
)


def _plan(round_):
    committee = tuple(SumOpener(device_id=name, box_key=round_.sealing_keys[name]) for name in round_.committee)
    masks = MaskedSums(
        committee=committee,
        threshold=round_.threshold,
        num_neighbours=round_.num_neighbours,
        directory=split_blob(b"directory").ref,
    )
    return TrainingPlan(
        batch_size=1, learning_rate=0.1, input_shape=(1,), num_classes=2, privacy=PRIVACY, confidentiality=masks,
        weights=(TensorSpec(shape=(NUM_VALUES,)),),
    )  # fmt: skip


def _sealed_set(round_, updates):
    sealed = {name: round_.seal(name, values) for name, values in updates.items()}
    order = round_.order(round_.opening(sealed), sealed, round_.committee[0])
    return SealedSet(
        population=order.population, task_id=order.task_id, plan_sha256=order.plan_sha256, round_id=order.round_id,
        num_values=NUM_VALUES, headers=tuple(update.header(name) for name, update in sorted(sealed.items())),
        roster=round_.roster, total=masked_total(sealed, list(sealed)), payload_of=lambda name: sealed[name].payload,
        directory=b"directory",
    )  # fmt: skip


def _updates(names):
    return {name: np.full(NUM_VALUES, index, np.uint32) for index, name in enumerate(names, start=1)}


def _answer(round_, member, order, data=None):
    result = round_.ask(order, member)
    return Answered(
        opener_id=member, order=order, result=result if data is None else msgspec.structs.replace(result, data=data)
    )


@pytest.fixture
def round_():
    return MaskedRoundInMemory(num_devices=6, num_members=7)


def test_two_members_more_than_needed_are_asked_and_the_sum_is_opened_with_as_many_as_are_needed(round_):
    mode, sealed = MaskMode(_plan(round_)), _sealed_set(round_, _updates(round_.roster[:5]))
    orders = mode.orders(sealed, [], frozenset())
    assert list(orders) == list(round_.committee)[:7]
    assert round_.threshold == 5
    answers = []
    for member in round_.committee[: round_.threshold]:
        assert mode.opened(sealed, answers) is None
        answers.append(_answer(round_, member, orders[member]))
    opened = mode.opened(sealed, answers)
    assert opened.total.tolist() == [1 + 2 + 3 + 4 + 5] * NUM_VALUES
    assert opened.num_contributors == 5
    assert orders[round_.committee[0]].ask.missing == (round_.roster[5],)
    assert orders[round_.committee[0]].ask.directory == b"directory"


def test_silent_members_are_replaced_and_with_too_few_left_nobody_is_asked(round_):
    mode, sealed = MaskMode(_plan(round_)), _sealed_set(round_, _updates(round_.roster))
    silent = frozenset(round_.committee[:2])
    assert set(mode.orders(sealed, [], silent)) == set(round_.committee[2:])
    assert mode.orders(sealed, [], frozenset(round_.committee[:3])) == {}


def test_fewer_contributors_than_the_plan_demands_are_not_asked_about(round_):
    mode = MaskMode(_plan(round_))
    # Of six devices two have arrived: neither has half of its neighbours.
    assert mode.orders(_sealed_set(round_, _updates(round_.roster[:3])), [], frozenset()) == {}


def test_a_coordinator_that_was_restarted_asks_the_same_word_for_word(round_):
    sealed = _sealed_set(round_, _updates(round_.roster[:4]))
    one, other = (MaskMode(_plan(round_)).orders(sealed, [], frozenset()) for _ in range(2))
    assert one == other


def test_a_device_whose_neighbours_did_not_come_is_taken_out_of_the_total_again():
    round_ = MaskedRoundInMemory(num_devices=70, num_members=3, num_neighbours=4)
    lonely = round_.roster[0]
    gone = set(round_.graph.neighbours(lonely)[:3])
    updates = _updates([name for name in round_.roster if name not in gone])
    mode, sealed = MaskMode(_plan(round_)), _sealed_set(round_, updates)
    orders = mode.orders(sealed, [], frozenset())
    asked_about = [contributor.device_id for contributor in orders[round_.committee[0]].contributors]
    assert lonely not in asked_about
    assert lonely in orders[round_.committee[0]].ask.missing
    opened = mode.opened(sealed, [_answer(round_, member, order) for member, order in orders.items()])
    assert opened.num_contributors == len(asked_about) < len(updates)
    assert opened.total.tolist() == np.sum([updates[name] for name in asked_about], axis=0).tolist()


def test_a_lie_among_just_enough_answers_is_noticed_and_found_when_more_have_come(round_):
    mode, sealed = MaskMode(_plan(round_)), _sealed_set(round_, _updates(round_.roster[:5]))
    orders = mode.orders(sealed, [], frozenset())
    answers = [_answer(round_, member, orders[member]) for member in round_.committee]
    lie = bytes(len(answers[0].result.data))
    answers[0] = _answer(round_, round_.committee[0], orders[round_.committee[0]], lie)
    assert mode.opened(sealed, answers[:5]) is None, "a sum that honest devices cannot have made"
    # Everybody else is asked now, and with t + 2 answers the liar is known.
    assert set(mode.orders(sealed, answers[:5], frozenset())) == set(round_.committee[5:])
    assert mode.opened(sealed, answers).total.tolist() == [15] * NUM_VALUES


def test_a_lie_that_makes_another_seed_out_of_a_seed_is_noticed_by_the_range_of_the_sum(round_):
    """Most lies put together no seed at all; this one does, and the mask that is taken off is another one."""
    mode, sealed = MaskMode(_plan(round_)), _sealed_set(round_, _updates(round_.roster[:5]))
    orders = mode.orders(sealed, [], frozenset())
    answers = [_answer(round_, member, orders[member]) for member in round_.committee]
    data = answers[0].result.data
    weight = ShareWeights(range(1, 6))._weights[0]
    # The secret goes up by one.
    share = (int.from_bytes(data[:32], "little") + pow(weight, -1, PRIME)) % PRIME
    lie = share.to_bytes(32, "little") + data[32:]
    answers[0] = _answer(round_, round_.committee[0], orders[round_.committee[0]], lie)
    assert mode.opened(sealed, answers[:5]) is None
    assert mode.opened(sealed, answers).total.tolist() == [15] * NUM_VALUES


def test_an_answer_that_is_none_counts_as_silence(round_):
    mode, sealed = MaskMode(_plan(round_)), _sealed_set(round_, _updates(round_.roster[:5]))
    orders = mode.orders(sealed, [], frozenset())
    answers = [_answer(round_, member, orders[member]) for member in round_.committee]
    answers[0] = _answer(round_, round_.committee[0], orders[round_.committee[0]], b"short")
    assert mode.opened(sealed, answers[:5]) is None
    assert mode.opened(sealed, answers[:6]).total.tolist() == [15] * NUM_VALUES


def test_with_everybodys_answers_and_no_sum_the_opening_has_failed(round_):
    mode, sealed = MaskMode(_plan(round_)), _sealed_set(round_, _updates(round_.roster[:5]))
    orders = mode.orders(sealed, [], frozenset())
    answers = [_answer(round_, member, orders[member]) for member in round_.committee]
    for place in (0, 1, 2):
        lie = bytes(len(answers[0].result.data))
        answers[place] = _answer(round_, round_.committee[place], orders[round_.committee[place]], lie)
    with pytest.raises(OpeningFailed):
        mode.opened(sealed, answers)


def test_a_plan_with_a_committee_has_this_mode_and_another_has_not(round_):
    plan = _plan(round_)
    assert isinstance(sum_mode_of(plan), MaskMode)
    without = msgspec.structs.replace(plan, confidentiality=msgspec.UNSET)
    assert sum_mode_of(without) is None
    with pytest.raises(InvalidConfig, match="no committee"):
        MaskMode(without)
