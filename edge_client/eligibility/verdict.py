"""From policy and readings to a verdict. Pure."""

import dataclasses
from collections.abc import Iterable
from typing import TypeAlias

from edge_client.eligibility.conditions import Assessment, Condition, IneligibleReason, Outcome
from edge_client.eligibility.policy import EligibilitySection
from edge_client.eligibility.readings import Readings
from edge_client.eligibility.rules import RULES, Held

__all__ = ["Eligible", "Ineligible", "Verdict", "assess", "held_conditions", "judge", "verdict"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Eligible:
    """The device may train."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ineligible:
    """It may not, at least for this reason."""

    reason: IneligibleReason
    detail: str
    """For people: the reading, what is allowed, and how to mend it if it is unknown."""
    is_network_barred: bool = False
    """Whether the network, be the reason this or another, may not be used for more than a few bytes."""


Verdict: TypeAlias = Eligible | Ineligible


def verdict(policy: EligibilitySection, readings: Readings, held: Held = frozenset()) -> Verdict:
    """Whether the device may train now.

    Args:
        policy: What the owner allows.
        readings: What the machine says.
        held: Conditions that were broken at the last assessment, for the hysteresis.

    Guarantees:
        A condition that is demanded and whose reading is unknown makes the device ineligible.
    """
    return judge(assess(policy, readings, held))


def assess(policy: EligibilitySection, readings: Readings, held: Held = frozenset()) -> tuple[Assessment, ...]:
    """Judges every condition, in the order of `Condition`. Arguments are those of ``verdict``."""
    return tuple(RULES[condition](policy, readings, held) for condition in Condition)


def judge(assessments: Iterable[Assessment]) -> Verdict:
    """The verdict that follows from assessments: the gravest barrier is its reason."""
    barriers = [assessment for assessment in assessments if assessment.is_barrier]
    if not barriers:
        return Eligible()
    first = barriers[0]
    if first.outcome is Outcome.UNKNOWN:
        detail = f"{first.condition} is unknown ({first.reading}), demanded is {first.rule}: {first.remedy}"
    else:
        detail = f"{first.condition} is {first.reading}, allowed is {first.rule}"
    return Ineligible(
        reason=first.reason,
        detail=detail,
        is_network_barred=any(barrier.condition is Condition.NETWORK for barrier in barriers),
    )


def held_conditions(assessments: Iterable[Assessment]) -> frozenset[Condition]:
    """The conditions that are broken now: ``held`` of the next assessment."""
    return frozenset(each.condition for each in assessments if each.outcome is Outcome.BROKEN)
