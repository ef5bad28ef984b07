"""Masks mode against a coordinator that does whatever it likes: each of its ways to one device's update is refused.

The server here holds everything that passes through a coordinator: every sealed update, and whatever members answer.
`_unmasked` is its attack: it takes off each mask that it has enough shares for. A positive control shows that the
attack works when the committee has no rules.
"""

import collections
import dataclasses
import itertools

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_sum import committee_sealing, pairwise_masks
from secure_sum.committee_rules import check_committee, least_threshold
from secure_sum.errors import OpeningRefused, RefusalCause, SealingRefused
from secure_sum.keystream import add_mask, subtract_mask
from secure_sum.mask_graph import roster_digest
from secure_sum.openings import MaskAsk, contributor_of
from secure_sum.pairwise_masks import MaskSecrets, add_masks, decode_packet, is_added
from secure_sum.sealed_box import BoxRoute, open_box
from secure_sum.sealed_update import vector_of
from secure_sum.shamir import SECRET_BYTES, ShareWeights, decode_share
from simulators.masked_round import MaskedRoundInMemory

NUM_VALUES = 64


@pytest.fixture
def round_():
    return MaskedRoundInMemory(num_devices=8, num_members=4, min_contributors=4)


def _sealed(round_, names=None):
    return {
        name: round_.seal(name, np.full(NUM_VALUES, 1000 + index, np.uint32))
        for index, name in enumerate(round_.roster if names is None else names)
    }


def _order(round_, sealed, member="m000", arrived=None):
    return round_.order(round_.opening(sealed if arrived is None else arrived), sealed, member)


def _refusal(round_, order, member="m000"):
    with pytest.raises(OpeningRefused) as caught:
        round_.ask(order, member)
    return caught.value


def test_a_device_that_is_listed_as_alive_and_as_dead_is_refused(round_):
    order = _order(round_, _sealed(round_))
    both = msgspec.structs.replace(order, ask=MaskAsk(roster_sha256=order.ask.roster_sha256, missing=("d00003",)))
    refusal = _refusal(round_, both)
    assert refusal.cause is RefusalCause.BOTH_SIDES
    assert refusal.device_id == "d00003"


def test_two_alive_lists_of_one_round_are_not_both_opened(round_):
    sealed = _sealed(round_)
    round_.ask(_order(round_, sealed), "m000")
    without = _order(round_, sealed, arrived=[name for name in sealed if name != "d00003"])
    assert _refusal(round_, without).cause is RefusalCause.SECOND_SET


def test_a_second_set_for_a_round_is_refused_for_ever_and_the_first_answered_again(round_):
    sealed = _sealed(round_)
    arrived = [name for name in sealed if name != "d00007"]
    first = round_.ask(_order(round_, sealed, arrived=arrived), "m000")
    for _ in range(3):
        assert _refusal(round_, _order(round_, sealed)).cause is RefusalCause.SECOND_SET
        assert round_.ask(_order(round_, sealed, arrived=arrived), "m000") == first


def test_the_same_devices_with_another_sealed_update_are_another_set(round_):
    sealed = _sealed(round_)
    round_.ask(_order(round_, sealed), "m000")
    again = sealed | {"d00002": round_.seal("d00002", np.zeros(NUM_VALUES, np.uint32))}
    assert _refusal(round_, _order(round_, again)).cause is RefusalCause.SECOND_SET


def test_a_set_below_n_min_is_refused(round_):
    sealed = _sealed(round_)
    few = _order(round_, sealed, arrived=list(sealed)[:3])
    few = msgspec.structs.replace(
        few, contributors=_order(round_, sealed).contributors[:3], ask=_missing_ask(round_, 3)
    )
    assert _refusal(round_, few).cause is RefusalCause.TOO_FEW


def _missing_ask(round_, num_arrived):
    return MaskAsk(roster_sha256=roster_digest(round_.roster), missing=round_.roster[num_arrived:])


def test_the_highest_n_min_that_a_contributor_demands_counts(round_):
    sealed = _sealed(round_)
    careful = dataclasses.replace(round_.as_seen_by("d00001"), min_contributors=8)
    sealed["d00001"] = round_.seal("d00001", np.zeros(NUM_VALUES, np.uint32), round_=careful)
    seven = _order(round_, sealed, arrived=list(sealed)[:7])
    assert _refusal(round_, seven).cause is RefusalCause.TOO_FEW
    assert round_.ask(_order(round_, sealed), "m000")


def test_an_unregistered_device_is_refused(round_):
    sealed = _sealed(round_)
    del round_.rules.registered["d00005"]
    refusal = _refusal(round_, _order(round_, sealed))
    assert (refusal.cause, refusal.device_id) == (RefusalCause.UNREGISTERED, "d00005")


def test_an_invented_device_is_refused(round_):
    """The server fills the round up with devices of its own, so that all but one update is known to it."""
    invented = MaskedRoundInMemory(num_devices=8, num_members=4)
    sealed = _sealed(round_) | _sealed(invented, invented.roster[1:])
    assert _refusal(round_, _order(round_, sealed)).cause is RefusalCause.BAD_SIGNATURE


def test_updates_of_another_round_cannot_be_replayed(round_):
    sealed = _sealed(round_)
    order = _order(round_, sealed)
    round_.round_id = 2
    assert _refusal(round_, msgspec.structs.replace(order, round_id=2)).cause is RefusalCause.BAD_SIGNATURE


def test_a_swapped_key_opens_no_box(round_):
    """The server gives a device its own key as a member's: what it can open, the member cannot, and nobody else can."""
    servers = X25519PrivateKey.generate()
    keys = round_.sealing_keys | {"m000": servers.public_key().public_bytes_raw()}
    swapped = dataclasses.replace(round_.as_seen_by("d00004"), device_keys=keys)
    sealed = _sealed(round_) | {"d00004": round_.seal("d00004", np.zeros(NUM_VALUES, np.uint32), round_=swapped)}
    refusal = _refusal(round_, _order(round_, sealed))
    assert (refusal.cause, refusal.device_id) == (RefusalCause.BAD_BOX, "d00004")


def test_a_box_cannot_be_carried_to_another_device_or_member(round_):
    sealed = _sealed(round_)
    order = _order(round_, sealed)
    others = _order(round_, sealed, member="m001")
    for_another_member = msgspec.structs.replace(order, contributors=others.contributors)
    assert _refusal(round_, for_another_member).cause is RefusalCause.BAD_BOX
    first, second, *rest = order.contributors
    carried = msgspec.structs.replace(first, box=second.box)
    changed = msgspec.structs.replace(order, contributors=(carried, second, *rest))
    assert _refusal(round_, changed).cause is RefusalCause.BAD_BOX


def test_a_device_that_was_told_another_roster_spoils_the_opening_and_not_its_secret(round_):
    """The server shows one device a roster of others, so that its shared masks are with devices it has on its side."""
    other = dataclasses.replace(round_.as_seen_by("d00006"), roster=("d00000", "d00001", "d00002", "d00006"))
    sealed = _sealed(round_) | {"d00006": round_.seal("d00006", np.zeros(NUM_VALUES, np.uint32), round_=other)}
    refusal = _refusal(round_, _order(round_, sealed))
    assert (refusal.cause, refusal.device_id) == (RefusalCause.WRONG_CONTEXT, "d00006")


def test_a_roster_that_is_not_whole_is_refused(round_):
    """Left out of both lists, a device is neither alive nor dead: nothing of it would be opened, but others' masks."""
    sealed = _sealed(round_)
    order = _order(round_, sealed, arrived=list(sealed)[:6])
    hidden = msgspec.structs.replace(order, ask=MaskAsk(roster_sha256=order.ask.roster_sha256, missing=("d00006",)))
    assert _refusal(round_, hidden).cause is RefusalCause.MALFORMED


def test_a_contributor_named_twice_does_not_count_twice(round_):
    sealed = _sealed(round_)
    order = _order(round_, sealed, arrived=list(sealed)[:7])
    twice = msgspec.structs.replace(order, contributors=(order.contributors[0], *order.contributors))
    assert _refusal(round_, twice).cause is RefusalCause.DUPLICATE_DEVICE


def test_a_device_whose_neighbours_are_missing_is_not_opened():
    round_ = MaskedRoundInMemory(num_devices=70, num_neighbours=4)
    gone = set(round_.graph.neighbours("d00000")[:3])
    sealed = {name: round_.seal(name, np.zeros(1, np.uint32)) for name in round_.roster if name not in gone}
    honest = round_.opening(sealed)
    order = round_.order(honest, sealed, "m000")
    # The server does not leave it out as R2 says.
    forced = msgspec.structs.replace(
        order,
        contributors=_all_contributors(round_, sealed),
        ask=MaskAsk(roster_sha256=order.ask.roster_sha256, missing=tuple(sorted(gone))),
    )
    refusal = _refusal(round_, forced)
    assert refusal.cause is RefusalCause.ISOLATED


def _all_contributors(round_, sealed):
    return tuple(contributor_of(sealed[name].header(name), box_index=0) for name in sorted(sealed))


# -- the committee's threshold (R4)


@given(st.integers(3, 60))
def test_honest_members_cannot_be_split_into_two_openings(num_members):
    threshold = least_threshold(num_members)
    check_committee(threshold=threshold, num_members=num_members)
    corrupt = num_members // 3
    # Each honest member answers for one set, corrupt ones for both: two openings need 2 t answers.
    assert 2 * threshold > (num_members - corrupt) + 2 * corrupt
    with pytest.raises(ValueError, match="two sets"):
        check_committee(threshold=threshold - 1, num_members=num_members)


def test_a_device_does_not_seal_for_a_committee_that_could_open_two_sets(round_):
    weak = dataclasses.replace(round_.as_seen_by("d00000"), threshold=2)
    with pytest.raises(SealingRefused, match="two sets"):
        round_.seal("d00000", np.zeros(1, np.uint32), round_=weak)


def test_a_member_does_not_open_for_devices_that_have_sealed_with_a_weaker_threshold(round_, monkeypatch):
    monkeypatch.setattr(committee_sealing, "check_committee", lambda **_: None)
    careless = {
        name: round_.seal(
            name, np.zeros(1, np.uint32), round_=dataclasses.replace(round_.as_seen_by(name), threshold=2)
        )
        for name in round_.roster
    }
    assert _refusal(round_, _order(round_, careless)).cause is RefusalCause.WEAK_THRESHOLD


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"min_contributors": 9}, "names 8 devices"),
        ({"roster": ("d00001", "d00002")}, "not on the round's roster"),
        ({"roster": ("d00000", "d00001", "d00002", "stranger")}, "stranger is not in the key directory"),
        ({"committee": ("m000", "m001", "m002", "mallory")}, "mallory is not in the key directory"),
        ({"committee": ("m000", "m000", "m001", "m002")}, "names a device twice"),
        ({"roster": ("d00001", "d00000")}, "ascending"),
    ],
)
def test_a_device_does_not_seal_for_a_round_that_could_not_hide_it(round_, change, match):
    asked = dataclasses.replace(round_.as_seen_by("d00000"), **change)
    with pytest.raises(SealingRefused, match=match):
        round_.seal("d00000", np.zeros(1, np.uint32), round_=asked)


# -- Flower's two faults, as attacks


def _opened(round_, update, device_id, answers):
    """What the server gets out of one device's sealed update with these members' packets: the attack itself."""
    numbers = sorted(answers)
    weights = ShareWeights(numbers)
    plain = vector_of(update.payload, update.num_values).copy()
    packets = [answers[number] for number in numbers]
    own = weights.secret([decode_share(packet.own) for packet in packets])
    subtract_mask(plain, own.ljust(32, b"\0"))
    for place, peer in enumerate(round_.graph.neighbours(device_id)):
        seed = weights.secret([decode_share(packet.pairs[place]) for packet in packets])
        (subtract_mask if is_added(device_id, peer) else add_mask)(plain, seed.ljust(32, b"\0"))
    return plain


def test_positive_control_members_without_rules_give_one_devices_update_away(round_):
    """Flower's SecAgg+ clients answer for both lists unchecked; so do these members: the attack works on them."""
    update = _sealed(round_)["d00003"]
    packets = {}
    for number, member in enumerate(round_.committee[: round_.threshold], start=1):
        route = BoxRoute(context=round_.context, sender_id="d00003", opener_id=member)
        box = update.boxes[number - 1]
        key = round_._parties[member].sealing
        packets[number] = decode_packet(open_box(box, opener=key, ephemeral_key=update.ephemeral_key, route=route))
    assert _opened(round_, update, "d00003", packets).tolist() == [1003] * NUM_VALUES


def _questions(draw, names):
    """Any list of contributors and any of missing devices, overlapping or not."""
    arrived = draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    missing = draw(st.lists(st.sampled_from(names), unique=True))
    return sorted(arrived), sorted(missing)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_a_server_asks_in_a_round_no_member_gives_both_sides_of_a_device(data):
    """Flower's missing disjointness check: own and shared masks of one device, in one question or over several."""
    round_ = _ROUND
    for book in round_.books.values():
        book._sets.clear()
    given_away = set()
    for _ in range(data.draw(st.integers(1, 4))):
        arrived, missing = _questions(data.draw, round_.roster)
        opening = round_.opening(arrived)
        order = round_.order(opening, _SEALED, "m000") if opening.contributors else None
        if order is None:
            continue
        chosen = tuple(c for c in _all_contributors(round_, _SEALED) if c.device_id in arrived)
        ask = MaskAsk(roster_sha256=order.ask.roster_sha256, missing=tuple(missing))
        try:
            answer = round_.ask(msgspec.structs.replace(order, contributors=chosen, ask=ask), "m000")
        except OpeningRefused:
            continue
        packets = _PACKETS
        for name in round_.roster:
            if packets[name].own in _pieces(answer.data):
                given_away.add((name, "own"))
            for peer, share in zip(round_.graph.neighbours(name), packets[name].pairs, strict=True):
                if share in _pieces(answer.data):
                    given_away.add((name, peer))
    for name in round_.roster:
        peers = {peer for device, peer in given_away if device == name and peer != "own"}
        if (name, "own") in given_away:
            # Its masks with the other contributors stay shut.
            assert not any((peer, "own") in given_away for peer in peers)
        else:
            assert not peers


def _pieces(data):
    return {data[at : at + 32] for at in range(0, len(data), 32)}


_ROUND = MaskedRoundInMemory(num_devices=6, num_members=4, min_contributors=3)
_SEALED = _sealed(_ROUND)


def _packets_of(member, number):
    key = _ROUND._parties[member].sealing
    return {
        name: decode_packet(
            open_box(
                update.boxes[number - 1],
                opener=key,
                ephemeral_key=update.ephemeral_key,
                route=BoxRoute(context=_ROUND.context, sender_id=name, opener_id=member),
            )
        )
        for name, update in _SEALED.items()
    }


_PACKETS = _packets_of("m000", 1)


def test_a_seed_is_used_whole_and_not_folded_to_32_bits():
    """Flower XORs the 32 bytes of a key down to 32 bits, which a laptop searches: all of a seed's bits must count."""
    base = bytes(range(SECRET_BYTES))

    def masked(seed):
        return add_masks(np.zeros(8, np.uint32), MaskSecrets(own=bytes(seed), pairs={}), device_id="d").tobytes()

    seen = {masked(base)}
    for bit in range(8 * SECRET_BYTES):
        seed = bytearray(base)
        seed[bit // 8] ^= 1 << (bit % 8)
        # The partner bit that keeps every XOR of 4-byte words the same, as Flower's fold would.
        if bit // 8 + 4 < SECRET_BYTES:
            seed[bit // 8 + 4] ^= 1 << (bit % 8)
        seen.add(masked(seed))
    assert len(seen) == 1 + 8 * SECRET_BYTES


# -- what the server sees without the others says nothing


def _bits(round_, values, num_tries):
    """Bits of one device's masked vector, over fresh masks."""
    words = [vector_of(round_.seal("d00001", values).payload, len(values)) for _ in range(num_tries)]
    return np.unpackbits(np.concatenate(words).view(np.uint8)).reshape(-1, 32)


@pytest.mark.parametrize("level", [0, 1, 2**31, 2**32 - 1])
def test_a_masked_update_is_uniform_whatever_the_update_is(level):
    round_ = MaskedRoundInMemory(num_devices=3)
    bits = _bits(round_, np.full(20_000, level, np.uint32), 1)
    # Each of 32 bit places: a fair coin. And neighbouring bits are independent. 6 sigma: 2e-9 per place.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / np.sqrt(len(bits))
    pairs = bits[:, 1:] ^ bits[:, :-1]
    assert np.abs(pairs.mean(axis=0) - 0.5).max() < 6 * 0.5 / np.sqrt(len(bits))


def test_the_view_of_a_server_does_not_tell_two_updates_apart():
    """Server plus t - 1 members: two very different updates; the best linear test on the masked words fails."""
    round_ = MaskedRoundInMemory(num_devices=3)
    small, large = np.zeros(4_000, np.uint32), np.full(4_000, 3_000_000_000, np.uint32)
    views = [_bits(round_, values, 8).reshape(8, -1, 32).mean(axis=1) for values in (small, large)]
    distance = np.abs(views[0].mean(axis=0) - views[1].mean(axis=0))
    assert distance.max() < 6 * np.sqrt(2 * 0.25 / (8 * 4_000))


def test_exactly_over_all_masks_of_a_small_ring_the_view_depends_on_the_sum_alone(monkeypatch):
    """No statistics: three devices, words of 2 bits, every value of every mask. All self masks are opened.

    `add_masks` is the real one; only the keystream is replaced by one word that the seed spells, so that all of them
    can be counted.
    """
    monkeypatch.setattr(pairwise_masks, "add_mask", lambda words, seed: np.add(words, seed[0], out=words))
    monkeypatch.setattr(pairwise_masks, "subtract_mask", lambda words, seed: np.subtract(words, seed[0], out=words))

    def views(updates):
        counts = collections.Counter()
        for own in itertools.product(range(4), repeat=3):
            for ab, ac, bc in itertools.product(range(4), repeat=3):
                shared = ({"b": ab, "c": ac}, {"a": ab, "c": bc}, {"a": ac, "b": bc})
                view = []
                for name, value, self_mask, peers in zip("abc", updates, own, shared, strict=True):
                    pairs = {peer: bytes([mask]) for peer, mask in peers.items()}
                    secrets = MaskSecrets(own=bytes([self_mask]), pairs=pairs)
                    view.append(int(add_masks(np.array([value], np.uint32), secrets, device_id=name)[0]) % 4)
                counts[*view, *own] += 1
        return counts

    assert views((1, 2, 3)) == views((3, 3, 0))
    assert views((1, 2, 3)) != views((1, 2, 2))
