"""Tags by which a key authority knows that what it decrypts is the sum it was told of, and nothing else.

The key authority sees one ciphertext and a list of contributors. Without more it could not tell the sum of theirs from
one device's update, nor from a ciphertext that is made to give its own secret key away, which one decryption of chosen
bytes does. So each device adds to its ciphertext four numbers modulo t:

    tag_k = <w_k, x> + p_k  (mod t)

with its integers x, weights w_k that devices and key authority know and the coordinator does not, and pads p_k that
this device and the key authority alone know. The coordinator adds tags as it adds ciphertexts. The key authority
decrypts X and compares ``<w_k, X> + sum of the contributors' pads`` with the total's tags, before it says anything.

# What follows

* A total that is anything but the sum of exactly the listed contributors' integers passes with probability at most
  t^-4, below 2^-119, whatever the coordinator adds or multiplies: it knows no w_k, and what it sees of them is padded
  (a linearly homomorphic authenticator: Agrawal, Boneh 2009, "Homomorphic MACs: MAC-based integrity for network
  coding", section 3, with a pad per sender).
* The tags say nothing of x to the coordinator: each is the sum with a fresh uniform number. The key authority sees
  their total alone, which it could compute itself.
* **A contributor that conspires with the coordinator** makes the weights known. The pads of the others stay secret, and
  a total passes only if it is the honest sum plus numbers that the conspirators know: they can shift the sum, as the
  contributor can by its own update, and have nothing else decrypted. By shifts whose outcome depends on the secret key they
  learn a bit of it per round, and lose a round for every wrong guess; `key_rules` ends that after a few.

Weights follow from the tag secret and the round's context; pads from an exchange of the update's ephemeral key with
the key authority's sealing key, so that no pad is used twice.
"""

import hmac
import struct
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_sum.bfv import PLAIN_MODULUS
from secure_sum.ciphertext import NUM_TAGS
from secure_sum.errors import BoxNotOpened
from secure_sum.sealed_box import BoxRoute

__all__ = ["TAG_SECRET_BYTES", "are_same_tags", "inner_tags", "sum_of_tags", "tag_pads"]

TAG_SECRET_BYTES: Final = 32

_WEIGHTS_DOMAIN: Final = b"flockwise tag weights 1\x00"
_PADS_DOMAIN: Final = b"flockwise tag pads 1\x00"
_WORD_BYTES: Final = 8
_BLOCK: Final = 1 << 16
"""Weights are made and used in blocks: four rows of a large model would take tens of megabytes."""

Tags = tuple[int, ...]
"""[NUM_TAGS] numbers modulo t."""


def inner_tags(values: npt.NDArray[np.int64], *, tag_secret: bytes, context: bytes) -> Tags:
    """``<w_k, values>`` modulo t, for each k.

    Args:
        values: [d] integers, centred or not.
        tag_secret: 32 bytes, known to devices and key authority.
        context: 32 bytes: the round's.
    """
    residues = (values % PLAIN_MODULUS).astype(np.uint64)
    return tuple(_weighted(residues, _weights_stream(tag_secret, context, row)) for row in range(NUM_TAGS))


def tag_pads(own: X25519PrivateKey, other: bytes, *, ephemeral_key: bytes, opener_key: bytes, route: BoxRoute) -> Tags:
    """One update's pads; both sides of the exchange get the same.

    Args:
        own: The update's ephemeral key (device), or the key authority's sealing key.
        other: The other side's public key, 32 bytes.
        ephemeral_key: The update's public ephemeral key.
        opener_key: The key authority's public sealing key.
        route: Round, device and key authority.

    Raises:
        BoxNotOpened: ``other`` is no key that a secret can be made with.
    """
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:
        raise BoxNotOpened("not a public X25519 key that secrets can be made with") from error
    info = _PADS_DOMAIN + route.info(ephemeral_key, opener_key)
    words = HKDF(hashes.SHA256(), NUM_TAGS * _WORD_BYTES, salt=None, info=info).derive(shared)
    # 64 bits modulo 30: 2^-34 from uniform.
    return tuple(word % PLAIN_MODULUS for word in struct.unpack(f">{NUM_TAGS}Q", words))


def sum_of_tags(tags: Iterable[Tags]) -> Tags:
    """The sum, modulo t, number by number."""
    total = [0] * NUM_TAGS
    for one in tags:
        total = [(a + b) % PLAIN_MODULUS for a, b in zip(total, one, strict=True)]
    return tuple(total)


def are_same_tags(one: Tags, other: Tags) -> bool:
    """Compares in a time that does not depend on where they differ."""
    return hmac.compare_digest(*(struct.pack(f">{NUM_TAGS}I", *tags) for tags in (one, other)))


def _weighted(residues: npt.NDArray[np.uint64], stream: "_Stream") -> int:
    total = 0
    for start in range(0, len(residues), _BLOCK):
        block = residues[start : start + _BLOCK]
        # Below 2^60 each; reduced, a block's sum is below 2^46.
        total += int((stream.residues(len(block)) * block % PLAIN_MODULUS).sum())
    return total % PLAIN_MODULUS


def _weights_stream(tag_secret: bytes, context: bytes, row: int) -> "_Stream":
    info = _WEIGHTS_DOMAIN + context + bytes([row])
    return _Stream(HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(tag_secret))


class _Stream:
    """Uniform numbers modulo t from ChaCha20 (RFC 8439), to 2^-34."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def residues(self, count: int) -> npt.NDArray[np.uint64]:
        words = np.frombuffer(self._cipher.update(bytes(_WORD_BYTES * count)), dtype="<u8")
        residues: npt.NDArray[np.uint64] = words % np.uint64(PLAIN_MODULUS)
        return residues
