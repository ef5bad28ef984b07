"""What the owner of a device insists on, as values."""

import dataclasses
import math
from typing import Literal

__all__ = ["PrivacyBudget", "PrivacyRules"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyBudget:
    """What a device may spend in its life: (epsilon, delta), unit of privacy the device, add/remove."""

    epsilon: float
    target_delta: float = 1e-5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"a budget's epsilon must be finite and at least 0, not {self.epsilon}")
        if not 0 < self.target_delta < 1:
            raise ValueError(f"target_delta must be in (0, 1), not {self.target_delta}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyRules:
    """What the owner of a device insists on. A plan can ask for less, never for more."""

    budget: PrivacyBudget
    is_required: bool = False
    """Whether tasks without differential privacy are refused."""
    min_contributors: int = 10
    """Smallest cohort in whose sum this device agrees to hide (distributed mode)."""
    min_noise_multiplier: float = 0.3
    """Least noise on a sum, in sensitivities."""
    modes: frozenset[Literal["local", "distributed", "central"]] = frozenset({"local", "distributed"})
    max_clipping_norm: float = math.inf
    """No update longer than this leaves, whatever clip a task has: it is made shorter."""
    confidentiality: frozenset[Literal["none", "helpers", "masks", "he"]] = frozenset(
        {"none", "helpers", "masks", "he"}
    )
    """How single updates may be kept from the coordinator; without ``none`` they must be."""
    allow_queries: bool = True
    """Whether questions to the fleet are answered, within the budget as anything else."""
