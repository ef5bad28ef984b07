"""A device's masks: one of its own and one shared with each neighbour, and the committee's shares of all of them.

``y = x + PRG(b_i) + sum over neighbours j of sign(i, j) PRG(s_ij)``, modulo 2^32. Bonawitz et al. 2017, "Practical
Secure Aggregation for Privacy-Preserving Machine Learning", section 4; the shares go to a committee and not to the
neighbours, in the same message as y: Ma, Woods, Angel, Polychroniadou, Rabin 2023, "Flamingo". In a sum the shared
masks cancel. Of a device that contributed the committee opens b_i, and of a pair one of whose ends did not, s_ij.

# What is hidden

Whoever does not know b_i, or does not know one s_ij, sees in y uniformly random words, whatever x is: as hard to tell
from random as ChaCha20's keystream under an unknown key. b_i is drawn anew for every update. s_ij follows from the two
devices' long-lived keys and the round's context: it is the same if the same two devices mask twice in one round, so a
device seals once per context and no more.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_sum.errors import MalformedSealed
from secure_sum.keystream import SEED_BYTES, Words, add_mask, subtract_mask
from secure_sum.mask_graph import MaskGraph
from secure_sum.shamir import SECRET_BYTES, SHARE_BYTES, decode_share, split_secret

__all__ = [
    "PACKET_HEADER_BYTES",
    "CommitteePacket",
    "MaskSecrets",
    "add_masks",
    "decode_packet",
    "draw_secrets",
    "is_added",
    "make_packets",
    "pair_seed",
    "take_mask_off",
]

_PAIR_DOMAIN: Final = b"flockwise pair mask 1\0"
_PACKET_MAGIC: Final = b"FM\x01"
PACKET_HEADER_BYTES: Final = len(_PACKET_MAGIC) + 32 + 4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MaskSecrets:
    """What one device's masks of one round grow from. None of it leaves the device but in shares."""

    own: bytes = dataclasses.field(repr=False)
    """b_i, 31 bytes, drawn for this update."""
    pairs: Mapping[str, bytes] = dataclasses.field(repr=False)
    """s_ij, 31 bytes, by neighbour; ascending."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CommitteePacket:
    """What a device seals for one member of the committee."""

    roster: bytes
    """``MaskGraph.digest`` of the roster that the device has masked for."""
    num_neighbours: int
    """k, as the device read it in its plan."""
    threshold: int
    """t: shares that give a secret back."""
    own: bytes = dataclasses.field(repr=False)
    """The member's share of b_i."""
    pairs: tuple[bytes, ...] = dataclasses.field(repr=False)
    """Its shares of each s_ij, neighbours ascending."""


def draw_secrets(
    own_key: X25519PrivateKey,
    peer_keys: Mapping[str, bytes],
    *,
    device_id: str,
    graph: MaskGraph,
    context: bytes,
    random_bytes: Callable[[int], bytes],
) -> MaskSecrets:
    """Draws b_i, and agrees on s_ij with every neighbour.

    Args:
        own_key: The device's long-lived key.
        peer_keys: X25519 public keys, 32 bytes, of the neighbours at least.
        device_id: The device.
        graph: The round's.
        context: 32 bytes that name the round.
        random_bytes: ``os.urandom``.

    Raises:
        KeyError: The device is not on the roster, or a neighbour's key is not there.
        MalformedSealed: A neighbour's key is no key.
    """
    pairs = {
        peer: pair_seed(own_key, peer_keys[peer], context=context, own_id=device_id, peer_id=peer)
        for peer in graph.neighbours(device_id)
    }
    return MaskSecrets(own=random_bytes(SECRET_BYTES), pairs=pairs)


def pair_seed(own_key: X25519PrivateKey, peer_key: bytes, *, context: bytes, own_id: str, peer_id: str) -> bytes:
    """s_ij: HKDF-SHA256 of the X25519 secret, over the round's context and both ids. Both devices get the same.

    Raises:
        MalformedSealed: The peer's key is no key, or of small order.
    """
    try:
        shared = own_key.exchange(X25519PublicKey.from_public_bytes(peer_key))
    except ValueError as error:
        raise MalformedSealed(f"the key of {peer_id} is no X25519 key") from error
    names = b"".join(len(name).to_bytes(2, "big") + name for name in sorted((own_id.encode(), peer_id.encode())))
    return HKDF(hashes.SHA256(), SECRET_BYTES, salt=context, info=_PAIR_DOMAIN + names).derive(shared)


def is_added(device_id: str, peer: str) -> bool:
    """Whether a device adds the mask that it shares with this peer; the other one then takes it away."""
    return device_id < peer


def add_masks(update: Words, secrets: MaskSecrets, *, device_id: str) -> Words:
    """y: the update under all its masks.

    Args:
        update: uint32 [d]; is left as it is.
        secrets: The device's.
        device_id: The device.

    Returns:
        uint32 [d].
    """
    masked = update.copy()
    add_mask(masked, _keystream_seed(secrets.own))
    for peer, seed in secrets.pairs.items():
        (add_mask if is_added(device_id, peer) else subtract_mask)(masked, _keystream_seed(seed))
    return masked


def take_mask_off(total: Words, *, device_id: str, peer: str | None, seed: bytes) -> None:
    """Takes one opened mask of a contributor off a sum, in place.

    Args:
        total: uint32 [d].
        device_id: The contributor.
        peer: With whom it shares the mask; None if it is its own.
        seed: 31 bytes.
    """
    was_added = peer is None or is_added(device_id, peer)
    (subtract_mask if was_added else add_mask)(total, _keystream_seed(seed))


def make_packets(
    secrets: MaskSecrets,
    *,
    graph: MaskGraph,
    num_neighbours: int,
    threshold: int,
    num_members: int,
    random_bytes: Callable[[int], bytes],
) -> tuple[bytes, ...]:
    """One packet per member of the committee, to be sealed for it; the first is for member number 1.

    Raises:
        ValueError: Not ``1 <= threshold <= num_members <= 255``.
    """
    split = [
        split_secret(secret, threshold=threshold, num_shares=num_members, random_bytes=random_bytes)
        for secret in (secrets.own, *(secrets.pairs[peer] for peer in sorted(secrets.pairs)))
    ]
    header = _PACKET_MAGIC + graph.digest + num_neighbours.to_bytes(3, "big") + threshold.to_bytes(1, "big")
    return tuple(header + b"".join(shares) for shares in zip(*split, strict=True))


def decode_packet(data: bytes) -> CommitteePacket:
    """Reads a packet; whether it is for the right roster and graph, the committee's rules say.

    Raises:
        MalformedSealed: Not a packet.
    """
    body = len(data) - PACKET_HEADER_BYTES
    if not data.startswith(_PACKET_MAGIC) or body < SHARE_BYTES or body % SHARE_BYTES:
        raise MalformedSealed("not a packet for a member of a committee")
    start = len(_PACKET_MAGIC)
    shares = [data[at : at + SHARE_BYTES] for at in range(PACKET_HEADER_BYTES, len(data), SHARE_BYTES)]
    for share in shares:
        decode_share(share)
    return CommitteePacket(
        roster=data[start : start + 32],
        num_neighbours=int.from_bytes(data[start + 32 : start + 35], "big"),
        threshold=data[start + 35],
        own=shares[0],
        pairs=tuple(shares[1:]),
    )


def _keystream_seed(secret: bytes) -> bytes:
    """A secret of the field as a key of the keystream: 248 of its 256 bits are unknown."""
    return secret.ljust(SEED_BYTES, b"\0")
