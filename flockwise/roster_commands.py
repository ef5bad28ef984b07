"""`flockwise coordinator enrol-token` and `flockwise coordinator devices`: who may take part."""

import datetime as dt
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from coordinator.errors import CoordinatorError
from flockwise.reporting import one_line_errors, print_json
from wire_protocol.errors import WireError

__all__ = ["devices", "enrol_token"]

_errors_in_one_line = one_line_errors(CoordinatorError, WireError, OSError)
_json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and end.")
_population_option = click.option("--population", required=True, help="Name of the population.")
_roster_option = click.option(
    "--roster", "roster_file", type=click.Path(path_type=Path), required=True,
    help="The roster: roster.sqlite in the coordinator's --state-dir.",
)  # fmt: skip


@click.command("enrol-token")
@_roster_option
@_population_option
@click.option("--device", "device_id", help="The only device it is for. [default: any id that nobody has]")
@click.option("--valid-h", type=click.FloatRange(0, 8760, min_open=True), default=24.0, show_default=True)
@click.option("--uses", type=click.IntRange(1, 100_000), default=1, show_default=True, help="Devices it lets in.")
@_json_option
@_dry_run_option
@_errors_in_one_line
def enrol_token(**options: Any) -> None:
    """Print a token by which a device can enrol. It is shown once: the roster keeps no secret.

    Exit codes: 0 made, 1 the roster cannot be used, 2 wrong usage.

    Example: flockwise coordinator enrol-token --roster state/roster.sqlite --population digits --device kitchen-pi
    """
    from coordinator.enrolment_tokens import make_token

    token, record = make_token(
        population=options["population"],
        device_id=options["device_id"],
        valid_s=options["valid_h"] * 3600.0,
        num_uses=options["uses"],
        now=time.time(),
        random_bytes=os.urandom,
    )
    text = token.text
    if options["dry_run"]:
        text = "(dry run: no token)"
    else:
        _with_roster(options["roster_file"], lambda roster: roster.add_token(record))
    if options["as_json"]:
        values = {"token_id": record.token_id, "expires_at": record.expires_at, "device_id": record.device_id}
        print_json(values | {"token": text, "uses": record.uses_left, "made": not options["dry_run"]})
    else:
        click.echo(text)


@click.group()
def devices() -> None:
    """List, show, revoke and reinstate enrolled devices. A running coordinator notices within seconds.

    Exit codes: 0 done, 1 no such device or no usable roster, 2 wrong usage. Every verb knows --json.

    Example: flockwise coordinator devices list --roster state/roster.sqlite --population digits
    """


@devices.command("list")
@_roster_option
@_population_option
@_json_option
@_errors_in_one_line
def list_(*, roster_file: Path, population: str, as_json: bool) -> None:
    """List all devices, and with --json what was refused: of devices, and of ids that are not enrolled.

    CLONED beside a device: it signed two messages at one position, which takes two machines with its key, or a state
    directory that was put back. CLONED?: it was heard in an epoch that is over, which an old replay can do too.

    Exit codes: 0 done, 1 no usable roster, 2 wrong usage.

    Example: flockwise coordinator devices list --roster state/roster.sqlite --population digits
    """
    records, refusals = _with_roster(
        _existing(roster_file), lambda roster: (roster.devices(population), roster.refusals(population))
    )
    if as_json:
        shown = [_shown(record, refusals.get(record.device_id, {})) for record in records]
        print_json({"devices": shown, "refusals_of_others": _counts(refusals.get("", {}))})
    for record in records if not as_json else []:
        click.echo(_line(record, refusals.get(record.device_id, {})))


@devices.command()
@click.argument("device_id")
@_roster_option
@_population_option
@_json_option
@_errors_in_one_line
def show(*, device_id: str, roster_file: Path, population: str, as_json: bool) -> None:
    """Show one device, and what was refused on its topics. Others may have sent that, where the broker lets them.

    Exit codes: 0 done, 1 no such device or no usable roster, 2 wrong usage.

    Example: flockwise coordinator devices show kitchen-pi --roster state/roster.sqlite --population digits
    """
    record, refusals = _with_roster(
        _existing(roster_file),
        lambda roster: (_found(roster, population, device_id), roster.refusals(population).get(device_id, {})),
    )
    if as_json:
        print_json(_shown(record, refusals))
        return
    click.echo(_line(record, refusals))
    for reason, refusal in refusals.items():
        click.echo(f"  refused {reason:14} {refusal.num:8} times, last at {_time(refusal.last_at)}")


@devices.command()
@click.argument("device_id")
@_roster_option
@_population_option
@_json_option
@_dry_run_option
@_errors_in_one_line
def revoke(**options: Any) -> None:
    """Shut a device out: its check-in, its assignment and its unfinished report are dropped within seconds.

    Exit codes: 0 done, 1 no such device or no usable roster, 2 wrong usage.

    Example: flockwise coordinator devices revoke kitchen-pi --roster state/roster.sqlite --population digits
    """
    _change(options, "REVOKED")


@devices.command()
@click.argument("device_id")
@_roster_option
@_population_option
@_json_option
@_dry_run_option
@_errors_in_one_line
def reinstate(**options: Any) -> None:
    """Let a revoked device in again, with the key it had.

    Exit codes: 0 done, 1 no such device or no usable roster, 2 wrong usage.

    Example: flockwise coordinator devices reinstate kitchen-pi --roster state/roster.sqlite --population digits
    """
    _change(options, "ACTIVE")


def _change(options: dict[str, Any], state_name: str) -> None:
    from coordinator.roster import DeviceState

    state = DeviceState[state_name]
    population, device_id = options["population"], options["device_id"]

    def change(roster: Any) -> Any:
        _found(roster, population, device_id)
        if not options["dry_run"]:
            roster.set_state(population, device_id, state, now=time.time())
        return _found(roster, population, device_id), roster.refusals(population).get(device_id, {})

    record, refusals = _with_roster(_existing(options["roster_file"]), change)
    if options["as_json"]:
        print_json(_shown(record, refusals) | {"changed": not options["dry_run"]})
    else:
        click.echo(f"{'would become' if options['dry_run'] else 'is'} {state.value}: {_line(record, refusals)}")


def _existing(roster_file: Path) -> Path:
    """Looking must not make an empty roster where there is none: a coordinator would then find it."""
    if not roster_file.is_file():
        raise FileNotFoundError(f"there is no roster {roster_file}; enrol-token makes one")
    return roster_file


def _found(roster: Any, population: str, device_id: str) -> Any:
    record = roster.device(population, device_id)
    if record is None:
        raise CoordinatorError(f"no device {device_id!r} is enrolled in population {population!r}")
    return record


def _with_roster(roster_file: Path, use: Callable[[Any], Any]) -> Any:
    from coordinator.roster import Roster

    roster = Roster(roster_file)
    try:
        return use(roster)
    finally:
        roster.close()


def _shown(record: Any, refusals: dict[str, Any]) -> dict[str, Any]:
    return {
        "device_id": record.device_id,
        "public_key": record.public_key.hex(),
        "state": record.state.value,
        "enrolled_at": record.enrolled_at,
        "token_id": record.token_id,
        "revoked_at": record.revoked_at,
        "epoch": record.high_water.epoch,
        "counter": record.high_water.counter,
        "clone_alarm": _clone_alarm(refusals),
        "refusals": _counts(refusals),
    }


def _counts(refusals: dict[str, Any]) -> dict[str, Any]:
    return {reason: {"num": found.num, "last_at": found.last_at} for reason, found in refusals.items()}


def _clone_alarm(refusals: dict[str, Any]) -> str:
    """How sure it is that the key is in two places: not at all, possible, or proved (or a state that was put back)."""
    from coordinator.refusals import CLONE_SIGNS

    proof, sign = (reason.value in refusals for reason in CLONE_SIGNS)
    return "proved" if proof else "possible" if sign else "none"


def _line(record: Any, refusals: dict[str, Any]) -> str:
    alarm = {
        "proved": "  CLONED: signed two messages at one position",
        "possible": "  CLONED? heard in a past epoch",
        "none": "",
    }[_clone_alarm(refusals)]
    enrolled = _time(record.enrolled_at)
    return f"{record.device_id:24} {record.state.value:8} enrolled {enrolled} epoch {record.high_water.epoch}{alarm}"


def _time(unix_s: float) -> str:
    return dt.datetime.fromtimestamp(unix_s, dt.UTC).isoformat(timespec="seconds")
