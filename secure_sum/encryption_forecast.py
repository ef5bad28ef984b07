"""What an encrypted round will cost, before anybody is asked: bytes and CPU seconds, from measured constants.

Measured by ``scripts/bench confidential`` on one core of a server (AMD EPYC, 2026): per ciphertext of 4,096 numbers.
A Raspberry Pi 4 is taken to be 8 times slower; nothing was measured on one.
"""

import dataclasses
from typing import Final

from secure_sum.bfv import CHUNK_VALUES
from secure_sum.errors import ForecastExceeded

__all__ = ["EncryptionForecast", "EncryptionLimits", "check_forecast", "forecast_encryption"]

_CIPHERTEXT_BYTES: Final = 88_700
"""Of a fresh ciphertext and of a sum alike."""
_FRAME_BYTES: Final = 400
_SEAL_S: Final = 3.5e-3
_ADD_S: Final = 0.5e-3
_WRITE_S: Final = 1.0e-3
_DECRYPT_S: Final = 1.0e-3
_WORD_BYTES: Final = 4
_MEBIBYTE: Final = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncryptionForecast:
    """What one round costs."""

    num_values: int
    """d."""
    num_contributors: int
    update_bytes: int
    """Each device's upload; the plain update has 4 d."""
    authority_bytes: int
    """What the coordinator hands to the key authority, and what comes back."""
    device_s: float
    """CPU seconds to encrypt one update on a server's core."""
    slow_device_s: float
    """The same on a machine eight times slower."""
    coordinator_s: float
    """CPU seconds to add all updates, and once more after a restart."""
    authority_s: float
    """CPU seconds to decrypt the sum."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncryptionLimits:
    """What an operator lets a round cost."""

    max_update_bytes: int = 64 * _MEBIBYTE
    max_slow_device_s: float = 120.0
    max_coordinator_s: float = 600.0


def forecast_encryption(num_values: int, num_contributors: int) -> EncryptionForecast:
    """The cost of one round.

    Args:
        num_values: d, at least 1.
        num_contributors: Updates in the sum.
    """
    num_chunks = -(-num_values // CHUNK_VALUES)
    update_bytes = num_chunks * _CIPHERTEXT_BYTES + _FRAME_BYTES
    device_s = num_chunks * _SEAL_S
    return EncryptionForecast(
        num_values=num_values,
        num_contributors=num_contributors,
        update_bytes=update_bytes,
        authority_bytes=update_bytes + num_values * _WORD_BYTES + num_contributors * _FRAME_BYTES,
        device_s=device_s,
        slow_device_s=8 * device_s,
        coordinator_s=num_chunks * (num_contributors * _ADD_S + _WRITE_S),
        authority_s=num_chunks * _DECRYPT_S,
    )


def check_forecast(forecast: EncryptionForecast, limits: EncryptionLimits) -> None:
    """Refuses a round that would cost too much.

    Raises:
        ForecastExceeded: Says which limit, by how much, and what to do.
    """
    costs = (
        ("an update", forecast.update_bytes, limits.max_update_bytes, "bytes"),
        ("encrypting on a slow device", forecast.slow_device_s, limits.max_slow_device_s, "s"),
        ("adding on the coordinator", forecast.coordinator_s, limits.max_coordinator_s, "s"),
    )
    for what, cost, limit, unit in costs:
        if cost > limit:
            raise ForecastExceeded(
                f"{what} would take {cost:,.0f} {unit}, more than the limit of {limit:,.0f}: train fewer weights (freeze "
                f"layers; {forecast.num_values:,} travel now), use helpers or masks (4 bytes a weight instead of 22), "
                "or raise the limit"
            )
