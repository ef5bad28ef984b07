"""`doctor`: named checks of the machine, the configuration and the broker, each with a remedy.

Three groups, as in Azure IoT Edge's ``check``: the machine, this device's settings, and the connection. A check never
raises. Without a valid configuration only the machine can be checked.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import TypeAlias

from edge_client.config import EdgeConfig

__all__ = ["Check", "CheckStatus", "Finding", "is_healthy", "run_checks"]


class CheckStatus(enum.StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    """It will work, but not as well or as safely as it could."""
    FAIL = "fail"
    """The daemon will not work."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a check found."""

    name: str
    status: CheckStatus
    detail: str
    remedy: str = ""
    """What to do about it; empty if it is ok."""


Check: TypeAlias = Callable[[EdgeConfig], Finding]


def run_checks(config: EdgeConfig, checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """Runs checks in order.

    Args:
        config: The device's configuration.
        checks: Name and function of each.

    Returns:
        One finding per check: a check that raised has failed.
    """
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings.append(check(config))
        except Exception as error:  # noqa: BLE001 - a broken machine breaks checks in ways nobody foresaw
            detail = f"the check itself failed: {type(error).__name__}: {error}"
            findings.append(Finding(name=name, status=CheckStatus.FAIL, detail=detail, remedy="report this"))
    return findings


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing failed; warnings do not count."""
    return all(finding.status is not CheckStatus.FAIL for finding in findings)
