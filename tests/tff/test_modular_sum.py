"""What TFF's secure sum means is what masks compute: the sum of the clients' values, modulo 2^32."""

import numpy as np
import pytest

from simulators.masked_round import MaskedRoundInMemory

pytestmark = pytest.mark.tensorflow

NUM_VALUES = 5


def _with_tff(values):
    """TFF's own: the intrinsic, its secure part replaced by the body that TFF gives it for tests."""
    import tensorflow_federated as tff

    vector = tff.TensorType(np.int64, [NUM_VALUES])
    at_server, at_clients = tff.FederatedType(vector, tff.SERVER), tff.FederatedType(vector, tff.CLIENTS)

    @tff.federated_computation(at_server, at_clients)
    def summed(state, updates):
        del state
        total = tff.backends.mapreduce.federated_secure_modular_sum(updates, 2**32)
        return total, total

    plain = tff.backends.test.replace_secure_intrinsics_with_bodies(summed)
    _, total = plain(np.zeros(NUM_VALUES, np.int64), [value.astype(np.int64) for value in values])
    return total.tolist()


def _with_masks(values):
    round_ = MaskedRoundInMemory(num_devices=len(values) + 1)
    # The last device of the roster never comes.
    sealed = {name: round_.seal(name, value) for name, value in zip(round_.roster, values, strict=False)}
    return round_.plain_sum(sealed).tolist()


@pytest.mark.parametrize("compute", [_with_tff, _with_masks])
def test_a_secure_sum_is_the_sum_modulo_two_to_the_32(compute):
    rng = np.random.default_rng(6)
    values = [rng.integers(0, 2**32, NUM_VALUES, dtype=np.uint32) for _ in range(4)]
    exact = [sum(int(value[place]) for value in values) % 2**32 for place in range(NUM_VALUES)]
    assert any(sum(int(value[place]) for value in values) >= 2**32 for place in range(NUM_VALUES))
    assert compute(values) == exact
