"""The options by which a coordinator's command reaches a broker and knows its devices, and what they come to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from broker_link.broker_url import parse_broker_url, url_with_login
from broker_link.secret_files import is_readable_by_everybody
from broker_link.tls import ClientCertificate, is_loopback, refuse_plaintext

__all__ = ["STARTED_FOR_THE_RUN", "broker_with_login", "certificate", "fleet_options", "roster_in_force"]

STARTED_FOR_THE_RUN = frozenset({"embedded", "mosquitto"})
"""Values of --broker that mean one of our own."""


def fleet_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options: broker, TLS, login, roster, population, state directory."""
    options = (
        click.option(
            "--broker", default="embedded", show_default=True, help="embedded, mosquitto, mqtt://host:port or mqtts://"
        ),
        click.option("--ca-file", type=click.Path(exists=True), help="CA to trust for mqtts://."),
        click.option("--cert-file", type=click.Path(exists=True), help="Our certificate, for a broker that asks for one."),
        click.option("--key-file", type=click.Path(exists=True), help="The key of --cert-file."),
        click.option("--username", help="Login at the broker; with --password-file."),
        click.option(
            "--password-file", type=click.Path(exists=True, path_type=Path), help="File with the password."
        ),
        click.option(
            "--allow-plaintext", is_flag=True, help="Allow mqtt:// to another machine: everybody between can read."
        ),
        click.option(
            "--roster", "roster_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="Enrolled devices; nobody else is heard. [default: roster.sqlite in --state-dir, if it is there]",
        ),
        click.option("--open", "is_open", is_flag=True, help="No roster: believe whoever can publish at the broker."),
        click.option("--population", required=True, help="Name of the population."),
        click.option("--state-dir", type=click.Path(path_type=Path), required=True, help="Where states are kept."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def roster_in_force(options: dict[str, Any]) -> Path | None:
    """The roster in force; None believes everybody, which takes a broker on this machine or a word from the operator."""
    if options["is_open"]:
        if options["roster_file"] is not None:
            raise click.UsageError("--open and --roster exclude each other")
        return None
    default = options["state_dir"] / "roster.sqlite"
    found: Path | None = options["roster_file"] or (default if default.is_file() else None)
    choice = options["broker"]
    is_local = choice in STARTED_FOR_THE_RUN or is_loopback(parse_broker_url(choice).host)
    if found is None and not is_local:
        raise click.UsageError(
            f"no roster at {default}: anybody at the broker could report as any device. Make one with "
            "'flockwise coordinator enrol-token', or say --open"
        )
    return found


def certificate(options: dict[str, Any]) -> ClientCertificate | None:
    """Our certificate, if the options name one."""
    if not options["cert_file"] and not options["key_file"]:
        return None
    if options["key_file"]:
        _refuse_exposed(options["key_file"], "--key-file")
    return ClientCertificate(cert_file=options["cert_file"] or "", key_file=options["key_file"] or "")


def broker_with_login(options: dict[str, Any]) -> str:
    """The --broker to use, with the login; refuses one that would be reached in plaintext over a network."""
    choice: str = options["broker"]
    if bool(options["username"]) != bool(options["password_file"]):
        raise click.UsageError("--username and --password-file belong together: give both or neither")
    if choice in STARTED_FOR_THE_RUN:
        if options["username"] or options["cert_file"]:
            raise click.UsageError(f"--broker {choice} is started for this run and knows no logins")
        return choice
    url = parse_broker_url(choice)
    if not options["allow_plaintext"]:
        refuse_plaintext(url, remedy="--allow-plaintext allows it all the same")
    if not url.is_tls and (options["ca_file"] or options["cert_file"]):
        raise click.UsageError("--ca-file and --cert-file are of no use with mqtt://; use mqtts:// for TLS")
    if not options["username"]:
        return choice
    if url.username:
        raise click.UsageError("the address names a user already; give the user once")
    _refuse_exposed(options["password_file"], "--password-file")
    password = options["password_file"].read_text(encoding="utf-8").rstrip("\r\n")
    return url_with_login(url, username=options["username"], password=password)


def _refuse_exposed(path: str | Path, option: str) -> None:
    """The coordinator's login reads what every device sends: it is not for this machine's other users."""
    if is_readable_by_everybody(path):
        raise click.UsageError(f"{option} {path} can be read by every user of this machine: chmod 600 {path}")
