"""What encrypted sums cost, measured: CPU time and bytes of device, coordinator and key authority, beside a plain sum."""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum.bfv import Decryptor, Encryptor, make_key_pair
from secure_sum.ciphertext import decode_ciphertext
from secure_sum.encrypted_sum import EncryptedSum
from secure_sum.encrypted_update import EncryptionOrder, seal_encrypted
from secure_sum.encryption_forecast import EncryptionForecast, forecast_encryption
from secure_sum.encryption_keys import release_encryption_keys
from secure_sum.sealed_update import SealedUpdate, encode_sealed_update
from wire_protocol.integer_updates import decode_integer_update, encode_integer_update

__all__ = ["EncryptedCost", "measure_encrypted_sum"]

_MOST_ADDED: Final = 10
"""More updates than this are not added one by one: their cost is this many's, scaled."""
_BANKS: Final = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncryptedCost:
    """One row. Seconds are CPU seconds of one process."""

    num_values: int
    num_contributors: int
    is_scaled: bool
    """Whether the coordinator's time is that of fewer updates, scaled."""
    device_ms: float
    plain_device_ms: float
    coordinator_s: float
    plain_coordinator_s: float
    authority_s: float
    up_bytes: int
    plain_up_bytes: int
    down_bytes: int
    """The key authority's release, fetched once per plan, for five devices."""
    authority_bytes: int
    """What the key authority gets and gives, without the list of contributors."""
    forecast: EncryptionForecast
    is_exact: bool
    """Whether the decrypted sum was the plain one, bit for bit."""


def measure_encrypted_sum(num_values: int, num_contributors: int) -> EncryptedCost:
    """Measures one size.

    Args:
        num_values: d.
        num_contributors: n.

    Raises:
        EncryptionUnavailable: TenSEAL is not installed.
    """
    pair, authority = make_key_pair(), X25519PrivateKey.generate()
    order = EncryptionOrder(
        context=bytes(32), device_id="device", min_contributors=2, authority_id="ka",
        authority_key=authority.public_key().public_bytes_raw(), tag_secret=bytes(32),
    )  # fmt: skip
    values = np.random.default_rng(0).integers(-4000, 4000, num_values).astype(np.uint32)
    encryptor, identity = Encryptor(pair.public), Ed25519PrivateKey.generate()

    def seal() -> SealedUpdate:
        return seal_encrypted(values, order, encryptor=encryptor, sign=identity.sign, random_bytes=os.urandom)

    seal()
    device_s, update = _timed(seal)
    plain_device_s, plain = _timed(lambda: encode_integer_update(values))
    total, plain_total = EncryptedSum(num_values=num_values), np.zeros(num_values, np.uint32)
    num_added = min(num_contributors, _MOST_ADDED)
    add_s = plain_add_s = 0.0

    def fold() -> None:
        total.check(update.payload)
        total.add(update.payload)

    for _ in range(num_added):
        add_s += _timed(fold)[0]
        plain_add_s += _timed(lambda: np.add(plain_total, decode_integer_update(plain, num_values), out=plain_total))[0]
    write_s, asked = _timed(total.total)
    decryptor = Decryptor(pair.secret)
    chunks = decode_ciphertext(asked, num_values=num_values).chunks
    authority_s, opened = _timed(lambda: decryptor.decrypt(chunks, num_values=num_values))
    release = release_encryption_keys(
        population="p", authority_id="ka", public_key=pair.public, tag_secret=bytes(32),
        sealing_keys={f"bank{i}": X25519PrivateKey.generate().public_key().public_bytes_raw() for i in range(_BANKS)},
        sign=identity.sign, random_bytes=os.urandom,
    )  # fmt: skip
    return EncryptedCost(
        num_values=num_values,
        num_contributors=num_contributors,
        is_scaled=num_added < num_contributors,
        device_ms=1e3 * device_s,
        plain_device_ms=1e3 * plain_device_s,
        coordinator_s=add_s * num_contributors / num_added + write_s,
        plain_coordinator_s=plain_add_s * num_contributors / num_added,
        authority_s=authority_s,
        up_bytes=len(encode_sealed_update(update)),
        plain_up_bytes=len(plain),
        down_bytes=len(release.encode()),
        authority_bytes=len(asked) + 4 * num_values,
        forecast=forecast_encryption(num_values, num_contributors),
        is_exact=bool(np.array_equal(opened.astype(np.uint32), plain_total)),
    )


_T = TypeVar("_T")


def _timed(act: Callable[[], _T]) -> tuple[float, _T]:
    began = time.process_time()
    result = act()
    return time.process_time() - began, result
