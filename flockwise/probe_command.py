"""`flockwise coordinator probe-acl`: whether a broker's rights hold."""

import datetime as dt
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import click

from broker_link.broker_url import parse_broker_url
from broker_link.errors import LinkError
from broker_link.tls import refuse_plaintext
from coordinator.errors import CoordinatorError
from flockwise.reporting import one_line_errors, print_json
from wire_protocol.errors import WireError

__all__ = ["probe_acl"]

_LEAK: Final = 3
_MISSING: Final = 4
_WORDS: Final = {
    "hears": "LEAK: hears",
    "says": "LEAK: may publish on",
    "cannot_hear": "does not hear",
    "cannot_say": "cannot publish on",
}


@click.command("probe-acl")
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True, help="Made by broker-config.")
@click.option("--broker", required=True, help="Its address, such as mqtts://broker.example:8883.")
@click.option(
    "--wait-s", type=click.FloatRange(0, 600, min_open=True), default=5.0, show_default=True,
    help="How long what must be heard may take to come.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.option("--dry-run", is_flag=True, help="Check the files, say what would be tried, and connect to nothing.")
@one_line_errors(CoordinatorError, LinkError, WireError, OSError)
def probe_acl(*, directory: Path, broker: str, wait_s: float, as_json: bool, dry_run: bool) -> None:
    """Let every login try to hear and say what is another's, at the real broker, in a population made up for it.

    Stop the coordinator first: its login is used, and its connection would be ended. With certificates, devices that do
    not exist get logins for an hour; with passwords, those of real devices are used, which lose their connections
    for a moment. Nothing is retained.

    Exit codes: 0 all rights are right, 1 the broker cannot be reached or the files not used, 2 wrong usage, 3 a leak,
    4 no leak, but a right that is needed is missing.

    Example: flockwise coordinator probe-acl --dir fleet-broker --broker mqtts://broker.example
    """
    from coordinator.acl_probe import probe_acl as probe
    from coordinator.broker_logins import logins_to_probe

    url = parse_broker_url(broker)
    refuse_plaintext(url, remedy="the probe sends real passwords")
    population = f"acl-probe-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(prefix="flockwise-probe-") as scratch:
        logins = logins_to_probe(directory, url=broker, scratch=Path(scratch), now=dt.datetime.now(dt.UTC))
        report = None if dry_run else probe(logins, population=population, wait_s=wait_s)
    _show(report, sorted(logins), as_json=as_json)
    if report is not None and report.findings:
        sys.exit(_LEAK if report.has_leak else _MISSING)


def _show(report: Any, logins: list[str], *, as_json: bool) -> None:
    if report is None:
        values: dict[str, Any] = {"probed": False, "logins": logins}
        lines = [f"would let {', '.join(logins)} try each other's topics"]
    else:
        findings = [
            {"login": found.login, "fault": found.fault.value, "topic": found.topic, "is_leak": found.fault.is_leak}
            for found in report.findings
        ]
        values = {"probed": True, "logins": logins, "findings": findings, "has_leak": report.has_leak}
        values |= {"num_attempts": report.num_attempts, "broker_says_what_it_refuses": report.is_version_5}
        lines = [f"{found['login']} {_WORDS[str(found['fault'])]} {found['topic']}" for found in findings]
        lines.append(
            f"{len(logins)} logins, {report.num_attempts} forbidden messages: "
            + ("no leak" if not report.has_leak else "THE RIGHTS LEAK: compare the broker's ACL with broker/acl")
        )
    if as_json:
        print_json(values)
    for line in lines if not as_json else []:
        click.echo(line)
