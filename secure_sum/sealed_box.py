"""A small secret for one opener: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439).

A device makes a fresh ephemeral key for each sealed update, and seals one box for each opener with it. The key of a
box follows from the exchange, the round, both parties and both public keys; it seals one box, so that the nonce can be
zero. The same names are the associated data: a box opens for its opener, its sender and its round, and for no other.
"""

import dataclasses
import struct
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_sum.errors import BoxNotOpened

__all__ = ["BOX_KEY_BYTES", "BOX_OVERHEAD_BYTES", "BoxRoute", "RandomBytes", "make_box_key", "open_box", "seal_box"]

BOX_KEY_BYTES: Final = 32
BOX_OVERHEAD_BYTES: Final = 16
"""What a box is longer than its secret: the tag."""
RandomBytes = Callable[[int], bytes]
"""``random_bytes(n)``: n unguessable bytes; ``os.urandom`` outside tests."""

_DOMAIN: Final = b"flockwise sealed box 1\x00"
_NONCE: Final = bytes(12)
_KEY_BYTES: Final = 32


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BoxRoute:
    """From whom to whom, and for which round."""

    context: bytes
    """32 bytes: `round_context`."""
    sender_id: str
    opener_id: str

    def info(self, ephemeral_key: bytes, opener_key: bytes) -> bytes:
        """What a box's key and tag cover."""
        names = b"".join(
            struct.pack(">H", len(name)) + name for name in (self.sender_id.encode(), self.opener_id.encode())
        )
        return b"".join((_DOMAIN, self.context, ephemeral_key, opener_key, names))


def make_box_key(random_bytes: RandomBytes) -> X25519PrivateKey:
    """A private key from 32 random bytes."""
    return X25519PrivateKey.from_private_bytes(random_bytes(BOX_KEY_BYTES))


def seal_box(secret: bytes, *, ephemeral: X25519PrivateKey, opener_key: bytes, route: BoxRoute) -> bytes:
    """Seals a secret for one opener.

    Args:
        secret: What the opener is to read.
        ephemeral: The sender's key for this one sealed update.
        opener_key: The opener's public X25519 key, 32 bytes.
        route: Round and parties; no two boxes of one ephemeral key may have the same.

    Returns:
        The secret, encrypted, and 16 bytes more.

    Raises:
        BoxNotOpened: ``opener_key`` is no key that secrets can be sealed for.
    """
    info = route.info(ephemeral.public_key().public_bytes_raw(), opener_key)
    return _cipher(ephemeral, opener_key, info).encrypt(_NONCE, secret, info)


def open_box(box: bytes, *, opener: X25519PrivateKey, ephemeral_key: bytes, route: BoxRoute) -> bytes:
    """Opens a box.

    Raises:
        BoxNotOpened: It is not for this key, round and pair of parties, or was changed.
    """
    info = route.info(ephemeral_key, opener.public_key().public_bytes_raw())
    try:
        return _cipher(opener, ephemeral_key, info).decrypt(_NONCE, box, info)
    except (InvalidTag, ValueError) as error:
        raise BoxNotOpened(f"the box of {route.sender_id} for {route.opener_id} does not open") from error


def _cipher(own: X25519PrivateKey, other: bytes, info: bytes) -> ChaCha20Poly1305:
    try:
        # The library refuses a result of zeros, which keys of small order give.
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:
        raise BoxNotOpened("not a public X25519 key that secrets can be sealed for") from error
    return ChaCha20Poly1305(HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=info).derive(shared))
