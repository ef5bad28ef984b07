"""Watches over eligibility while the daemon runs: when to look, what changed, and the hard limit that waits for nothing."""

import logging
import math
from typing import Final

from edge_client.eligibility.conditions import Condition, IneligibleReason
from edge_client.eligibility.machine import Unknown
from edge_client.eligibility.policy import EligibilitySection
from edge_client.eligibility.survey import OwnWork, Survey
from edge_client.eligibility.verdict import Eligible, Ineligible, Verdict, assess, held_conditions, judge
from edge_client.events import EligibilityChanged

__all__ = ["EligibilityMonitor"]

_LOG = logging.getLogger(__name__)
_WORKING_PERIOD_S: Final = 5.0
"""A Pi without a fan warms by about 1 C per second at most, and the limits leave some degrees of room."""
_IDLE_PERIOD_S: Final = 30.0
_FRESH_S: Final = 2.0


class EligibilityMonitor:
    """One device's verdict, kept current.

    Args:
        policy: What the owner allows.
        survey: Makes the readings.
    """

    __slots__ = ("_held", "_looked_at", "_must_look", "_policy", "_survey", "verdict")

    def __init__(self, *, policy: EligibilitySection, survey: Survey) -> None:
        self._policy = policy
        self._survey = survey
        self._held: frozenset[Condition] = frozenset()
        self._looked_at: float | None = None
        self._must_look = False
        self.verdict: Verdict = Eligible()
        """As of the last look; eligible before the first."""

    def next_wakeup(self, *, is_working: bool) -> float:
        """When ``look`` is due, on the clock of ``now``; a time past is at once.

        Args:
            is_working: Whether the device fetches or trains: then it looks every few seconds.
        """
        if self._looked_at is None or self._must_look or not self._policy.enforce:
            return 0.0 if self._policy.enforce else math.inf
        return self._looked_at + (_WORKING_PERIOD_S if is_working else _IDLE_PERIOD_S)

    def is_fresh(self, now: float) -> bool:
        """Whether the verdict is good enough to begin something with."""
        if not self._policy.enforce:
            return True
        return self._looked_at is not None and not self._must_look and now - self._looked_at < _FRESH_S

    def look_soon(self) -> None:
        """Something has changed. Safe from any thread."""
        self._must_look = True

    def network_changed(self) -> None:
        """There is a new connection."""
        self._survey.network_changed()
        self._must_look = True

    def look(self, now: float, own: OwnWork) -> EligibilityChanged | None:
        """Reads and judges; the event if the verdict is another one.

        The hard limit on the temperature is looked at first, and if it is broken nothing else is waited for.

        Args:
            now: Monotonic time in seconds.
            own: What the device does itself.
        """
        self._looked_at, self._must_look = now, False
        verdict = self._much_too_hot() or self._judge(now, own)
        before, self.verdict = self.verdict, verdict
        if _kind(before) == _kind(verdict):
            return None
        _log(verdict)
        return EligibilityChanged(verdict=verdict)

    def _judge(self, now: float, own: OwnWork) -> Verdict:
        assessments = assess(self._policy, self._survey.read(now, own), self._held)
        self._held = held_conditions(assessments)
        return judge(assessments)

    def _much_too_hot(self) -> Ineligible | None:
        temperature_c = self._survey.temperature_c()
        limit_c = self._policy.hard_temperature_c
        if not self._policy.enforce or isinstance(temperature_c, Unknown) or temperature_c <= limit_c:
            return None
        self._held |= {Condition.HARD_TEMPERATURE, Condition.TEMPERATURE}
        return Ineligible(
            reason=IneligibleReason.MUCH_TOO_HOT,
            detail=f"temperature is {temperature_c:.0f} C, never allowed is more than {limit_c:g} C",
            # The network was not looked at: what was said of it last still counts.
            is_network_barred=isinstance(self.verdict, Ineligible) and self.verdict.is_network_barred,
        )


def _kind(verdict: Verdict) -> tuple[object, bool]:
    """Verdicts of one kind are no news: the detail has the reading in it, which changes all the time."""
    return (verdict.reason, verdict.is_network_barred) if isinstance(verdict, Ineligible) else (None, False)


def _log(verdict: Verdict) -> None:
    if isinstance(verdict, Ineligible):
        _LOG.warning("ineligible reason=%s detail=%r", verdict.reason.value, verdict.detail)
    else:
        _LOG.info("eligible")
