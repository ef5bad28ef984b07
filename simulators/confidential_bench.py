"""What each way to a confidential sum costs, side by side: a plain sum, helpers, masks, encryption, and Flower's SecAgg+.

All figures are CPU seconds of one process and bytes of what is sent. Devices' and openers' work is real code on real
sizes. Where a round is large, a few devices and openers are measured and the rest is counted (`is_simulated`).
"""

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_sum.sealed_update import (
    SealedMode,
    Statement,
    decode_sealed_update,
    encode_sealed_update,
    is_signed_by,
    seal_update,
)
from simulators.encrypted_bench import measure_encrypted_sum
from simulators.trials.helpers_bench import measure_helpers
from simulators.trials.masks_bench import measure_masks
from wire_protocol.integer_updates import decode_integer_update, encode_integer_update

__all__ = ["ConfidentialRow", "Way", "confidential_markdown", "confidential_rows", "flower_row"]

_DROPOUT: Final = 0.1
_MEASURED: Final = 5
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
    """To admit, add and open one round's updates, without the openers; of the plain sum and Flower's, to add them."""
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


def confidential_markdown(rows: Sequence[ConfidentialRow]) -> str:
    """The rows as a table."""
    lines = [
        "| numbers | devices | way | a device | coordinator | an opener | a device sends | and fetches | to and from an opener |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        star = " \\*" if row.is_simulated else ""
        lines.append(
            f"| {row.num_parameters:,} | {row.num_devices:,} | {row.way} | {row.device_ms:.1f} ms "
            f"| {row.coordinator_s:.2f} s{star} | {row.opener_s:.2f} s | {_size(row.up_bytes)} | {_size(row.down_bytes)} "
            f"| {_size(row.opener_bytes)} |"
        )
    return "\n".join(lines) + "\n"


def _size(num_bytes: int) -> str:
    if not num_bytes:
        return "-"
    return f"{num_bytes / 1e6:.2f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"  # noqa: PLR2004


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
    cost = measure_helpers(num_parameters, num_devices)
    return ConfidentialRow(
        way="helpers",
        num_parameters=num_parameters,
        num_devices=num_devices,
        device_ms=cost.device_ms,
        coordinator_s=cost.coordinator_s,
        opener_s=cost.helper_s,
        up_bytes=cost.up_bytes,
        down_bytes=0,
        opener_bytes=cost.helper_down_bytes + cost.helper_up_bytes,
        is_simulated=cost.is_scaled,
    )


def _admission_s(num_bytes: int) -> float:
    """What the coordinator does with each sealed update before it adds it: take it apart, hash it, check its signature."""
    identity = Ed25519PrivateKey.generate()
    statement = Statement(
        context=bytes(32), mode=SealedMode.HELPERS, device_id="device", num_values=1, min_contributors=2,
        payload_sha256=b"", ephemeral_key=bytes(32), box_digests=b"",
    )  # fmt: skip
    data = encode_sealed_update(seal_update(os.urandom(num_bytes), [], statement, identity.sign))
    public_key = identity.public_key().public_bytes_raw()

    def admit() -> None:
        update = decode_sealed_update(data, max_bytes=len(data))
        if not is_signed_by(public_key, update.statement("device"), update.signature):
            raise AssertionError("a signature of our own is refused")

    return _each_s(admit)


def _mask_row(num_parameters: int, num_devices: int) -> ConfidentialRow:
    cost = measure_masks(num_parameters=num_parameters, num_devices=num_devices, dropout=_DROPOUT)
    return ConfidentialRow(
        way="masks",
        num_parameters=num_parameters,
        num_devices=num_devices,
        device_ms=cost.device_ms,
        coordinator_s=cost.coordinator_s + _admission_s(cost.up_bytes) * cost.num_arrived,
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
        coordinator_s=cost.coordinator_s + _admission_s(cost.up_bytes) * num_devices,
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
