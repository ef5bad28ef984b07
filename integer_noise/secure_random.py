"""Random words for noise: ChaCha20 keyed by the operating system.

numpy's generators are predictable from their output; this is the only source of randomness that noise and rounding
take. There is no seed to set: a generator asks ``os.urandom`` itself, and a test that wants to replay one must
replace that function where it can be seen (`tests/architecture` looks for it in the product).
"""

import os
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

__all__ = ["SecureRandom"]

_KEY_BYTES: Final = 32
_NONCE: Final = bytes(16)
_REKEY_AFTER_BYTES: Final = 1 << 30


class SecureRandom:
    """A stream of uniform words. One per release: a key is never used twice.

    RFC 8439 ChaCha20 as a keystream over zeros; its 32-bit block counter lasts 256 GiB, and the key is renewed long
    before.
    """

    __slots__ = ("_left", "_stream")

    def __init__(self) -> None:
        self._left = 0
        self._renew()

    def uint64(self, count: int) -> npt.NDArray[np.uint64]:
        """[count] uniform over 0 .. 2^64 - 1."""
        return np.frombuffer(self._bytes(8 * count), dtype="<u8")

    def uint32(self, count: int) -> npt.NDArray[np.uint32]:
        """[count] uniform over 0 .. 2^32 - 1."""
        return np.frombuffer(self._bytes(4 * count), dtype="<u4")

    def _bytes(self, count: int) -> bytes:
        if count > self._left:
            self._renew()
        self._left -= count
        return self._stream.update(bytes(count))

    def _renew(self) -> None:
        self._stream = Cipher(algorithms.ChaCha20(os.urandom(_KEY_BYTES), _NONCE), mode=None).encryptor()
        self._left = _REKEY_AFTER_BYTES
