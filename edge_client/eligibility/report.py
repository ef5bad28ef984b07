"""One look at this machine under the owner's policy, for ``edge eligible`` and for ``doctor``."""

import dataclasses
import time
from pathlib import Path
from typing import Final

from edge_client.config import EdgeConfig
from edge_client.doctor import Check, Finding, Subject, ok, warn
from edge_client.eligibility.conditions import Assessment, Outcome
from edge_client.eligibility.machine import Machine
from edge_client.eligibility.policy import Stance
from edge_client.eligibility.survey import OwnWork, Survey
from edge_client.eligibility.verdict import Ineligible, Verdict, assess, judge
from edge_client.state_dir import time_floor_path
from edge_client.state_writer import StateWriter
from edge_client.time_floor import TimeFloor

__all__ = ["ELIGIBILITY_CHECKS", "EligibilityReport", "examine"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EligibilityReport:
    """What was read, what is asked, and what follows."""

    assessments: tuple[Assessment, ...]
    verdict: Verdict


def examine(config: EdgeConfig, machine: Machine | None = None) -> EligibilityReport:
    """Looks once. There is no memory of an earlier look, hence no hysteresis.

    Args:
        config: The device's configuration.
        machine: What to look at, if not this machine.
    """
    state_dir = Path(config.device.state_dir)
    floor = TimeFloor(time_floor_path(state_dir), writer=StateWriter())
    survey = Survey(machine or Machine.this(), policy=config.eligibility, state_dir=state_dir, wall_clock=floor.now)
    assessments = assess(config.eligibility, survey.read(time.monotonic(), OwnWork()))
    return EligibilityReport(assessments=assessments, verdict=judge(assessments))


def check_eligibility(subject: Subject) -> Finding:
    """Whether the owner's rules let the device train now. It may be the wrong time of day: that is no failure."""
    report = examine(subject.config, subject.machine)
    if isinstance(report.verdict, Ineligible):
        detail = f"not now: {report.verdict.reason.value}: {report.verdict.detail}"
        remedy = "nothing, if that is what you want; flockwise edge eligible shows every reading and rule"
        return warn(detail, remedy)
    unheeded = [
        each.condition.value
        for each in report.assessments
        if each.outcome is Outcome.UNKNOWN and each.stance is Stance.PRECAUTION
    ]
    detail = "the device may train now" + (f"; unknown here, so not heeded: {', '.join(unheeded)}" if unheeded else "")
    return ok(detail)


ELIGIBILITY_CHECKS: Final[tuple[tuple[str, Check], ...]] = (("eligibility", check_eligibility),)
"""Name and function of each check."""
