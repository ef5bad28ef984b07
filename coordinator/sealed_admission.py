"""What a sealed update must be before it is added: of this round, of the plan's mode and size, signed by its device.

What it holds, nobody can check: that is its purpose. A device that seals a wrong vector spoils a sum, and reads nothing.
"""

import dataclasses
from collections.abc import Mapping

from coordinator.errors import UpdateRejected
from coordinator.sum_mode import SumMode
from secure_sum.context import round_context
from secure_sum.errors import OversizedSealed, SecureSumError
from secure_sum.sealed_update import SealedUpdate, decode_sealed_update, is_signed_by
from wire_protocol.messages import RejectionReason

__all__ = ["SealedAdmission"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SealedAdmission:
    """What this coordinator's sealed updates look like."""

    mode: SumMode
    population: str
    task_id: str
    plan_sha256: bytes
    num_values: int
    min_contributors: int
    """n_min: who demands more could never be summed."""
    registered: Mapping[str, bytes]
    """Device id -> public Ed25519 key, from the key directory that the openers go by."""
    directory: bytes = b""
    """That directory."""

    def admit(self, data: bytes, *, device_id: str, round_id: int) -> SealedUpdate:
        """Decodes and checks a device's update.

        Raises:
            UpdateRejected: With the reason.
        """
        try:
            update = decode_sealed_update(data, max_bytes=self.mode.max_update_bytes)
            self.mode.check_payload(update.payload)
        except OversizedSealed as error:
            raise UpdateRejected(RejectionReason.OVERSIZED, str(error)) from error
        except SecureSumError as error:
            raise UpdateRejected(RejectionReason.MALFORMED, str(error)) from error
        self._check(update, device_id, round_id)
        return update

    def _check(self, update: SealedUpdate, device_id: str, round_id: int) -> None:
        context = round_context(
            population=self.population, task_id=self.task_id, plan_sha256=self.plan_sha256, round_id=round_id
        )
        if update.context != context:
            raise UpdateRejected(RejectionReason.WRONG_ROUND, "sealed for another round or plan")
        shape = (update.mode, update.num_values, len(update.boxes))
        if shape != (self.mode.sealed_mode, self.num_values, self.mode.num_boxes):
            raise UpdateRejected(RejectionReason.WRONG_SHAPE, "of another mode, length or number of boxes")
        if update.min_contributors > self.min_contributors:
            raise UpdateRejected(RejectionReason.MALFORMED, f"demands {update.min_contributors} contributors")
        key = self.registered.get(device_id)
        if key is None or not is_signed_by(key, update.statement(device_id), update.signature):
            # Openers would refuse the whole set for it.
            raise UpdateRejected(RejectionReason.MALFORMED, "not signed by a device of the key directory")
