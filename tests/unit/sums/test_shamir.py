"""Own Shamir sharing against another implementation, and at its edges."""

import itertools
import os

import pytest
import shamirs
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_sum.errors import MalformedSealed
from secure_sum.shamir import PRIME, SECRET_BYTES, ShareWeights, decode_share, split_secret

SECRETS = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


def _split(secret, threshold, num_shares):
    shares = split_secret(secret, threshold=threshold, num_shares=num_shares, random_bytes=os.urandom)
    return {number: decode_share(share) for number, share in enumerate(shares, start=1)}


@settings(max_examples=40, deadline=None)
@given(SECRETS, st.integers(1, 9), st.integers(0, 6), st.randoms(use_true_random=False))
def test_any_threshold_many_shares_give_the_secret_back(secret, threshold, spare, rng):
    shares = _split(secret, threshold, threshold + spare)
    numbers = rng.sample(sorted(shares), threshold)
    assert ShareWeights(numbers).secret([shares[number] for number in numbers]) == secret


@settings(max_examples=25, deadline=None)
@given(SECRETS, st.integers(2, 7))
def test_another_library_reads_our_shares_and_we_read_its(secret, threshold):
    as_number = int.from_bytes(secret, "little")
    ours = _split(secret, threshold, threshold + 2)
    theirs = [shamirs.share(number, value, PRIME) for number, value in ours.items()]
    assert shamirs.interpolate(theirs[-threshold:], PRIME, threshold) == as_number
    made_there = shamirs.shares(as_number, threshold + 2, modulus=PRIME, threshold=threshold)
    chosen = made_there[1 : threshold + 1]
    assert ShareWeights([share.index for share in chosen]).secret([share.value for share in chosen]) == secret


def test_with_one_share_too_few_every_secret_is_as_likely():
    # Two shares of three: for every secret exactly one polynomial of degree 2 fits, so they exclude none.
    shares = _split(os.urandom(SECRET_BYTES), 3, 5)
    for secret in (bytes(SECRET_BYTES), b"\xff" * SECRET_BYTES, os.urandom(SECRET_BYTES)):
        value = int.from_bytes(secret, "little")
        # The third share that would make it this secret: solve for it with the weights at 0.
        weights = ShareWeights((1, 2, 3))
        without = weights.value([shares[1], shares[2], 0])
        third = (value - without) * pow(weights.value([0, 0, 1]), -1, PRIME) % PRIME
        assert weights.secret([shares[1], shares[2], third]) == secret


def test_a_share_is_uniform_whatever_the_secret_is():
    tops = [
        split_secret(bytes(SECRET_BYTES), threshold=2, num_shares=2, random_bytes=os.urandom)[0] for _ in range(2000)
    ]
    for place in (0, 15, 30):
        mean = sum(share[place] for share in tops) / len(tops)
        assert abs(mean - 127.5) < 6 * 73.9 / len(tops) ** 0.5


def test_a_random_number_at_or_above_the_prime_is_drawn_again():
    draws = itertools.chain(
        [b"\xff" * 32, (PRIME).to_bytes(32, "little")], itertools.repeat((5).to_bytes(32, "little"))
    )
    shares = split_secret(bytes(SECRET_BYTES), threshold=2, num_shares=2, random_bytes=lambda _: next(draws))
    assert [decode_share(share) for share in shares] == [5, 10]


@pytest.mark.parametrize(
    ("data", "match"),
    [(b"\0" * 31, "32 bytes"), (b"\xff" * 32, "below"), (PRIME.to_bytes(32, "little"), "below")],
    ids=["short", "all ones", "the prime"],
)
def test_a_share_has_one_spelling(data, match):
    with pytest.raises(MalformedSealed, match=match):
        decode_share(data)


def test_shares_that_give_more_than_a_secret_can_be_are_refused():
    with pytest.raises(MalformedSealed, match="no secret"):
        ShareWeights((1,)).secret([PRIME - 1])


@pytest.mark.parametrize("numbers", [(), (1, 1), (0, 1), (1, 256)])
def test_only_the_numbers_of_different_shares_can_be_recombined(numbers):
    with pytest.raises(ValueError, match="different shares"):
        ShareWeights(numbers)


@pytest.mark.parametrize(("threshold", "num_shares"), [(0, 3), (4, 3), (1, 256)])
def test_an_impossible_threshold_is_refused(threshold, num_shares):
    with pytest.raises(ValueError, match="cannot make"):
        split_secret(bytes(SECRET_BYTES), threshold=threshold, num_shares=num_shares, random_bytes=os.urandom)


def test_a_secret_of_another_length_is_refused():
    with pytest.raises(ValueError, match="31 bytes"):
        split_secret(bytes(32), threshold=1, num_shares=1, random_bytes=os.urandom)
