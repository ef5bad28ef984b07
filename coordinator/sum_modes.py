"""Which way a plan's sums are opened: its `sum_mode.SumMode`."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from coordinator.encrypted_mode import EncryptedMode
from coordinator.errors import InvalidConfig
from coordinator.helper_mode import HelperMode
from coordinator.mask_mode import MaskMode
from coordinator.sum_mode import SumMode
from secure_sum.errors import SecureSumError
from wire_protocol.confidentiality import EncryptedSums, HelperSums, MaskedSums
from wire_protocol.plan import TrainingPlan

__all__ = ["sum_mode_of"]

_MODES: Final[Mapping[type[msgspec.Struct], Callable[[TrainingPlan], SumMode]]] = {
    HelperSums: HelperMode,
    EncryptedSums: EncryptedMode,
    MaskedSums: MaskMode,
}


def sum_mode_of(plan: TrainingPlan) -> SumMode | None:
    """The plan's mode; None if the coordinator sees each update.

    Raises:
        InvalidConfig: A mode that this coordinator does not have, or for which something is not installed.
    """
    if plan.confidentiality is msgspec.UNSET:
        return None
    make = _MODES.get(type(plan.confidentiality))
    if make is None:
        raise InvalidConfig(f"{type(plan.confidentiality).__name__} is not a confidentiality that can be opened here")
    try:
        return make(plan)
    except SecureSumError as error:
        raise InvalidConfig(str(error)) from error
