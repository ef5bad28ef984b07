"""What TFF's secure sum means is what masks, helpers and encryption compute: the sum of the clients' values, modulo something."""

import os

import numpy as np
import pytest

from secure_sum import bfv
from secure_sum.helper_shares import SealingOrder, divide_parts, read_seeds, seal_to_helpers, subtract_helper_masks
from secure_sum.keystream import mask_of
from secure_sum.sealed_box import BoxRoute, make_box_key, open_box
from secure_sum.sealed_update import vector_of
from simulators.masked_round import MaskedRoundInMemory

pytestmark = pytest.mark.tensorflow

NUM_VALUES = 5


def _with_tff(values, modulus=2**32):
    """TFF's own: the intrinsic, its secure part replaced by the body that TFF gives it for tests."""
    import tensorflow_federated as tff

    vector = tff.TensorType(np.int64, [NUM_VALUES])
    at_server, at_clients = tff.FederatedType(vector, tff.SERVER), tff.FederatedType(vector, tff.CLIENTS)

    @tff.federated_computation(at_server, at_clients)
    def summed(state, updates):
        del state
        total = tff.backends.mapreduce.federated_secure_modular_sum(updates, np.int64(modulus))
        return total, total

    plain = tff.backends.test.replace_secure_intrinsics_with_bodies(summed)
    _, total = plain(np.zeros(NUM_VALUES, np.int64), [value.astype(np.int64) for value in values])
    return total.tolist()


def _with_masks(values):
    round_ = MaskedRoundInMemory(num_devices=len(values) + 1)
    # The last device of the roster never comes.
    sealed = {name: round_.seal(name, value) for name, value in zip(round_.roster, values, strict=False)}
    return round_.plain_sum(sealed).tolist()


def _with_helpers(vectors, helpers=(2, 0)):
    rng = np.random.default_rng(3)
    keys = [make_box_key(rng.bytes) for _ in range(3)]
    order = SealingOrder(
        context=bytes(32), device_id="d", min_contributors=2, num_needed=2,
        helpers=tuple((f"h{i}", key.public_key().public_bytes_raw()) for i, key in enumerate(keys)),
    )  # fmt: skip
    sealed = [seal_to_helpers(vector, order, sign=lambda _: bytes(64), random_bytes=rng.bytes) for vector in vectors]
    total = np.zeros(NUM_VALUES, np.uint32)
    for update in sealed:
        total += vector_of(update.payload, NUM_VALUES)
    answers = {}
    for helper, parts in divide_parts(2, helpers).items():
        masks = np.zeros(NUM_VALUES, np.uint32)
        for update in sealed:
            route = BoxRoute(context=bytes(32), sender_id="d", opener_id=f"h{helper}")
            box = open_box(update.boxes[helper], opener=keys[helper], ephemeral_key=update.ephemeral_key, route=route)
            for part in parts:
                masks += mask_of(read_seeds(box)[part], NUM_VALUES)
        answers[parts] = masks
    return subtract_helper_masks(total, answers, num_needed=2).tolist()


@pytest.mark.parametrize("compute", [_with_tff, _with_masks, _with_helpers])
def test_a_secure_sum_is_the_sum_modulo_two_to_the_32(compute):
    rng = np.random.default_rng(6)
    values = [rng.integers(0, 2**32, NUM_VALUES, dtype=np.uint32) for _ in range(4)]
    exact = [sum(int(value[place]) for value in values) % 2**32 for place in range(NUM_VALUES)]
    assert any(sum(int(value[place]) for value in values) >= 2**32 for place in range(NUM_VALUES))
    assert compute(values) == exact


def _with_encryption(values, modulus):
    assert modulus == bfv.PLAIN_MODULUS
    pair, total = bfv.make_key_pair(), bfv.CiphertextAdder(num_values=NUM_VALUES)
    for value in values:
        total.add(bfv.Encryptor(pair.public).encrypt(bfv.centred(value)))
    return (bfv.Decryptor(pair.secret).decrypt(total.total(), num_values=NUM_VALUES) % modulus).tolist()


@pytest.mark.parametrize("compute", [_with_tff, _with_encryption])
def test_an_encrypted_sum_is_the_sum_modulo_its_prime_also_where_it_wraps_around(compute):
    if compute is _with_encryption and not os.environ.get("CI") and not bfv.is_available():
        pytest.skip("TenSEAL is not installed here")
    rng = np.random.default_rng(6)
    values = [rng.integers(0, bfv.PLAIN_MODULUS, NUM_VALUES) for _ in range(4)]
    exact = [sum(int(value[place]) for value in values) for place in range(NUM_VALUES)]
    assert max(exact) >= bfv.PLAIN_MODULUS
    assert compute(values, bfv.PLAIN_MODULUS) == [total % bfv.PLAIN_MODULUS for total in exact]
