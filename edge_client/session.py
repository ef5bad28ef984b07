"""The device session as a transition table. Pure: no clock, no I/O.

`SESSION_TRANSITIONS` is the whole truth; `scripts/draw` draws the documentation's diagram from it. A move
that is not in the table raises `IllegalTransition`, which is always a fault of ours: what the network sends is
checked against the state first, and ignored and counted if it does not fit.
"""

import enum
import types
from collections.abc import Mapping
from typing import Final

from edge_client.errors import IllegalTransition

__all__ = ["SESSION_TRANSITIONS", "DeviceSession", "SessionEvent", "SessionState"]


class SessionState(enum.Enum):
    """Where a device stands."""

    IDLE = "idle"
    """Not taking part; waits until it may check in again."""
    CHECKED_IN = "checked_in"
    """Waits for an answer to its check-in."""
    ASSIGNED = "assigned"
    """Fetches what it lacks of plan, model and checkpoint."""
    TRAINING = "training"
    """A job (training or evaluation) runs."""
    REPORTING = "reporting"
    """Sends its result until a final receipt comes."""


class SessionEvent(enum.Enum):
    """What moves a session."""

    CHECK_IN = "check-in sent"
    ASSIGNMENT = "assigned"
    REFUSAL = "refused"
    TASK_CHANGED = "another task announced"
    BLOBS_READY = "plan, model and checkpoint at hand"
    JOB_FINISHED = "job finished"
    WITHDRAWAL = "withdrawn"
    FINAL_RECEIPT = "accepted or rejected"
    ROUND_CLOSED = "round closed"
    DEADLINE_PASSED = "deadline passed"
    OUTBOX_RESUMED = "outbox resumed"
    GAVE_UP = "unanswered too often"


_S = SessionState
_E = SessionEvent

SESSION_TRANSITIONS: Final[Mapping[tuple[SessionState, SessionEvent], SessionState]] = types.MappingProxyType(
    {
        (_S.IDLE, _E.CHECK_IN): _S.CHECKED_IN,
        (_S.IDLE, _E.OUTBOX_RESUMED): _S.REPORTING,
        (_S.CHECKED_IN, _E.ASSIGNMENT): _S.ASSIGNED,
        (_S.CHECKED_IN, _E.REFUSAL): _S.IDLE,
        (_S.CHECKED_IN, _E.TASK_CHANGED): _S.IDLE,
        (_S.ASSIGNED, _E.BLOBS_READY): _S.TRAINING,
        (_S.ASSIGNED, _E.WITHDRAWAL): _S.IDLE,
        (_S.ASSIGNED, _E.ROUND_CLOSED): _S.IDLE,
        (_S.ASSIGNED, _E.TASK_CHANGED): _S.IDLE,
        (_S.TRAINING, _E.JOB_FINISHED): _S.REPORTING,
        (_S.TRAINING, _E.WITHDRAWAL): _S.IDLE,
        (_S.TRAINING, _E.ROUND_CLOSED): _S.IDLE,
        (_S.TRAINING, _E.TASK_CHANGED): _S.IDLE,
        (_S.REPORTING, _E.FINAL_RECEIPT): _S.IDLE,
        (_S.REPORTING, _E.ROUND_CLOSED): _S.IDLE,
        (_S.REPORTING, _E.TASK_CHANGED): _S.IDLE,
        (_S.REPORTING, _E.DEADLINE_PASSED): _S.IDLE,
        # A report that cannot be stored is not sent, and one from before a restart not for ever.
        (_S.REPORTING, _E.WITHDRAWAL): _S.IDLE,
        (_S.REPORTING, _E.GAVE_UP): _S.IDLE,
    }
)


class DeviceSession:
    """The state of one device; it changes by ``move`` alone."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = SessionState.IDLE

    def move(self, event: SessionEvent) -> None:
        """Moves as the table says.

        Raises:
            IllegalTransition: The table has no such move.
        """
        target = SESSION_TRANSITIONS.get((self.state, event))
        if target is None:
            raise IllegalTransition(f"a session that is {self.state.value} cannot take {event.name}")
        self.state = target
