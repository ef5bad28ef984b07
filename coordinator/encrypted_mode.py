"""Sums that a key authority decrypts: ciphertexts are added here, and no key is."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from coordinator.errors import InvalidConfig
from coordinator.sum_mode import Answered, Opened, SealedSet
from secure_sum.ciphertext import max_ciphertext_bytes
from secure_sum.encrypted_sum import EncryptedSum
from secure_sum.errors import OpeningFailed
from secure_sum.openings import KeyAsk, OpeningOrder
from secure_sum.sealed_update import SealedMode, sealed_update_bytes, vector_of
from wire_protocol.confidentiality import EncryptedSums
from wire_protocol.plan import TrainingPlan

__all__ = ["EncryptedMode"]

_WORD_BYTES: Final = 4
_RESULT_ALLOWANCE_BYTES: Final = 256


class EncryptedMode:
    """A plan's key authority, as its coordinator sees it.

    Args:
        plan: Names the key authority.

    Raises:
        InvalidConfig: It names none.
        EncryptionUnavailable: TenSEAL is not installed.
    """

    sealed_mode = SealedMode.HE
    num_boxes = 0

    def __init__(self, plan: TrainingPlan) -> None:
        if plan.confidentiality is msgspec.UNSET or not isinstance(plan.confidentiality, EncryptedSums):
            raise InvalidConfig("the plan names no key authority")
        self._num_values = plan.num_update_numbers
        self._most = plan.max_contributors
        self._keys_sha256 = plan.confidentiality.keys.sha256
        self._checker = EncryptedSum(num_values=self._num_values)
        self.opener_ids = (plan.confidentiality.key_authority.device_id,)
        self.max_update_bytes = sealed_update_bytes(
            payload_bytes=max_ciphertext_bytes(self._num_values), num_boxes=0, box_bytes=0
        )
        self.max_result_bytes = _WORD_BYTES * self._num_values + _RESULT_ALLOWANCE_BYTES

    def check_payload(self, payload: bytes) -> None:
        """Refuses what cannot be added."""
        self._checker.check(payload)

    def empty(self) -> EncryptedSum:
        """A total of nothing."""
        return EncryptedSum(num_values=self._num_values)

    def add(self, total: EncryptedSum, payload: bytes) -> EncryptedSum:
        """Adds ciphertexts and tags in place."""
        total.add(payload)
        return total

    def orders(
        self, sealed: SealedSet, answers: Sequence[Answered], silent: frozenset[str]
    ) -> Mapping[str, OpeningOrder]:
        """The one question there is; none if the key authority refused, is silent, or has answered."""
        [authority_id] = self.opener_ids
        if answers or authority_id in silent:
            return {}
        total: EncryptedSum = sealed.total
        ask = KeyAsk(total=total.total(), keys_sha256=self._keys_sha256)
        return {authority_id: sealed.order(ask, box_index=None)}

    def opened(self, sealed: SealedSet, answers: Sequence[Answered]) -> Opened | None:
        """The decrypted sum, if it is here.

        Raises:
            OpeningFailed: So many updates that their sum may have wrapped around; or of another length.
        """
        if not answers:
            return None
        if len(sealed.headers) > self._most:
            raise OpeningFailed(f"the sum of more than {self._most} updates could wrap around: lower grid_bits")
        total = vector_of(answers[0].result.data, self._num_values)
        return Opened(total=total.copy(), num_contributors=len(sealed.headers))
