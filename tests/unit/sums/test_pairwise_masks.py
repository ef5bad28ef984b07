"""What two devices share, and what a member of the committee is given."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum.errors import MalformedSealed
from secure_sum.pairwise_masks import MaskSecrets, add_masks, pair_seed

ONE, OTHER = (X25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
CONTEXT = bytes(range(32))


def _seed(own, peer, **changes):
    settings = {"context": CONTEXT, "own_id": "a", "peer_id": "b"} | changes
    return pair_seed(own, peer.public_key().public_bytes_raw(), **settings)


def test_both_devices_derive_the_same_seed_in_every_version():
    seed = _seed(ONE, OTHER)
    assert seed == _seed(OTHER, ONE, own_id="b", peer_id="a")
    assert seed.hex() == "93dca026a36ab847ec4e062813533678ea9686a0f843f03cc7ec77924f38d8"


def test_a_seed_belongs_to_one_round_and_one_pair():
    seeds = {
        _seed(ONE, OTHER),
        _seed(ONE, OTHER, context=bytes(32)),
        _seed(ONE, OTHER, peer_id="c"),
        _seed(ONE, OTHER, own_id="ab", peer_id=""),
    }
    assert len(seeds) == 4


def test_a_key_of_small_order_shares_nothing():
    with pytest.raises(MalformedSealed, match="no X25519 key"):
        pair_seed(ONE, bytes(32), context=CONTEXT, own_id="a", peer_id="b")


def test_one_device_adds_the_shared_mask_and_the_other_takes_it_away():
    shared = _seed(ONE, OTHER)
    zero = np.zeros(100, np.uint32)
    one = add_masks(zero, MaskSecrets(own=bytes(31), pairs={"b": shared}), device_id="a")
    other = add_masks(zero, MaskSecrets(own=bytes(31), pairs={"a": shared}), device_id="b")
    own = add_masks(zero, MaskSecrets(own=bytes(31), pairs={}), device_id="a")
    assert (one + other).tolist() == (own + own).tolist()
    assert one.tolist() != own.tolist()
