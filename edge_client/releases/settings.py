"""What a release agent is given: the owner's settings, and something that tries a release."""

import dataclasses
import math
from pathlib import Path
from typing import Protocol

from edge_client.releases.check_child import CheckVerdict

__all__ = ["Checks", "ReleaseSettings"]


class Checks(Protocol):
    """Tries a release in a slot; `health_check.HealthCheck` in a process of its own."""

    def start(self, slot: Path) -> None:
        """Begins."""

    def poll(self) -> CheckVerdict | None:
        """The verdict, if there is one now."""

    def next_wakeup(self) -> float:
        """When ``poll`` is due."""

    def stop(self) -> None:
        """Ends a check under way."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseSettings:
    """The owner's."""

    trial_s: float = 600.0
    """How long a new release is watched before it is settled."""
    max_app_crashes: int = 3
    """So many apps that die on their first answers roll a release back."""
    window: int = 4
    """Pieces fetched at a time."""
    max_bytes_per_s: float = math.inf
