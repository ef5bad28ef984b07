"""Whether a stage of a rollout may grow, must wait, be paused, or taken back: decided from what devices reported. Pure.

Guarantees:
    - A rollout advances only on devices that ran the release through its whole trial: those that merely fetched it, or
      said nothing, prove nothing.
    - A stage is passed by its own devices: those that an earlier stage proved do not let the next one through.
    - Whatever is not conclusive within the stage's time pauses the rollout; it never goes on by itself.
    - Failures count by kind, so that one crash can stop what ten slow devices do not.
"""

import dataclasses
import enum
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from coordinator.errors import InvalidConfig
from wire_protocol.release import WHOLE_FLEET_PERMILLE, ReleaseManifest
from wire_protocol.release_report import ReleaseFailure, ReleaseReport, ReleaseState

__all__ = [
    "DEFAULT_STAGES",
    "Decision",
    "Evidence",
    "GateRules",
    "Verdict",
    "compare_evaluations",
    "decide",
    "evidence_of",
]

DEFAULT_STAGES: Final = (10, 50, 250, WHOLE_FLEET_PERMILLE)
"""1, 5, 25 and 100 % of the fleet, in thousandths."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GateRules:
    """What a stage must show. Fractions are of the devices that tried the release."""

    min_devices: int = 3
    """So many devices must have tried it before anything is decided."""
    min_success: float = 0.95
    """At least this share must have settled on it for the next stage."""
    max_failures: float = 0.05
    """More failures than this take the release back."""
    max_crashes: float = 0.01
    """The same for failures of the kinds crashed, non_finite and timed_out."""
    max_incompatible: float = 0.5
    """More devices than this that cannot run it pause the rollout."""
    max_latency_ratio: float = 1.5
    """Median latency against the baseline's; more pauses."""
    max_accuracy_drop: float = 0.01
    """How much lower than the baseline's the federated evaluation's accuracy may be."""
    max_stage_s: float = 24 * 3600.0
    """A stage without a decision by then is paused."""

    def __post_init__(self) -> None:
        fractions = (
            self.min_success,
            self.max_failures,
            self.max_crashes,
            self.max_incompatible,
            self.max_accuracy_drop,
        )
        if self.min_devices < 1 or not all(0 <= fraction <= 1 for fraction in fractions):
            raise InvalidConfig("min_devices must be at least 1, and every fraction 0 to 1")
        if not (self.max_latency_ratio > 0 and self.max_stage_s > 0):
            raise InvalidConfig("max_latency_ratio and max_stage_s must be positive")


_GRAVE: Final = frozenset({ReleaseFailure.CRASHED, ReleaseFailure.NON_FINITE, ReleaseFailure.TIMED_OUT})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What the fleet says about a candidate."""

    num_fetching: int
    num_trial: int
    num_settled: int
    failures: Mapping[ReleaseFailure, int]
    latency_ms: float | None
    """Median over the devices that measured it; None if none did."""
    baseline_latency_ms: float | None
    num_new_concluded: int = 0
    """Devices that came in with the present stage, and tried it to an end."""
    num_new_needed: int = 0
    """So many of these must have, before the stage may grow."""

    @property
    def num_incompatible(self) -> int:
        """Devices that cannot run it at all."""
        return self.failures.get(ReleaseFailure.INCOMPATIBLE, 0)

    @property
    def num_failed(self) -> int:
        """Devices on which it was tried and failed."""
        return sum(self.failures.values()) - self.num_incompatible

    @property
    def num_concluded(self) -> int:
        """Devices that tried it to an end."""
        return self.num_settled + self.num_failed


class Verdict(enum.Enum):
    """What to do with a stage."""

    WAIT = "wait"
    ADVANCE = "advance"
    PAUSE = "pause"
    ABORT = "abort"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A verdict and why, for people."""

    verdict: Verdict
    reason: str


def evidence_of(reports: Sequence[ReleaseReport], *, candidate: int, baseline: int) -> Evidence:
    """Sums up the last report of each device."""
    about = [report for report in reports if report.number == candidate]
    states = Counter(report.state for report in about)
    return Evidence(
        num_fetching=states[ReleaseState.FETCHING],
        num_trial=states[ReleaseState.TRIAL],
        num_settled=states[ReleaseState.SETTLED],
        failures=Counter(report.failure for report in about if report.failure is not None),
        latency_ms=_median_latency(about),
        baseline_latency_ms=_median_latency([report for report in reports if report.number == baseline]),
    )


def decide(evidence: Evidence, rules: GateRules, *, stage_age_s: float) -> Decision:
    """What to do with a stage now.

    Args:
        evidence: What its devices say.
        rules: What they must show.
        stage_age_s: Seconds since the stage began.
    """
    concluded = evidence.num_concluded
    if concluded >= rules.min_devices:
        grave = sum(num for kind, num in evidence.failures.items() if kind in _GRAVE)
        for num, most, what in (
            (grave, rules.max_crashes, "crashed, hung or gave no finite numbers"),
            (evidence.num_failed, rules.max_failures, "failed"),
        ):
            if num > most * concluded:
                return Decision(
                    verdict=Verdict.ABORT, reason=f"{num} of {concluded} devices {what}: {_kinds(evidence)}"
                )
    seen = concluded + evidence.num_incompatible
    if seen >= rules.min_devices and evidence.num_incompatible > rules.max_incompatible * seen:
        return Decision(verdict=Verdict.PAUSE, reason=f"{evidence.num_incompatible} of {seen} devices cannot run it")
    is_proved = concluded >= rules.min_devices and evidence.num_new_concluded >= evidence.num_new_needed
    if is_proved and evidence.num_settled >= rules.min_success * concluded:
        return _advance_or_pause(evidence, rules)
    tried = (
        f"{concluded} devices have tried it to an end (at least {rules.min_devices} must), and of this stage's own "
        f"{evidence.num_new_concluded} (at least {evidence.num_new_needed} must)"
    )
    if stage_age_s >= rules.max_stage_s:
        return Decision(verdict=Verdict.PAUSE, reason=f"inconclusive within {stage_age_s / 3600:.1f} h: {tried}")
    return Decision(verdict=Verdict.WAIT, reason=tried)


def compare_evaluations(candidate: ReleaseManifest, baseline: ReleaseManifest | None, rules: GateRules) -> str:
    """Why a candidate's federated evaluation forbids a rollout, for people; empty if it does not.

    A release without an evaluation, or with nothing to compare it to, is not forbidden.
    """
    found = candidate.lineage.evaluation
    before = None if baseline is None else baseline.lineage.evaluation
    if found is None or before is None or found.accuracy >= before.accuracy - rules.max_accuracy_drop:
        return ""
    return (
        f"devices measured an accuracy of {found.accuracy:.4f} for release {candidate.number}, and {before.accuracy:.4f} "
        f"for release {baseline.number if baseline else 0}; at most {rules.max_accuracy_drop:g} less is allowed"
    )


def _advance_or_pause(evidence: Evidence, rules: GateRules) -> Decision:
    now, before = evidence.latency_ms, evidence.baseline_latency_ms
    if now is not None and before is not None and now > rules.max_latency_ratio * before:
        return Decision(verdict=Verdict.PAUSE, reason=f"{now:.2f} ms per example; the baseline takes {before:.2f}")
    return Decision(
        verdict=Verdict.ADVANCE, reason=f"{evidence.num_settled} of {evidence.num_concluded} devices settled on it"
    )


def _median_latency(reports: Sequence[ReleaseReport]) -> float | None:
    found = [report.check.latency_ms for report in reports if report.check is not None]
    return statistics.median(found) if found else None


def _kinds(evidence: Evidence) -> str:
    counts = sorted(evidence.failures.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind.value} {num}" for kind, num in counts if kind is not ReleaseFailure.INCOMPATIBLE)
