"""Masks for three helpers: the sum is exact, and a helper answers for one well-signed set of a round, or not at all."""

import dataclasses
import hashlib
import itertools
import os

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_sum.context import round_context
from secure_sum.contributor_rules import ContributorRules
from secure_sum.errors import (
    BoxNotOpened,
    MalformedSealed,
    OpeningFailed,
    OpeningRefused,
    OversizedSealed,
    RefusalCause,
)
from secure_sum.helper_rules import HelperRules, answer_as_helper
from secure_sum.helper_shares import (
    SealingOrder,
    divide_parts,
    parts_of,
    read_seeds,
    seal_to_helpers,
    subtract_helper_masks,
)
from secure_sum.keystream import mask_of
from secure_sum.openings import HelperAsk, KeyAsk, OpeningOrder, contributor_of, decode_order, encode_order
from secure_sum.sealed_box import BoxRoute, make_box_key, open_box, seal_box
from secure_sum.sealed_update import decode_sealed_update, encode_sealed_update, vector_of
from wire_protocol.opening_messages import OpeningRefusal

PLAN = hashlib.sha256(b"plan").digest()


class Book(dict):
    """A set book in memory."""

    def claim(self, context, set_digest):
        return self.setdefault(context, set_digest) == set_digest


class Fleet:
    """Devices and three helpers; `order` is what an honest coordinator would ask helper `index`."""

    def __init__(self, num_devices=5, num_values=7, num_needed=2, min_contributors=2, demanded=2):
        self.num_needed, self.num_values, self.demanded = num_needed, num_values, demanded
        self.context = round_context(population="p", task_id="t", plan_sha256=PLAN, round_id=3)
        self.identities = {f"d{i:04d}": Ed25519PrivateKey.generate() for i in range(num_devices)}
        registered = {name: key.public_key().public_bytes_raw() for name, key in self.identities.items()}
        self.helper_keys = [make_box_key(os.urandom) for _ in range(3)]
        self.rules = [
            HelperRules(
                helper_id=f"h{i}",
                key=key,
                contributors=ContributorRules(population="p", registered=registered, min_contributors=min_contributors),
            )
            for i, key in enumerate(self.helper_keys)
        ]
        self.books = [Book() for _ in range(3)]

    def seal(self, device_id, values, *, context=None, demanded=None):
        helpers = tuple((f"h{i}", key.public_key().public_bytes_raw()) for i, key in enumerate(self.helper_keys))
        order = SealingOrder(
            context=context or self.context,
            device_id=device_id,
            min_contributors=self.demanded if demanded is None else demanded,
            helpers=helpers,
            num_needed=self.num_needed,
        )
        return seal_to_helpers(values, order, sign=self.identities[device_id].sign, random_bytes=os.urandom)

    def all_sealed(self, rng=None):
        rng = rng or np.random.default_rng(0)
        self.values = {name: rng.integers(0, 2**32, self.num_values, np.uint32) for name in self.identities}
        return {name: self.seal(name, values) for name, values in self.values.items()}

    def order(self, sealed, index, parts, **changes):
        contributors = [contributor_of(update.header(name), box_index=index) for name, update in sorted(sealed.items())]
        return msgspec.structs.replace(
            OpeningOrder(
                population="p", task_id="t", plan_sha256=PLAN, round_id=3, num_values=self.num_values,
                contributors=tuple(contributors), ask=HelperAsk(parts=parts),
            ),
            **changes,
        )  # fmt: skip

    def ask(self, order, index):
        return answer_as_helper(
            decode_order(encode_order(order), max_bytes=10**8), self.rules[index], self.books[index]
        )

    def open(self, sealed, helpers=(0, 1, 2)):
        total = sum(
            (vector_of(update.payload, self.num_values) for update in sealed.values()),
            np.zeros(self.num_values, np.uint32),
        )
        answers = {}
        for helper, parts in divide_parts(self.num_needed, helpers).items():
            answers[parts] = vector_of(self.ask(self.order(sealed, helper, parts), helper).data, self.num_values)
        return subtract_helper_masks(total, answers, num_needed=self.num_needed)


def refusal(fleet, order, index=0):
    with pytest.raises(OpeningRefused) as caught:
        fleet.ask(order, index)
    return caught.value.cause


@pytest.mark.parametrize(
    ("num_needed", "helpers"), [(2, (0, 1)), (2, (0, 2)), (2, (2, 1)), (2, (0, 1, 2)), (3, (0, 1, 2))]
)
def test_the_opened_sum_is_the_plain_sum_bit_for_bit(num_needed, helpers):
    fleet = Fleet(num_needed=num_needed)
    sealed = fleet.all_sealed()
    plain = np.zeros(fleet.num_values, np.uint32)
    for values in fleet.values.values():
        plain += values
    assert np.array_equal(fleet.open(sealed, helpers), plain)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_whoever_drops_out_or_comes_twice_the_sum_of_those_that_are_there_is_exact(data):
    fleet = Fleet(num_devices=data.draw(st.integers(2, 8)), num_values=data.draw(st.integers(1, 40)))
    sealed = fleet.all_sealed(np.random.default_rng(data.draw(st.integers(0, 2**32))))
    there = data.draw(st.sets(st.sampled_from(sorted(sealed)), min_size=2))
    helpers = data.draw(st.permutations([0, 1, 2]))[: data.draw(st.integers(2, 3))]
    plain = sum((fleet.values[name] for name in there), np.zeros(fleet.num_values, np.uint32))
    chosen = {name: sealed[name] for name in there}
    assert np.array_equal(fleet.open(chosen, helpers), plain)
    assert np.array_equal(fleet.open(chosen, helpers), plain), "asked again, the same"


def test_a_helper_that_was_asked_for_other_parts_of_the_same_set_answers_again():
    fleet = Fleet()
    sealed = fleet.all_sealed()
    fleet.open(sealed, (0, 1))
    fleet.open(sealed, (0, 2))


def test_one_helper_alone_cannot_open():
    assert divide_parts(2, [1]) == {}
    assert divide_parts(3, [0, 2]) == {}
    fleet = Fleet()
    with pytest.raises(OpeningFailed):
        subtract_helper_masks(np.zeros(3, np.uint32), {(0, 1): np.zeros(3, np.uint32)}, num_needed=fleet.num_needed)


def test_a_second_set_for_one_round_is_refused_also_when_it_is_larger_or_has_another_update_of_a_device():
    fleet = Fleet()
    sealed = fleet.all_sealed()
    fewer = dict(list(sealed.items())[:-1])
    fleet.ask(fleet.order(fewer, 0, (0,)), 0)
    assert refusal(fleet, fleet.order(sealed, 0, (0,))) is RefusalCause.SECOND_SET
    again = fewer | {"d0000": fleet.seal("d0000", fleet.values["d0000"])}
    assert refusal(fleet, fleet.order(again, 0, (0,))) is RefusalCause.SECOND_SET
    fleet.ask(fleet.order(fewer, 0, (0,)), 0)


def test_a_refused_set_is_not_noted():
    fleet = Fleet(min_contributors=4)
    sealed = fleet.all_sealed()
    assert refusal(fleet, fleet.order(dict(list(sealed.items())[:3]), 0, (0,))) is RefusalCause.TOO_FEW
    assert not fleet.books[0]
    fleet.ask(fleet.order(sealed, 0, (0,)), 0)


def test_a_set_below_what_one_contributor_demands_is_refused():
    fleet = Fleet()
    sealed = fleet.all_sealed() | {"d0001": fleet.seal("d0001", np.zeros(7, np.uint32), demanded=6)}
    assert refusal(fleet, fleet.order(sealed, 0, (0,))) is RefusalCause.TOO_FEW
    order = fleet.order(sealed, 0, (0,))
    lowered = tuple(msgspec.structs.replace(one, min_contributors=2) for one in order.contributors)
    assert refusal(fleet, msgspec.structs.replace(order, contributors=lowered)) is RefusalCause.BAD_SIGNATURE


def test_an_unregistered_device_is_refused():
    fleet = Fleet()
    fleet.identities["invented"] = Ed25519PrivateKey.generate()
    assert refusal(fleet, fleet.order(fleet.all_sealed(), 0, (0,))) is RefusalCause.UNREGISTERED


def test_a_swapped_key_is_refused():
    fleet = Fleet()
    fleet.identities["d0002"] = Ed25519PrivateKey.generate()
    assert refusal(fleet, fleet.order(fleet.all_sealed(), 0, (0,))) is RefusalCause.BAD_SIGNATURE


def test_a_device_that_is_listed_twice_is_refused():
    fleet = Fleet()
    order = fleet.order(fleet.all_sealed(), 0, (0,))
    twice = msgspec.structs.replace(order, contributors=(order.contributors[0], *order.contributors))
    assert refusal(fleet, twice) is RefusalCause.DUPLICATE_DEVICE
    turned = msgspec.structs.replace(order, contributors=order.contributors[::-1])
    assert refusal(fleet, turned) is RefusalCause.MALFORMED


@pytest.mark.parametrize(
    "changes", [{"round_id": 4}, {"task_id": "u"}, {"plan_sha256": bytes(32)}, {"num_values": 8}], ids=str
)
def test_updates_of_another_round_task_plan_or_size_are_refused(changes):
    fleet = Fleet()
    assert refusal(fleet, fleet.order(fleet.all_sealed(), 0, (0,), **changes)) is RefusalCause.BAD_SIGNATURE


def test_another_population_or_mode_is_refused():
    fleet = Fleet()
    sealed = fleet.all_sealed()
    assert refusal(fleet, fleet.order(sealed, 0, (0,), population="q")) is RefusalCause.WRONG_CONTEXT
    assert (
        refusal(fleet, fleet.order(sealed, 0, (0,), ask=KeyAsk(total=b"", keys_sha256=bytes(32))))
        is RefusalCause.WRONG_CONTEXT
    )


def test_a_box_for_another_helper_or_a_part_that_the_helper_does_not_hold_is_refused():
    fleet = Fleet()
    sealed = fleet.all_sealed()
    assert refusal(fleet, fleet.order(sealed, 1, (0,)), index=0) is RefusalCause.BAD_BOX
    assert refusal(fleet, fleet.order(sealed, 0, (2,)), index=0) is RefusalCause.BAD_BOX
    order = fleet.order(sealed, 0, (0,))
    foreign = msgspec.structs.replace(order.contributors[0], box=bytes(82))
    changed = msgspec.structs.replace(order, contributors=(foreign, *order.contributors[1:]))
    assert refusal(fleet, changed) is RefusalCause.BAD_BOX
    assert not fleet.books[0]


def test_a_helper_that_serves_single_devices_cannot_be_made():
    with pytest.raises(ValueError, match="at least 2"):
        ContributorRules(population="p", registered={}, min_contributors=1)


def test_every_seed_is_fresh_and_the_values_are_not_changed():
    fleet = Fleet()
    values = np.arange(7, dtype=np.uint32)
    one, other = fleet.seal("d0000", values), fleet.seal("d0000", values)
    assert np.array_equal(values, np.arange(7))
    assert one.payload != other.payload
    assert one.ephemeral_key != other.ephemeral_key
    assert not set(one.boxes) & set(other.boxes)


def test_what_decodes_is_what_was_encoded_and_every_truncation_is_refused():
    fleet = Fleet(num_values=2)
    data = encode_sealed_update(fleet.seal("d0000", np.arange(2, dtype=np.uint32)))
    assert encode_sealed_update(decode_sealed_update(data, max_bytes=len(data))) == data
    with pytest.raises(OversizedSealed):
        decode_sealed_update(data, max_bytes=len(data) - 1)
    for end in range(len(data) - 8):
        with pytest.raises(MalformedSealed):
            decode_sealed_update(data[:end], max_bytes=len(data))
    with pytest.raises(MalformedSealed):
        vector_of(decode_sealed_update(data[:-1], max_bytes=len(data)).payload, 2)


def test_an_order_in_another_form_than_its_one_is_refused():
    fleet = Fleet()
    data = encode_order(fleet.order(fleet.all_sealed(), 0, (0, 1)))
    fields = msgspec.msgpack.decode(data)
    with pytest.raises(MalformedSealed, match="another form"):
        decode_order(msgspec.msgpack.encode(dict(reversed(fields.items()))), max_bytes=10**6)
    with pytest.raises(MalformedSealed):
        decode_order(msgspec.msgpack.encode(fields | {"more": 1}), max_bytes=10**6)
    with pytest.raises(OversizedSealed):
        decode_order(data, max_bytes=len(data) - 1)


def test_a_box_opens_for_its_opener_sender_and_round_alone():
    key, other, ephemeral = (make_box_key(os.urandom) for _ in range(3))
    route = BoxRoute(context=bytes(32), sender_id="d", opener_id="h")
    public = ephemeral.public_key().public_bytes_raw()
    box = seal_box(b"secret", ephemeral=ephemeral, opener_key=key.public_key().public_bytes_raw(), route=route)
    assert open_box(box, opener=key, ephemeral_key=public, route=route) == b"secret"
    wrong = [
        (key, public, dataclasses.replace(route, context=bytes(31) + b"\x01")),
        (key, public, dataclasses.replace(route, sender_id="e")),
        (key, public, dataclasses.replace(route, opener_id="i")),
        (key, public, dataclasses.replace(route, sender_id="dh", opener_id="")),
        (key, other.public_key().public_bytes_raw(), route),
        (other, public, route),
        (key, bytes(32), route),
    ]
    for opener, sender_key, asked in wrong:
        with pytest.raises(BoxNotOpened):
            open_box(box, opener=opener, ephemeral_key=sender_key, route=asked)
    with pytest.raises(BoxNotOpened):
        open_box(box[:-1] + bytes([box[-1] ^ 1]), opener=key, ephemeral_key=public, route=route)
    with pytest.raises(BoxNotOpened):
        seal_box(b"secret", ephemeral=ephemeral, opener_key=bytes(32), route=route)


def test_the_mask_of_a_seed_is_chacha20s_keystream():
    # RFC 8439, appendix A.1, test vector 1: key, nonce and counter zero.
    expected = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    assert mask_of(bytes(32), 8).astype("<u4").tobytes() == expected
    long = mask_of(bytes(32), 200_001)
    assert np.array_equal(long[:100], mask_of(bytes(32), 100))
    assert len(set(long[65_530:65_560])) > 20, "the stream goes on where a chunk ends"
    with pytest.raises(ValueError, match="32 bytes"):
        mask_of(bytes(31), 8)


def test_contexts_differ_in_every_part_and_names_cannot_be_shifted():
    parts = {"population": "ab", "task_id": "c", "plan_sha256": PLAN, "round_id": 1}
    changed = [
        parts, parts | {"population": "a", "task_id": "bc"}, parts | {"plan_sha256": bytes(32)}, parts | {"round_id": 2},
    ]  # fmt: skip
    assert len({round_context(**each) for each in changed}) == len(changed)


def test_parts_leave_out_every_helper_but_none_of_two():
    assert all(sum(helper in part for part in parts_of(2)) == 2 for helper in range(3))
    with pytest.raises(ValueError, match="2 or 3"):
        parts_of(1)


def test_the_causes_of_refusals_are_those_of_the_wire():
    assert {cause.name: cause.value for cause in RefusalCause} == {each.name: each.value for each in OpeningRefusal}


def _steal(fleet, sealed, victim, conspirators):
    """Helpers' keys and a lying coordinator against one device: every part that they have, or can get as a difference."""
    update = sealed[victim]
    found = {}
    for index in conspirators:
        route = BoxRoute(context=fleet.context, sender_id=victim, opener_id=f"h{index}")
        secret = open_box(
            update.boxes[index], opener=fleet.helper_keys[index], ephemeral_key=update.ephemeral_key, route=route
        )
        found |= {part: mask_of(seed, fleet.num_values) for part, seed in read_seeds(secret).items()}
    for part, holders in enumerate(parts_of(fleet.num_needed)):
        honest = sorted(holders - set(conspirators))
        if part not in found:
            fewer = {name: one for name, one in sealed.items() if name != victim}
            sums = [
                vector_of(fleet.ask(fleet.order(chosen, asked, (part,)), asked).data, fleet.num_values)
                for chosen, asked in ((sealed, honest[0]), (fewer, honest[-1]))
            ]
            found[part] = sums[0] - sums[1]
    plain = vector_of(update.payload, fleet.num_values).copy()
    for mask in found.values():
        plain -= mask
    return plain


def test_a_lying_coordinator_with_one_helper_reads_a_device_if_two_open_and_nobody_if_all_three_must():
    fleet = Fleet(num_needed=2)
    sealed = fleet.all_sealed()
    assert np.array_equal(_steal(fleet, sealed, "d0003", [0]), fleet.values["d0003"]), (
        "known, documented, and why 3 exists"
    )
    fleet = Fleet(num_needed=3)
    sealed = fleet.all_sealed()
    with pytest.raises(OpeningRefused, match="second_set"):
        _steal(fleet, sealed, "d0003", [0, 1])


def test_a_lying_coordinator_alone_reads_nobody():
    fleet = Fleet(num_needed=2)
    sealed = fleet.all_sealed()
    with pytest.raises(OpeningRefused, match="second_set"):
        _steal(fleet, sealed, "d0003", [])


def _openable(sets, num_devices, conspirator=None, modulus=4):
    """Every combination of devices whose sum can be opened if each helper has been shown one of these sets.

    A combination can be opened if each part's masks can be combined in the same way: from the sums that honest holders
    give, or at will if the conspirator holds the part. Over a ring of 4 elements all of them can be listed.
    """
    openable = None
    for holders in parts_of(2):
        if conspirator in holders:
            continue
        first, second = (np.array([device in sets[helper] for device in range(num_devices)], int) for helper in holders)
        spanned = {tuple((a * first + b * second) % modulus) for a in range(modulus) for b in range(modulus)}
        openable = spanned if openable is None else openable & spanned
    return [combination for combination in openable if any(combination)]


def test_whatever_sets_honest_helpers_are_shown_nothing_about_fewer_than_n_min_devices_is_opened():
    num_devices, n_min = 4, 2
    sets = [
        frozenset(chosen)
        for size in range(n_min, num_devices + 1)
        for chosen in itertools.combinations(range(num_devices), size)
    ]
    for shown in itertools.product(sets, repeat=3):
        for combination in _openable(shown, num_devices):
            assert sum(value != 0 for value in combination) >= n_min
    whole, fewer = frozenset(range(4)), frozenset(range(3))
    found = _openable((whole, whole, fewer), num_devices, conspirator=0)
    assert (0, 0, 0, 1) in found, "with a helper on its side a lying coordinator takes the difference"
