"""How many rounds a private task may still run, by the same price that devices pay.

Round ids are never reused and a private task has no evaluation rounds, so the id of a round bounds how often any
device was charged. Rounds that nobody answered count too: the bound errs on the safe side, and needs no memory of its
own.
"""

from typing import Final

from coordinator.privacy_accounting import claimed_epsilon
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["RoundBudget"]

_ROUNDING: Final = 1e-6


class RoundBudget:
    """A filter over the rounds of one task: fixed beforehand, never raised.

    Args:
        spec: The mechanism, with its target.
    """

    def __init__(self, spec: PrivacySpec) -> None:
        self._spec = spec

    @property
    def target_epsilon(self) -> float:
        """What a device may be charged in all."""
        return self._spec.target_epsilon

    def epsilon_after(self, round_id: int) -> float:
        """What a device that took part in every round up to this one has been charged, by RDP."""
        return claimed_epsilon(self._spec, round_id)

    def allows(self, round_id: int) -> bool:
        """Whether this round stays within the target."""
        return self.epsilon_after(round_id) <= self._spec.target_epsilon + _ROUNDING
