"""After a restart: which rounds are over, and which one goes on. Decides; does nothing.

Every crash falls between two durable steps, and the journal and the stored states say between which:

| the journal's last round is | the latest state has | what happened | so |
|---|---|---|---|
| committed or abandoned | any number of commits | nothing was under way | a new round is opened |
| selecting | any | no device knows of it | it is abandoned |
| reporting | the commits it started from | the round was under way | it goes on: contributions are folded again |
| aggregating | the commits it started from | it waited for the aggregator | it goes on, and takes no report |
| either, training | one commit more | the result was stored, the journal not closed | it is committed |
| either | anything else | state files were put back or removed | it is abandoned |
"""

import dataclasses

from coordinator.round_journal import JournaledRound
from coordinator.round_table import RoundState
from wire_protocol.messages import RoundKind

__all__ = ["Recovery", "recover"]

_UNDER_WAY = frozenset({RoundState.REPORTING, RoundState.AGGREGATING})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """What to do with the rounds of an earlier life."""

    over: tuple[JournaledRound, ...]
    """Rounds that are over; their ``state`` is what it turned out to be."""
    newly_over: tuple[JournaledRound, ...]
    """Those of them whose end the journal does not know yet."""
    unfinished: JournaledRound | None
    """The round that goes on, if any."""


def recover(rounds: list[JournaledRound], *, num_commits: int) -> Recovery:
    """Decides about the rounds of an earlier life.

    Args:
        rounds: What the journal remembers, oldest first.
        num_commits: Commits of the latest stored state.
    """
    over: list[JournaledRound] = []
    newly_over: list[JournaledRound] = []
    unfinished: JournaledRound | None = None
    for known in rounds:
        if known.state in {RoundState.COMMITTED, RoundState.ABANDONED}:
            over.append(known)
        elif known is rounds[-1] and known.state in _UNDER_WAY and known.base_commits == num_commits:
            unfinished = known
        else:
            ended = dataclasses.replace(known, state=_fate(known, num_commits))
            over.append(ended)
            newly_over.append(ended)
    return Recovery(over=tuple(over), newly_over=tuple(newly_over), unfinished=unfinished)


def _fate(known: JournaledRound, num_commits: int) -> RoundState:
    was_stored = known.state in _UNDER_WAY and known.kind is RoundKind.TRAIN and num_commits == known.base_commits + 1
    return RoundState.COMMITTED if was_stored else RoundState.ABANDONED
