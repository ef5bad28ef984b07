"""Who says something about a release: with a roster, only an enrolled device, by its signature.

The coordinator keeps each device's highest position in the roster; this station hears some of the same messages and must
not contend with it for them. So it keeps positions of its own, in memory: after a restart an old report may be
heard once more, which changes nothing but what a device said last, until it says the next.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from coordinator.roster import DeviceState, Roster
from wire_protocol.errors import WireError
from wire_protocol.signed import bytes_to_sign, is_signed, parse_signed

__all__ = ["AnyReports", "SignedReports"]

_REFRESH_S: Final = 5.0


class AnyReports:
    """Believes everybody; takes envelopes off without a look. For loopback and trials."""

    def open(self, topic: str, payload: bytes, device_id: str) -> bytes | None:
        """The message inside."""
        del topic, device_id
        if not is_signed(payload):
            return payload
        try:
            return parse_signed(payload).message
        except WireError:
            return None


class SignedReports:
    """Believes devices of a roster that are not revoked.

    Args:
        roster_file: The roster.
        population: Whose devices.
        clock: Monotonic time in seconds.

    Raises:
        RosterUnusable: The roster cannot be read.
    """

    def __init__(self, roster_file: Path, *, population: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._roster = Roster(roster_file)
        self._population = population
        self._clock = clock
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._positions: dict[str, tuple[int, int]] = {}
        self._refresh_at = -1.0

    def open(self, topic: str, payload: bytes, device_id: str) -> bytes | None:
        """The message inside, if this device signed it and it is newer than its last."""
        self._refresh()
        key = self._keys.get(device_id)
        if key is None:
            return None
        try:
            signed = parse_signed(payload)
            statement = bytes_to_sign(topic, epoch=signed.epoch, counter=signed.counter, message=signed.message)
            key.verify(signed.signature, statement)
        except (WireError, InvalidSignature):
            return None
        if signed.position <= self._positions.get(device_id, (-1, -1)):
            return None
        self._positions[device_id] = signed.position
        return signed.message

    def _refresh(self) -> None:
        if self._clock() < self._refresh_at:
            return
        self._refresh_at = self._clock() + _REFRESH_S
        self._keys = {
            record.device_id: Ed25519PublicKey.from_public_bytes(record.public_key)
            for record in self._roster.devices(self._population)
            if record.state is DeviceState.ACTIVE
        }
