"""Who may not be asked yet: noise that is correlated over rounds is sized for devices that take part rarely enough.

Whoever was asked counts, whether he answered or not: his ledger may have been charged. Devices keep the same distance by
their own ledgers (`edge_client.privacy.release_desk`); this saves them the asking.
"""

from collections.abc import Iterable

__all__ = ["ParticipationSpacing"]


class ParticipationSpacing:
    """The cohorts of the last rounds.

    Args:
        num_rounds_apart: A device may be asked in every so many-th round; 1 is every round.
    """

    def __init__(self, num_rounds_apart: int) -> None:
        self._apart = num_rounds_apart
        self._cohorts: dict[int, frozenset[str]] = {}

    def note(self, round_id: int, device_ids: Iterable[str]) -> None:
        """Remembers who was asked in a round."""
        if self._apart > 1:
            self._cohorts[round_id] = frozenset(device_ids)
            for old in [known for known in self._cohorts if known <= round_id - self._apart]:
                del self._cohorts[old]

    def resting(self, round_id: int) -> frozenset[str]:
        """Devices that must not be asked in this round."""
        near = (cohort for known, cohort in self._cohorts.items() if known > round_id - self._apart)
        return frozenset().union(*near)
