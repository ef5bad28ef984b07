"""What each way to a confidential sum costs, side by side: a plain sum, helpers, masks, encryption, and Flower's SecAgg+.

All figures are CPU seconds of one process and bytes of what is sent. Devices' and openers' work is real code on real
sizes. Where a round is large, a few devices and openers are measured and the rest is counted (`is_simulated`).
"""

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum.helper_shares import SealingOrder, read_seeds, seal_to_helpers, subtract_helper_masks
from secure_sum.keystream import add_mask
from secure_sum.sealed_box import BoxRoute, open_box
from secure_sum.sealed_update import SealedUpdate, encode_sealed_update, vector_of
from simulators.encrypted_bench import measure_encrypted_sum
from simulators.trials.masks_bench import measure_masks
from wire_protocol.integer_updates import decode_integer_update, encode_integer_update

__all__ = ["ConfidentialRow", "Way", "confidential_rows", "flower_row"]

_DROPOUT: Final = 0.1
_MEASURED: Final = 5
_CONTRIBUTOR_BYTES: Final = 250
"""What a helper is told of each contributor: its statement, its box and its signature."""
_FLOWER: Final = Path(__file__).parent / "trials" / "flower_secagg_worker.py"
_FLOWER_NEIGHBOURS: Final = 64
Way = Literal["plain", "helpers", "masks", "he", "Flower SecAgg+"]
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConfidentialRow:
    """One way, on one size of model and round."""

    way: Way
    num_parameters: int
    num_devices: int
    """Asked; of masks and SecAgg+ a tenth never answers, of the others that makes no difference."""
    device_ms: float
    coordinator_s: float
    """To add and open one round's sum, without the openers."""
    opener_s: float
    """One helper, member of the committee or key authority; 0 if devices do it all."""
    up_bytes: int
    """One device, all its messages."""
    down_bytes: int
    """One device, beside plan, model, checkpoint and key directory."""
    opener_bytes: int
    """To and from one opener."""
    is_simulated: bool


def confidential_rows(num_parameters: int, num_devices: int) -> list[ConfidentialRow]:
    """Plain, helpers, masks and encryption on one size.

    Raises:
        EncryptionUnavailable: TenSEAL is not installed.
    """
    return [
        _plain_row(num_parameters, num_devices),
        _helper_row(num_parameters, num_devices),
        _mask_row(num_parameters, num_devices),
        _encrypted_row(num_parameters, num_devices),
    ]


def flower_row(python: str, num_parameters: int, num_devices: int) -> ConfidentialRow:
    """Flower's SecAgg+ on the same size, in an interpreter that has it.

    Raises:
        CalledProcessError: It did not finish.
    """
    num_dropped = round(_DROPOUT * num_devices)
    arguments = (num_parameters, num_devices, _FLOWER_NEIGHBOURS, num_dropped)
    command = [python, str(_FLOWER), *map(str, arguments)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(answer.stdout.splitlines()[-1])
    return ConfidentialRow(
        way="Flower SecAgg+",
        num_parameters=num_parameters,
        num_devices=num_devices,
        device_ms=figures["device_ms"],
        coordinator_s=figures["coordinator_s"],
        opener_s=0.0,
        up_bytes=figures["up_bytes"],
        down_bytes=figures["down_bytes"],
        opener_bytes=0,
        is_simulated=False,
    )


def _plain_row(num_parameters: int, num_devices: int) -> ConfidentialRow:
    values = _values(num_parameters)
    device_s, data = _timed(lambda: encode_integer_update(values))
    total = np.zeros(num_parameters, np.uint32)

    def fold() -> None:
        np.add(total, decode_integer_update(data, num_parameters), out=total)

    return ConfidentialRow(
        way="plain",
        num_parameters=num_parameters,
        num_devices=num_devices,
        device_ms=1e3 * device_s,
        coordinator_s=_each_s(fold) * num_devices,
        opener_s=0.0,
        up_bytes=len(data),
        down_bytes=0,
        opener_bytes=0,
        is_simulated=num_devices > _MEASURED,
    )


def _helper_row(num_parameters: int, num_devices: int) -> ConfidentialRow:
    keys = [X25519PrivateKey.generate() for _ in range(3)]
    order = SealingOrder(
        context=bytes(32), device_id="device", min_contributors=2, num_needed=2,
        helpers=tuple((f"helper-{at}", key.public_key().public_bytes_raw()) for at, key in enumerate(keys)),
    )  # fmt: skip
    identity, values = Ed25519PrivateKey.generate(), _values(num_parameters)

    def seal() -> SealedUpdate:
        return seal_to_helpers(values, order, sign=identity.sign, random_bytes=os.urandom)

    seal()
    device_s, update = _timed(seal)
    route = BoxRoute(context=order.context, sender_id="device", opener_id="helper-0")
    total, masks = np.zeros(num_parameters, np.uint32), np.zeros(num_parameters, np.uint32)

    def answer_one() -> None:
        box = open_box(update.boxes[0], opener=keys[0], ephemeral_key=update.ephemeral_key, route=route)
        identity.public_key().verify(update.signature, update.statement("device").bytes_to_sign)
        for seed in read_seeds(box).values():
            add_mask(masks, seed)

    def fold() -> None:
        np.add(total, vector_of(update.payload, num_parameters), out=total)

    opening_s, _ = _timed(lambda: subtract_helper_masks(total, {(0, 1): masks, (2,): masks}, num_needed=2))
    return ConfidentialRow(
        way="helpers",
        num_parameters=num_parameters,
        num_devices=num_devices,
        device_ms=1e3 * device_s,
        coordinator_s=_each_s(fold) * num_devices + opening_s,
        opener_s=_each_s(answer_one) * num_devices,
        up_bytes=len(encode_sealed_update(update)),
        down_bytes=0,
        opener_bytes=num_devices * (_CONTRIBUTOR_BYTES + len(update.boxes[0])) + 4 * num_parameters,
        is_simulated=num_devices > _MEASURED,
    )


def _mask_row(num_parameters: int, num_devices: int) -> ConfidentialRow:
    cost = measure_masks(num_parameters=num_parameters, num_devices=num_devices, dropout=_DROPOUT)
    return ConfidentialRow(
        way="masks",
        num_parameters=num_parameters,
        num_devices=num_devices,
        device_ms=cost.device_ms,
        coordinator_s=cost.coordinator_s,
        opener_s=cost.member_ms / 1e3,
        up_bytes=cost.up_bytes,
        down_bytes=cost.down_bytes,
        opener_bytes=cost.member_down_bytes + cost.member_up_bytes,
        is_simulated=cost.is_simulated,
    )


def _encrypted_row(num_parameters: int, num_devices: int) -> ConfidentialRow:
    cost = measure_encrypted_sum(num_parameters, num_devices)
    return ConfidentialRow(
        way="he",
        num_parameters=num_parameters,
        num_devices=num_devices,
        device_ms=cost.device_ms,
        coordinator_s=cost.coordinator_s,
        opener_s=cost.authority_s,
        up_bytes=cost.up_bytes,
        down_bytes=cost.down_bytes,
        opener_bytes=cost.authority_bytes,
        is_simulated=cost.is_scaled,
    )


def _values(num_parameters: int) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    return np.random.default_rng(0).integers(-4000, 4000, num_parameters).astype(np.uint32)


def _timed(act: Callable[[], _T]) -> tuple[float, _T]:
    began = time.process_time()
    result = act()
    return time.process_time() - began, result


def _each_s(act: Callable[[], None]) -> float:
    act()
    began = time.process_time()
    for _ in range(_MEASURED):
        act()
    return (time.process_time() - began) / _MEASURED
