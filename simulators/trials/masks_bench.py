"""What masks cost, measured on the real code: the device's sealing, the coordinator's sums and opening, a member's answer.

A device's sealing and the coordinator's arithmetic are always real. In a large round not every device is sealed: the
masked vectors of the others are random words, and the secrets that their masks would grow from are shared directly, so
that the coordinator recombines and expands exactly as many as in a real round. `is_simulated` says which it was.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Mapping
from typing import Final, Self

import numpy as np

from secure_sum.keystream import Words
from secure_sum.mask_opening import MaskOpening
from secure_sum.openings import encode_order
from secure_sum.pairwise_masks import decode_packet
from secure_sum.round_roster import encode_roster
from secure_sum.sealed_box import BoxRoute, open_box
from secure_sum.sealed_update import SealedUpdate, encode_sealed_update, is_signed_by
from secure_sum.shamir import SECRET_BYTES, SHARE_BYTES, split_secret
from simulators.masked_round import MaskedRoundInMemory, masked_total

__all__ = ["MasksCost", "measure_masks"]

_NUM_SEALED: Final = 3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MasksCost:
    """One round of masks mode."""

    num_parameters: int
    num_devices: int
    """On the roster; some of them never answer."""
    num_arrived: int
    device_ms: float
    """CPU time of one device's sealing, milliseconds; median of a few."""
    coordinator_s: float
    """CPU time to add the masked vectors and to take the masks off, seconds."""
    plain_sum_s: float
    """CPU time to add as many vectors that are not masked, seconds."""
    member_ms: float
    """CPU time of one member's answer, milliseconds; of a simulated round a few contributors' time, scaled."""
    up_bytes: int
    """One device's sealed update."""
    down_bytes: int
    """What one device fetches beside plan, model and checkpoint: the roster (the key directory comes once)."""
    member_down_bytes: int
    member_up_bytes: int
    is_simulated: bool


def measure_masks(
    *, num_parameters: int, num_devices: int, dropout: float = 0.1, num_members: int = 32, max_sealed: int = 100
) -> MasksCost:
    """Measures one round.

    Args:
        num_parameters: d.
        num_devices: n, on the roster.
        dropout: Share of them that never answers.
        num_members: m.
        max_sealed: In a round of more devices only a few of them are sealed, and the rest is simulated.
    """
    round_ = MaskedRoundInMemory(num_devices=num_devices, num_members=num_members)
    arrived = round_.roster[: num_devices - round(num_devices * dropout)]
    # Values do not matter for time; one vector serves all.
    update = np.arange(num_parameters, dtype=np.uint32)
    is_simulated = num_devices > max_sealed
    sealed: dict[str, SealedUpdate] = {}
    sealing_s = []
    for name in arrived[:_NUM_SEALED] if is_simulated else arrived:
        with _Stopwatch() as watch:
            sealed[name] = round_.seal(name, update)
        sealing_s.append(watch.seconds)
    with _Stopwatch() as plain:
        _add_up(update, len(arrived))
    opening = round_.opening(arrived)
    example = sealed[arrived[0]]
    if is_simulated:
        member = _Member(
            ms=_reading_ms(round_, sealed) * len(opening.contributors),
            down_bytes=_order_bytes(example, opening, num_members),
        )
        opening_s = _simulated_opening_s(round_, opening, update)
    else:
        member, opening_s = _real_opening(round_, opening, sealed)
    return MasksCost(
        num_parameters=num_parameters,
        num_devices=num_devices,
        num_arrived=len(arrived),
        device_ms=statistics.median(sealing_s) * 1e3,
        coordinator_s=plain.seconds + opening_s,
        plain_sum_s=plain.seconds,
        member_ms=member.ms,
        up_bytes=len(encode_sealed_update(example)),
        down_bytes=len(encode_roster(round_.roster)),
        member_down_bytes=member.down_bytes,
        member_up_bytes=opening.answer_bytes,
        is_simulated=is_simulated,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    ms: float
    down_bytes: int


class _Stopwatch:
    """CPU seconds of a block."""

    seconds = 0.0

    def __enter__(self) -> Self:
        self._start = time.process_time()
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self.seconds = time.process_time() - self._start


def _add_up(update: Words, times: int) -> None:
    """Adds as many vectors as have arrived; each is copied first, as one that comes from the network is."""
    total = np.zeros(len(update), np.uint32)
    for _ in range(times):
        total += np.frombuffer(update.tobytes(), np.uint32)


def _real_opening(
    round_: MaskedRoundInMemory, opening: MaskOpening, sealed: Mapping[str, SealedUpdate]
) -> tuple[_Member, float]:
    """A member's answer, and the coordinator's seconds for taking the masks off."""
    answers, orders, asked_s = [], [], []
    for member in round_.committee[: round_.threshold]:
        orders.append(round_.order(opening, sealed, member))
        with _Stopwatch() as watch:
            answers.append(round_.ask(orders[-1], member).data)
        asked_s.append(watch.seconds)
    total = masked_total(sealed, opening.contributors)
    with _Stopwatch() as watch:
        for number, answer in enumerate(answers, start=1):
            opening.take(number, answer)
        opening.take_masks_off(total)
    cost = _Member(ms=statistics.median(asked_s) * 1e3, down_bytes=len(encode_order(orders[0])))
    return cost, watch.seconds


def _reading_ms(round_: MaskedRoundInMemory, sealed: Mapping[str, SealedUpdate]) -> float:
    """What a member does for one contributor: signature, box, shares."""
    member = round_.committee[0]
    with _Stopwatch() as watch:
        for name, update in sealed.items():
            is_signed_by(round_.rules.registered[name], update.statement(name), update.signature)
            route = BoxRoute(context=round_.context, sender_id=name, opener_id=member)
            key = round_.sealing_key(member)
            decode_packet(open_box(update.boxes[0], opener=key, ephemeral_key=update.ephemeral_key, route=route))
    return watch.seconds * 1e3 / len(sealed)


def _simulated_opening_s(round_: MaskedRoundInMemory, opening: MaskOpening, update: Words) -> float:
    """Shares random secrets for every mask that a real round would open, and takes those masks off."""
    num_secrets = opening.answer_bytes // SHARE_BYTES
    shares = [
        split_secret(
            os.urandom(SECRET_BYTES), threshold=round_.threshold, num_shares=round_.threshold, random_bytes=os.urandom
        )
        for _ in range(num_secrets)
    ]
    with _Stopwatch() as watch:
        for number in range(1, round_.threshold + 1):
            opening.take(number, b"".join(secret[number - 1] for secret in shares))
        opening.take_masks_off(update)
    return watch.seconds


def _order_bytes(example: SealedUpdate, opening: MaskOpening, num_members: int) -> int:
    """An order's size, without the key directory: as many contributors as have arrived, each as long as the example."""
    return len(opening.contributors) * (len(example.boxes[0]) + 32 * num_members + 167) + 10 * len(opening.missing)
