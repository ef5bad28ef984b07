"""From a seed to a mask: ChaCha20's keystream (RFC 8439), read as little-endian words of 32 bits.

A seed makes one mask and is used for nothing else; so the nonce can be zero.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

__all__ = ["SEED_BYTES", "Words", "add_mask", "mask_of", "subtract_mask"]

SEED_BYTES: Final = 32
Words = npt.NDArray[np.uint32]
"""[d] integers modulo 2^32."""

_NONCE: Final = bytes(16)
_CHUNK_WORDS: Final = 1 << 16
_ZEROS: Final = bytes(4 * _CHUNK_WORDS)


def mask_of(seed: bytes, num_values: int) -> Words:
    """[num_values] the seed's mask.

    Args:
        seed: 32 bytes.
        num_values: d; below 2^36 words the block counter of ChaCha20 does not run over.

    Raises:
        ValueError: The seed has another length.
    """
    mask = np.zeros(num_values, np.uint32)
    add_mask(mask, seed)
    return mask


def add_mask(target: Words, seed: bytes) -> None:
    """Adds the seed's mask to ``target``, in place, modulo 2^32.

    Raises:
        ValueError: The seed has another length than 32 bytes.
    """
    _apply(target, seed, np.add)


def subtract_mask(target: Words, seed: bytes) -> None:
    """Takes the seed's mask from ``target``, in place, modulo 2^32.

    Raises:
        ValueError: The seed has another length than 32 bytes.
    """
    _apply(target, seed, np.subtract)


def _apply(target: Words, seed: bytes, combine: np.ufunc) -> None:
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    stream = Cipher(algorithms.ChaCha20(seed, _NONCE), mode=None).encryptor()
    # In pieces that stay in the cache: no second vector of the model's size is needed.
    for start in range(0, len(target), _CHUNK_WORDS):
        part = target[start : start + _CHUNK_WORDS]
        words = np.frombuffer(stream.update(_ZEROS[: 4 * len(part)]), dtype="<u4")
        combine(part, words, out=part)
