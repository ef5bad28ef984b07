"""How far a device is with one model's next release, as a table. No I/O."""

import enum
from collections.abc import Mapping
from typing import Final

from edge_client.errors import IllegalTransition

__all__ = ["RELEASE_MOVES", "ReleaseEvent", "ReleaseStage", "next_stage"]


class ReleaseStage(enum.Enum):
    """What is going on."""

    SETTLED = "settled"
    """Nothing: the device runs what it runs."""
    FETCHING = "fetching"
    CHECKING = "checking"
    """The release is here, not in use, and tries the golden batch in a process of its own."""
    TRIAL = "trial"
    """The release is in use and watched."""


class ReleaseEvent(enum.Enum):
    """What may happen."""

    ORDERED = "ordered"
    """Another release is wanted, and its pieces are not here."""
    ORDERED_AGAIN = "ordered_again"
    """Another release is wanted that is here: the way back, mostly."""
    STILL_ON_TRIAL = "still_on_trial"
    """What is in use is wanted again, and its trial was broken off."""
    FETCHED = "fetched"
    CHECK_PASSED = "check_passed"
    CHECK_FAILED = "check_failed"
    NOT_KEPT = "not_kept"
    """The disk refuses it."""
    WANTED_NO_MORE = "wanted_no_more"
    TRIAL_PASSED = "trial_passed"
    TRIAL_FAILED = "trial_failed"


_S, _E = ReleaseStage, ReleaseEvent

RELEASE_MOVES: Final[Mapping[tuple[ReleaseStage, ReleaseEvent], ReleaseStage]] = {
    (_S.SETTLED, _E.ORDERED): _S.FETCHING,
    (_S.SETTLED, _E.ORDERED_AGAIN): _S.CHECKING,
    (_S.SETTLED, _E.STILL_ON_TRIAL): _S.TRIAL,
    (_S.FETCHING, _E.FETCHED): _S.CHECKING,
    (_S.FETCHING, _E.NOT_KEPT): _S.SETTLED,
    (_S.FETCHING, _E.WANTED_NO_MORE): _S.SETTLED,
    (_S.CHECKING, _E.CHECK_PASSED): _S.TRIAL,
    (_S.CHECKING, _E.CHECK_FAILED): _S.SETTLED,
    (_S.CHECKING, _E.NOT_KEPT): _S.SETTLED,
    (_S.CHECKING, _E.WANTED_NO_MORE): _S.SETTLED,
    (_S.TRIAL, _E.TRIAL_PASSED): _S.SETTLED,
    (_S.TRIAL, _E.TRIAL_FAILED): _S.SETTLED,
    (_S.TRIAL, _E.WANTED_NO_MORE): _S.SETTLED,
}


def next_stage(stage: ReleaseStage, event: ReleaseEvent) -> ReleaseStage:
    """Where an event leads.

    Raises:
        IllegalTransition: The table has no such move: a bug of ours.
    """
    try:
        return RELEASE_MOVES[stage, event]
    except KeyError:
        raise IllegalTransition(f"a release that is {stage.value} knows no {event.value}") from None
