"""`flockwise edge doctor`: what is wrong with this device, and how to mend it."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edge_client.errors import ConfigError
from flockwise.edge_settings import config_option, find_config, load
from flockwise.reporting import print_json

if TYPE_CHECKING:
    from edge_client.doctor import Finding, Subject

__all__ = ["doctor"]

_WARNED: Final = 3
_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "blue"}
_GROUPS: Final = ("machine", "configuration", "state", "data", "model", "broker", "privacy", "service")


@click.command()
@config_option
@click.option(
    "--group", "groups", multiple=True, type=click.Choice(_GROUPS), help="Only these checks; may be repeated."
)
@click.option("--strict", is_flag=True, help="Exit code 3 if there are warnings.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def doctor(config_path: Path | None, *, groups: tuple[str, ...], strict: bool, as_json: bool) -> None:
    """Check machine, settings, state, data, training, broker, privacy and service, and say how to mend what is wrong.

    It changes nothing, and may run while the daemon does (what needs the broker's login is then skipped). Run it as
    root, or as the daemon's user: others may not read what it looks at.

    Exit codes: 0 nothing failed (there may be warnings), 1 something failed, 2 wrong usage, 3 with --strict: there
    are warnings and nothing failed.

    Example: sudo /opt/flockwise/bin/flockwise edge doctor --group broker --group privacy
    """
    from edge_client.doctor import has_warnings, is_healthy

    findings: list[Finding] = []
    for finding in _examine(config_path, groups or _GROUPS):
        findings.append(finding)
        if not as_json:
            _print(finding, is_first=len(findings) == 1 or findings[-2].group != finding.group)
    if as_json:
        print_json({"healthy": is_healthy(findings), "checks": [dataclasses.asdict(finding) for finding in findings]})
    if not is_healthy(findings):
        sys.exit(1)
    sys.exit(_WARNED if strict and has_warnings(findings) else 0)


def _print(finding: "Finding", *, is_first: bool) -> None:
    if is_first:
        click.secho(finding.group, bold=True)
    mark = click.style(f"{finding.status.value:4}", fg=_COLOURS[finding.status.value])
    click.echo(f"{mark}  {finding.name:18} {finding.detail}")
    if finding.remedy:
        click.echo(f"      {'':18} -> {finding.remedy}")


def _examine(config_path: Path | None, wanted: tuple[str, ...]) -> "Iterator[Finding]":
    """The findings, one group after another; without valid settings, of the groups that need none."""
    from edge_client.checks.registry import GROUPS
    from edge_client.doctor import fail, ok, run_group

    subject, problem = _subject(config_path)
    for group in GROUPS:
        if group.name == "configuration" and (problem or group.name in wanted):
            remedy = "mend it and run doctor again: state, data, training and broker could not be checked"
            found = fail(problem, remedy) if problem else ok(f"{subject.config_path or 'the environment'} is valid")
            yield dataclasses.replace(found, name="config", group=group.name)
        if group.name in wanted and not (problem and group.needs_config):
            yield from run_group(group, subject)


def _subject(config_path: Path | None) -> "tuple[Subject, str]":
    """What to examine, and what is wrong with its configuration, of which then nothing is examined."""
    from edge_client.config import BrokerSection, DataSection, DeviceSection, EdgeConfig
    from edge_client.doctor import Subject

    path = find_config(config_path)
    try:
        return Subject(config=load(path), config_path=path), ""
    except ConfigError as error:
        nothing = EdgeConfig(
            device=DeviceSection(population="none"),
            broker=BrokerSection(url="mqtt://localhost"),
            data=DataSection(path=""),
        )
        return Subject(config=nothing), str(error)
