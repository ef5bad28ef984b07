"""`flockwise coordinator broker-config` and `broker-login`: a broker for a fleet, and who may connect to it."""

import datetime as dt
import os
import shlex
import socket
from pathlib import Path, PurePosixPath
from typing import Any

import click

from coordinator.errors import CoordinatorError
from flockwise.reporting import one_line_errors, print_json
from wire_protocol.errors import WireError

__all__ = ["broker_config", "broker_login"]

_errors_in_one_line = one_line_errors(CoordinatorError, WireError, OSError)
_json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and end.")


@click.command("broker-config")
@click.option("--out", "out_dir", type=click.Path(path_type=Path), required=True, help="Directory to make.")
@click.option(
    "--host", "hosts", multiple=True,
    help="Name or address by which devices reach the broker; may be given again. [default: this machine's name]",
)  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=8883, show_default=True)
@click.option("--bind", default="", help="The only address to listen on. [default: all]")
@click.option(
    "--logins", type=click.Choice(["certificates", "passwords"]), default="certificates", show_default=True,
    help="How devices and coordinator log in. A new password takes a reload of the broker, a certificate does not.",
)  # fmt: skip
@click.option(
    "--installed-at", type=click.Path(path_type=PurePosixPath),
    help="Where Mosquitto will find the directory broker/. [default: where it is made]",
)  # fmt: skip
@click.option("--valid-days", type=click.IntRange(1, 36500), default=3650, show_default=True)
@_json_option
@_dry_run_option
@_errors_in_one_line
def broker_config(**options: Any) -> None:
    """Make a Mosquitto configuration with TLS, an ACL, a certificate authority, and the coordinator's login.

    Overwrites nothing, installs nothing, and prints what to do next.

    Exit codes: 0 made, 1 the directory is there or cannot be made, 2 wrong usage.

    Example: flockwise coordinator broker-config --out fleet-broker --host broker.example --host 192.0.2.7
    """
    from coordinator.broker_setup import BrokerSetup, make_broker_files, write_directory
    from coordinator.errors import BrokerFilesUnusable
    from coordinator.mosquitto_files import LoginKind

    out_dir = options["out_dir"].absolute()
    setup = BrokerSetup(
        hosts=options["hosts"] or (socket.gethostname(), "localhost", "127.0.0.1"),
        place=options["installed_at"] or PurePosixPath(out_dir / "broker"),
        port=options["port"],
        bind=options["bind"],
        logins=LoginKind(options["logins"]),
        valid=dt.timedelta(days=options["valid_days"]),
    )
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise BrokerFilesUnusable(f"{out_dir} is there already: name a new directory; nothing was changed")
    files = make_broker_files(setup, now=dt.datetime.now(dt.UTC), random_bytes=os.urandom)
    if not options["dry_run"]:
        write_directory(out_dir, files)
    commands = _commands(setup, out_dir, is_elsewhere=options["installed_at"] is not None)
    if options["as_json"]:
        values = {"out": str(out_dir), "files": sorted(files), "hosts": list(setup.hosts), "commands": commands}
        print_json(values | {"made": not options["dry_run"]})
        return
    click.echo(f"{'would make' if options['dry_run'] else 'made'} {out_dir} for {', '.join(setup.hosts)}:")
    for name in sorted(files):
        click.echo(f"  {name}")
    click.echo("Keep authority/ off the broker's machine: whoever has ca.key can log in as anybody. Next:")
    for command in commands:
        click.echo(f"  {command}")
    if options["installed_at"] is None and os.geteuid() == 0:
        click.echo("Mosquitto started by root becomes the user mosquitto, who cannot read this: use --installed-at.")


@click.command("broker-login")
@click.argument("device_id")
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True, help="Made by broker-config.")
@_json_option
@_dry_run_option
@_errors_in_one_line
def broker_login(*, device_id: str, directory: Path, as_json: bool, dry_run: bool) -> None:
    """Make a device's login at the broker: a certificate or a password, as broker-config was told.

    It opens the broker's door alone. Who may report is the roster's: see enrol-token.

    Exit codes: 0 made, 1 it has one, or the broker's files cannot be used, 2 wrong usage.

    Example: flockwise coordinator broker-login kitchen-pi --dir fleet-broker
    """
    from coordinator.broker_setup import check_new_login, issue_login, login_kind
    from coordinator.mosquitto_files import LoginKind

    if dry_run:
        check_new_login(directory, device_id)
        home = directory / "devices" / device_id
    else:
        home = issue_login(directory, device_id, now=dt.datetime.now(dt.UTC), random_bytes=os.urandom)
    is_password = login_kind(directory) is LoginKind.PASSWORDS
    own = (
        {"username": device_id, "password_file": "password"}
        if is_password
        else {"cert_file": "device.crt", "key_file": "device.key"}
    )
    settings = {"ca_file": "ca.crt"} | own
    if as_json:
        values = {"device_id": device_id, "directory": str(home), "broker": settings, "needs_reload": is_password}
        print_json(values | {"made": not dry_run})
        return
    click.echo(f"{'would make' if dry_run else 'made'} {home}: move it to the device, beside its client.toml, with")
    click.echo("  [broker]")
    for key, value in settings.items():
        click.echo(f'  {key} = "{value}"')
    if is_password:
        click.echo(f"and copy {directory / 'broker' / 'passwords'} to the broker, then reload it (SIGHUP)")


def _commands(setup: Any, out_dir: Path, *, is_elsewhere: bool) -> list[str]:
    """What the operator types next, to the letter but for the capitals."""
    from coordinator.mosquitto_files import CONFIG_FILE, LoginKind

    out = shlex.quote(str(out_dir))
    place = shlex.quote(str(setup.place))
    host = f"[{setup.hosts[0]}]" if ":" in setup.hosts[0] else setup.hosts[0]
    login = (
        f"--username coordinator --password-file {out}/coordinator/password"
        if setup.logins is LoginKind.PASSWORDS
        else f"--cert-file {out}/coordinator/coordinator.crt --key-file {out}/coordinator/coordinator.key"
    )
    install = [
        f"sudo install -d -m 750 -o root -g mosquitto {place}",
        f"sudo install -m 640 -o root -g mosquitto {out}/broker/* {place}",
        f"sudo cp --backup=numbered {place}/{CONFIG_FILE} /etc/mosquitto/{CONFIG_FILE}",
        "sudo systemctl restart mosquitto",
    ]
    serve = (
        f"flockwise coordinator serve --task BUNDLE --broker mqtts://{host}:{setup.port} "
        f"--ca-file {out}/coordinator/ca.crt {login} --population POPULATION --state-dir state "
        "--report-goal 10 --rounds 50"
    )
    return [
        *(install if is_elsewhere else [f"mosquitto -c {place}/{CONFIG_FILE}"]),
        f"flockwise coordinator broker-login DEVICE --dir {out}",
        "flockwise coordinator enrol-token --roster state/roster.sqlite --population POPULATION --device DEVICE",
        serve,
    ]
