"""Masking to three helpers. The device adds a mask for each *part*; a part's seed goes to the helpers that hold it.

| needed to open | parts, by the helpers that hold them | stands |
|---|---|---|
| any 2 of 3 | {0, 1}, {0, 2}, {1, 2} | one helper may be away |
| all 3 | {0}, {1}, {2} | even if the coordinator and two helpers conspire |

The masked vector is ``y = x + sum over parts of PRG(seed)`` modulo 2^32: uniform for whoever lacks a seed. With two
needed, every helper lacks one part; the coordinator and one helper lack it together. Replicated secret sharing: Ito,
Saito, Nishizeki 1989; with helpers that aggregate: Corrigan-Gibbs and Boneh 2017 ("Prio").

**With two needed, the conspirators must not lie.** A coordinator that has one helper on its side and shows *different*
sets to the other two takes the difference of two sums; no rule of a helper alone can see that, because two quorums of
two may share nobody but the liar. ``docs/privacy.md`` says so; who fears it sets ``num_needed = 3``.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from secure_sum.errors import MalformedSealed, OpeningFailed
from secure_sum.keystream import SEED_BYTES, Words, add_mask
from secure_sum.sealed_box import BOX_OVERHEAD_BYTES, BoxRoute, RandomBytes, make_box_key, seal_box
from secure_sum.sealed_update import SealedMode, SealedUpdate, Sign, Statement, seal_update, vector_payload

__all__ = [
    "MAX_HELPER_BOX_BYTES",
    "NUM_HELPERS",
    "SealingOrder",
    "divide_parts",
    "parts_of",
    "read_seeds",
    "seal_to_helpers",
    "subtract_helper_masks",
]

NUM_HELPERS: Final = 3
_PARTS: Final[Mapping[int, tuple[frozenset[int], ...]]] = {
    2: (frozenset({0, 1}), frozenset({0, 2}), frozenset({1, 2})),
    3: (frozenset({0}), frozenset({1}), frozenset({2})),
}
_ENTRY_BYTES: Final = 1 + SEED_BYTES
MAX_HELPER_BOX_BYTES: Final = 2 * _ENTRY_BYTES + BOX_OVERHEAD_BYTES
"""Longest box of a helper."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SealingOrder:
    """For whom and for which round a device seals."""

    context: bytes
    device_id: str
    min_contributors: int
    """The fewest contributors that the device wants to be summed with."""
    helpers: tuple[tuple[str, bytes], ...]
    """Three: device id and public X25519 key, in the plan's order."""
    num_needed: int
    """2 or 3: how many helpers open."""


def parts_of(num_needed: int) -> tuple[frozenset[int], ...]:
    """Which helpers hold each part.

    Raises:
        ValueError: Not 2 or 3.
    """
    parts = _PARTS.get(num_needed)
    if parts is None:
        raise ValueError(f"2 or 3 of {NUM_HELPERS} helpers open, not {num_needed}")
    return parts


def seal_to_helpers(values: Words, order: SealingOrder, *, sign: Sign, random_bytes: RandomBytes) -> SealedUpdate:
    """Seals an integer update. The values themselves are not changed.

    Args:
        values: uint32 [d].
        order: For whom.
        sign: The device's identity.
        random_bytes: Makes seeds and the ephemeral key: ``os.urandom`` outside tests.

    Raises:
        BoxNotOpened: A helper's key is no key.
        ValueError: Not three helpers.
    """
    if len(order.helpers) != NUM_HELPERS:
        raise ValueError(f"{NUM_HELPERS} helpers, not {len(order.helpers)}")
    masked = values.copy()
    secrets = [b""] * NUM_HELPERS
    for part, holders in enumerate(parts_of(order.num_needed)):
        seed = random_bytes(SEED_BYTES)
        add_mask(masked, seed)
        for holder in holders:
            secrets[holder] += bytes([part]) + seed
    ephemeral = make_box_key(random_bytes)
    boxes = [
        seal_box(
            secret,
            ephemeral=ephemeral,
            opener_key=key,
            route=BoxRoute(context=order.context, sender_id=order.device_id, opener_id=helper_id),
        )
        for secret, (helper_id, key) in zip(secrets, order.helpers, strict=True)
    ]
    statement = Statement(
        context=order.context,
        mode=SealedMode.HELPERS,
        device_id=order.device_id,
        num_values=len(values),
        min_contributors=order.min_contributors,
        payload_sha256=b"",
        ephemeral_key=ephemeral.public_key().public_bytes_raw(),
        box_digests=b"",
    )
    return seal_update(vector_payload(masked), boxes, statement, sign)


def read_seeds(secret: bytes) -> dict[int, bytes]:
    """What a helper finds in its box: part -> seed.

    Raises:
        MalformedSealed: Not one or two seeds, each with its part, in rising order.
    """
    if len(secret) not in {_ENTRY_BYTES, 2 * _ENTRY_BYTES}:
        raise MalformedSealed(f"a helper's box with {len(secret)} bytes")
    entries = [secret[at : at + _ENTRY_BYTES] for at in range(0, len(secret), _ENTRY_BYTES)]
    parts = [entry[0] for entry in entries]
    if parts != sorted(set(parts)):
        raise MalformedSealed("a helper's box whose parts do not rise")
    return {entry[0]: entry[1:] for entry in entries}


def divide_parts(num_needed: int, helpers: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Who of these helpers is to answer for which parts: each part by the first that holds it.

    Args:
        num_needed: 2 or 3.
        helpers: The helpers that are there, by their place in the plan.

    Returns:
        Helper -> its parts; empty if they cannot open.
    """
    divided: dict[int, list[int]] = {}
    for part, holders in enumerate(parts_of(num_needed)):
        holder = next((helper for helper in helpers if helper in holders), None)
        if holder is None:
            return {}
        divided.setdefault(holder, []).append(part)
    return {helper: tuple(parts) for helper, parts in divided.items()}


def subtract_helper_masks(total: Words, answers: Mapping[tuple[int, ...], Words], *, num_needed: int) -> Words:
    """[d] the plain sum modulo 2^32.

    Args:
        total: Sum of the masked vectors.
        answers: Parts -> the sum of their masks over the same contributors.
        num_needed: 2 or 3.

    Raises:
        OpeningFailed: The answers are not for each part once, or of another size.
    """
    answered = sorted(part for parts in answers for part in parts)
    if answered != list(range(len(parts_of(num_needed)))):
        raise OpeningFailed(f"masks of the parts {answered}: each is needed once")
    plain = total.copy()
    for masks in answers.values():
        if masks.shape != plain.shape:
            raise OpeningFailed(f"a sum of {len(plain)} numbers and masks of {len(masks)}")
        plain -= masks
    return plain
