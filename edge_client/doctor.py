"""`doctor`: named checks in groups, each with a remedy. What is checked stands in `edge_client.checks`.

A check never raises, and leaves nothing behind: it may be run at any time, also while the daemon runs. Errors and
warnings are told apart as in Azure IoT Edge's ``check``.
"""

import dataclasses
import enum
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from edge_client.config import EdgeConfig
from edge_client.eligibility.machine import Machine

__all__ = [
    "Check",
    "CheckGroup",
    "CheckStatus",
    "Finding",
    "Subject",
    "fail",
    "has_warnings",
    "is_healthy",
    "ok",
    "run_group",
    "skip",
    "warn",
]

_MAX_DETAIL_CHARS: Final = 400


class CheckStatus(enum.StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    """It will work, but not as well or as safely as it could."""
    FAIL = "fail"
    """The daemon will not work."""
    SKIP = "skip"
    """Nothing to check here, or what it needs has failed and is told of elsewhere."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a check found."""

    status: CheckStatus
    detail: str
    remedy: str = ""
    """What to do about it; empty if nothing need be done."""
    name: str = ""
    """The check's; filled in by `run_group`."""
    group: str = ""

    def __post_init__(self) -> None:
        if bool(self.remedy) != (self.status in {CheckStatus.WARN, CheckStatus.FAIL}):
            raise ValueError("a finding has a remedy if and only if it is a warning or a failure")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is examined."""

    config: EdgeConfig
    config_path: Path | None = None
    """The file of the configuration, if there is one."""
    machine: Machine = dataclasses.field(default_factory=Machine.this)
    """Through which the machine's files are seen."""
    wall_clock: Callable[[], float] = time.time
    """Seconds since 1970, UTC."""


Check: TypeAlias = Callable[[Subject], Finding]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CheckGroup:
    """Checks that belong together."""

    name: str
    checks: tuple[tuple[str, Check], ...]
    """Name and function of each, in the order in which they are made."""
    needs_config: bool = True
    """Whether it makes no sense without valid settings."""


def ok(detail: str) -> Finding:
    """All is well."""
    return Finding(status=CheckStatus.OK, detail=detail)


def warn(detail: str, remedy: str) -> Finding:
    """It works, but."""
    return Finding(status=CheckStatus.WARN, detail=detail, remedy=remedy)


def fail(detail: str, remedy: str) -> Finding:
    """The daemon will not work."""
    return Finding(status=CheckStatus.FAIL, detail=detail, remedy=remedy)


def skip(detail: str) -> Finding:
    """There is nothing to check, or no way to."""
    return Finding(status=CheckStatus.SKIP, detail=detail)


def run_group(group: CheckGroup, subject: Subject) -> list[Finding]:
    """Runs a group's checks in order.

    Returns:
        One finding per check: a check that raised has failed.
    """
    return [_examine(group.name, name, check, subject) for name, check in group.checks]


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing failed; warnings do not count."""
    return all(finding.status is not CheckStatus.FAIL for finding in findings)


def has_warnings(findings: Sequence[Finding]) -> bool:
    """Whether anything could be better."""
    return any(finding.status is CheckStatus.WARN for finding in findings)


def _examine(group: str, name: str, check: Check, subject: Subject) -> Finding:
    try:
        finding = check(subject)
    except Exception as error:  # noqa: BLE001 - a broken machine breaks checks in ways nobody foresaw
        finding = fail(f"the check itself failed: {type(error).__name__}: {error}", "report this")
    detail = " ".join(finding.detail.split())[:_MAX_DETAIL_CHARS]
    return dataclasses.replace(finding, name=name, group=group, detail=detail)
