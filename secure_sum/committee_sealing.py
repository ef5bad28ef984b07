"""From an integer update to the sealed update of masks mode: what the device checks, and the whole of what it sends.

Everything goes out in one message: the masked vector, and for every member of the committee a box with its shares of
all the device's masks. The device refuses a round that could not hide it; a coordinator cannot talk it out of that.
"""

import dataclasses
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum.committee_rules import check_committee
from secure_sum.errors import SealingRefused
from secure_sum.keystream import Words
from secure_sum.mask_graph import MaskGraph
from secure_sum.pairwise_masks import MaskSecrets, add_masks, draw_secrets, make_packets
from secure_sum.sealed_box import BoxRoute, RandomBytes, make_box_key, seal_box
from secure_sum.sealed_update import SealedMode, SealedUpdate, Sign, Statement, seal_update, vector_payload

__all__ = ["MaskedRound", "check_round", "seal_to_committee"]

_FEWEST: Final = 2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MaskedRound:
    """A round as one of its devices knows it."""

    context: bytes
    """32 bytes: `round_context`."""
    device_id: str
    min_contributors: int
    """The fewest contributors that the device wants to be summed with."""
    roster: tuple[str, ...]
    """Who was asked, ascending."""
    num_neighbours: int
    """k: neighbours of a device in a round of more than 64."""
    device_keys: Mapping[str, bytes]
    """X25519 public keys of devices, from the key directory and from nowhere else."""
    committee: tuple[str, ...]
    """Device ids, in the plan's order."""
    threshold: int
    """t: members that open."""


def check_round(round_: MaskedRound) -> MaskGraph:
    """Checks a round before anything is masked for it.

    Returns:
        The round's graph.

    Raises:
        SealingRefused: The device is not on the roster, the roster is smaller than the device demands or names one that
            is not in the key directory, or the committee could open two sets of the round.
    """
    try:
        graph = MaskGraph(round_.roster, context=round_.context, num_neighbours=round_.num_neighbours)
        check_committee(threshold=round_.threshold, num_members=len(round_.committee))
    except ValueError as error:
        raise SealingRefused(str(error)) from error
    if round_.device_id not in graph:
        raise SealingRefused("this device is not on the round's roster")
    if len(round_.roster) < max(_FEWEST, round_.min_contributors):
        raise SealingRefused(
            f"the roster names {len(round_.roster)} devices; this one hides among "
            f"{max(_FEWEST, round_.min_contributors)} at least"
        )
    if len(set(round_.committee)) != len(round_.committee):
        raise SealingRefused("the committee names a device twice")
    unknown = [name for name in (*round_.roster, *round_.committee) if name not in round_.device_keys]
    if unknown:
        raise SealingRefused(f"{unknown[0]} is not in the key directory")
    return graph


def seal_to_committee(
    values: Words, round_: MaskedRound, *, own_key: X25519PrivateKey, sign: Sign, random_bytes: RandomBytes
) -> SealedUpdate:
    """Seals an integer update. The values themselves are not changed.

    A device does this once per context: shared masks would be the same the second time.

    Args:
        values: uint32 [d].
        round_: For whom.
        own_key: The device's long-lived key, whose public half the key directory has.
        sign: The device's identity.
        random_bytes: ``os.urandom`` outside tests.

    Raises:
        SealingRefused: As ``check_round``.
        MalformedSealed: A neighbour's key is no key.
        BoxNotOpened: A member's key is no key.
    """
    graph = check_round(round_)
    secrets = draw_secrets(
        own_key,
        round_.device_keys,
        device_id=round_.device_id,
        graph=graph,
        context=round_.context,
        random_bytes=random_bytes,
    )
    masked = add_masks(values, secrets, device_id=round_.device_id)
    ephemeral = make_box_key(random_bytes)
    boxes = [
        seal_box(
            packet,
            ephemeral=ephemeral,
            opener_key=round_.device_keys[member],
            route=BoxRoute(context=round_.context, sender_id=round_.device_id, opener_id=member),
        )
        for packet, member in zip(_packets(secrets, round_, graph, random_bytes), round_.committee, strict=True)
    ]
    statement = Statement(
        context=round_.context,
        mode=SealedMode.MASKS,
        device_id=round_.device_id,
        num_values=len(values),
        min_contributors=max(_FEWEST, round_.min_contributors),
        payload_sha256=b"",
        ephemeral_key=ephemeral.public_key().public_bytes_raw(),
        box_digests=b"",
    )
    return seal_update(vector_payload(masked), boxes, statement, sign)


def _packets(
    secrets: MaskSecrets, round_: MaskedRound, graph: MaskGraph, random_bytes: RandomBytes
) -> tuple[bytes, ...]:
    return make_packets(
        secrets,
        graph=graph,
        num_neighbours=round_.num_neighbours,
        threshold=round_.threshold,
        num_members=len(round_.committee),
        random_bytes=random_bytes,
    )
