"""A journal that remembers the round under way and nothing else: for simulated coordinators that are never killed."""

from collections.abc import Iterator

from coordinator.round_journal import Contribution, ForgetfulJournal

__all__ = ["RoundMemory"]


class RoundMemory(ForgetfulJournal):
    """Keeps what the round under way has counted, in memory: of a sum under masks a device may be taken out again."""

    def __init__(self) -> None:
        self._round_id = 0
        self._contributions: list[Contribution] = []

    def add(self, round_id: int, contribution: Contribution) -> None:
        """Notes a contribution; those of an earlier round are forgotten."""
        if round_id != self._round_id:
            self._round_id, self._contributions = round_id, []
        self._contributions.append(contribution)

    def contributions(self, round_id: int) -> Iterator[Contribution]:
        """What the round has counted, in order."""
        return iter(self._contributions if round_id == self._round_id else ())
