"""A rollout's life as a table: stage by stage to the whole fleet, with pauses, or back. No I/O."""

import enum
from collections.abc import Mapping
from typing import Final

from coordinator.errors import IllegalTransition

__all__ = ["ROLLOUT_MOVES", "RolloutEvent", "RolloutState", "next_state"]


class RolloutState(enum.Enum):
    """Where a rollout stands."""

    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = "complete"
    """The whole fleet is ordered to run it: it is the baseline now."""
    ABORTED = "aborted"
    """Everybody is ordered back to the baseline."""


class RolloutEvent(enum.Enum):
    """What may happen to one."""

    STAGE_PASSED = "stage_passed"
    LAST_STAGE_PASSED = "last_stage_passed"
    GATE_PAUSED = "gate_paused"
    GATE_ABORTED = "gate_aborted"
    PAUSED = "paused"
    """By an operator; so the next two."""
    RESUMED = "resumed"
    ABORTED = "aborted"


_S, _E = RolloutState, RolloutEvent

ROLLOUT_MOVES: Final[Mapping[tuple[RolloutState, RolloutEvent], RolloutState]] = {
    (_S.RUNNING, _E.STAGE_PASSED): _S.RUNNING,
    (_S.RUNNING, _E.LAST_STAGE_PASSED): _S.COMPLETE,
    (_S.RUNNING, _E.GATE_PAUSED): _S.PAUSED,
    (_S.RUNNING, _E.GATE_ABORTED): _S.ABORTED,
    (_S.RUNNING, _E.PAUSED): _S.PAUSED,
    (_S.RUNNING, _E.ABORTED): _S.ABORTED,
    (_S.PAUSED, _E.RESUMED): _S.RUNNING,
    (_S.PAUSED, _E.ABORTED): _S.ABORTED,
}


def next_state(state: RolloutState, event: RolloutEvent) -> RolloutState:
    """Where an event leads.

    Raises:
        IllegalTransition: The table has no such move, such as resuming what is complete.
    """
    try:
        return ROLLOUT_MOVES[state, event]
    except KeyError:
        raise IllegalTransition(f"a rollout that is {state.value} cannot be {event.value}") from None
