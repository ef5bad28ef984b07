"""What `doctor` checks about the systemd service: that it is installed, enabled, hardened and watched."""

import re
import subprocess
from pathlib import Path
from typing import Final

from edge_client.doctor import Check, Finding, Subject, fail, ok, skip, warn
from edge_client.eligibility.machine import Unknown
from edge_client.service_install import UNIT_PATH
from edge_client.service_unit import MAX_EXPOSURE, UNIT_NAME, is_untouched, packaged_text

__all__ = ["SERVICE_CHECKS"]

_INSTALL: Final = "sudo flockwise edge install"
_NOT_INSTALLED: Final = "the service is not installed"
_ANALYZE_S: Final = 60.0
_EXPOSURE: Final = re.compile(r"Overall exposure level for \S+: (\d+(?:\.\d+)?)")


def _unit(subject: Subject) -> Path:
    return subject.machine.root / UNIT_PATH.relative_to("/")


def _settings(subject: Subject) -> dict[str, str]:
    """The [Service] section with its drop-ins, the last value of each name."""
    unit = _unit(subject)
    paths = [unit, *sorted(unit.with_name(f"{unit.name}.d").glob("*.conf"))]
    found: dict[str, str] = {}
    for path in paths:
        section = ""
        for line in map(str.strip, path.read_text(errors="replace").splitlines()):
            if line.startswith("["):
                section = line
            elif section == "[Service]" and "=" in line and not line.startswith(("#", ";")):
                name, _, value = line.partition("=")
                found[name.strip()] = value.strip()
    return found


def check_unit(subject: Subject) -> Finding:
    """Whether the unit is installed, and is the one of this version."""
    unit = _unit(subject)
    if not unit.exists():
        if isinstance(subject.machine.read("proc/1/comm"), Unknown) or subject.machine.read("proc/1/comm") != "systemd":
            return skip("systemd does not run here")
        return warn(f"{_NOT_INSTALLED}: nothing starts the daemon after a power cut", _INSTALL)
    text = unit.read_text(errors="replace")
    if not is_untouched(text):
        remedy = f"put changes into {UNIT_NAME}.d/local.conf (systemctl edit), then {_INSTALL} --force"
        return warn(f"{unit} was edited", remedy)
    # Prefix and user may differ; what the package says must be there.
    rest = [
        line for line in packaged_text(UNIT_NAME).splitlines() if not line.startswith(("ExecStart=", "DynamicUser="))
    ]
    if not set(rest) <= set(text.splitlines()):
        return warn(f"{unit} is of another version", _INSTALL)
    return ok(f"{unit} is installed")


def check_program(subject: Subject) -> Finding:
    """Whether the program that the unit starts is there."""
    if not _unit(subject).exists():
        return skip(_NOT_INSTALLED)
    words = _settings(subject).get("ExecStart", "").split()
    program = subject.machine.root / words[0].lstrip("-@:+!/") if words else None
    if program is None or not program.is_file():
        remedy = f"install flockwise there, or {_INSTALL} --prefix ENVIRONMENT --force"
        return fail(f"the unit starts {program}, which is not there", remedy)
    return ok(f"{program}")


def check_enabled(subject: Subject) -> Finding:
    """Whether systemd starts the service with the machine."""
    if not _unit(subject).exists():
        return skip(_NOT_INSTALLED)
    link = _unit(subject).parent / "multi-user.target.wants" / UNIT_NAME
    if link.is_symlink() or link.exists():
        return ok("it starts with the machine")
    return warn("it does not start with the machine", f"sudo systemctl enable --now {UNIT_NAME}")


def check_watchdog(subject: Subject) -> Finding:
    """Whether systemd waits for the daemon's word, and starts it again when it hangs or dies."""
    if not _unit(subject).exists():
        return skip(_NOT_INSTALLED)
    settings = _settings(subject)
    faults = []
    if settings.get("Type") != "notify":
        faults.append("Type is not notify")
    if not re.search("[1-9]", settings.get("WatchdogSec", "")):
        faults.append("there is no WatchdogSec")
    if settings.get("Restart", "no") not in {"on-failure", "always", "on-abnormal"}:
        faults.append("Restart does not start it again")
    if faults:
        return warn("; ".join(faults), f"take that out of {UNIT_NAME}.d, or {_INSTALL} --force")
    return ok(f"a daemon that hangs is started again (WatchdogSec={settings['WatchdogSec']})")


def check_exposure(subject: Subject) -> Finding:
    """How far the unit with its drop-ins is confined, as systemd itself judges it."""
    if not _unit(subject).exists():
        return skip(_NOT_INSTALLED)
    command = [
        "systemd-analyze",
        "--no-pager",
        "security",
        "--offline=true",
        f"--root={subject.machine.root}",
        UNIT_NAME,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANALYZE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return skip(f"systemd-analyze cannot be asked: {error}")
    found = _EXPOSURE.search(done.stdout)
    if found is None:
        return skip(f"systemd-analyze does not say: {(done.stderr or done.stdout).strip()[:120]}")
    exposure = float(found.group(1))
    detail = f"exposure {exposure} of 10"
    if exposure <= MAX_EXPOSURE:
        return ok(detail)
    return warn(f"{detail}, more than {MAX_EXPOSURE}", f"look at {UNIT_NAME}.d: systemd-analyze security {UNIT_NAME}")


def check_running(subject: Subject) -> Finding:
    """Whether systemd says that the service runs."""
    if not _unit(subject).exists():
        return skip(_NOT_INSTALLED)
    command = ("systemctl", "show", UNIT_NAME, "--property=ActiveState,SubState,NRestarts,StatusText")
    printed = subject.machine.run(command)
    if isinstance(printed, Unknown):
        return skip(printed.why)
    values = dict(line.partition("=")[::2] for line in printed.splitlines())
    status = values.get("StatusText", "")
    if values.get("ActiveState") == "active":
        return ok(f"running, started again {values.get('NRestarts', '?')} times; {status}")
    detail = f"{values.get('ActiveState', 'unknown')} ({values.get('SubState', '')}) {status}".strip()
    return warn(detail, f"sudo systemctl start {UNIT_NAME}; journalctl -u {UNIT_NAME} -n 50 says why it ended")


SERVICE_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("unit", check_unit),
    ("program", check_program),
    ("enabled", check_enabled),
    ("running", check_running),
    ("watchdog", check_watchdog),
    ("exposure", check_exposure),
)
"""Name and function of each check, in the order in which they are made."""
