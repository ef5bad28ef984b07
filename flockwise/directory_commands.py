"""`flockwise directory`: the log of who has which keys, signed by an authority that is not the coordinator."""

import datetime as dt
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from coordinator.errors import CoordinatorError
from flockwise.reporting import one_line_errors, print_json
from secure_sum.errors import SecureSumError
from wire_protocol.errors import WireError

__all__ = ["directory"]

_errors_in_one_line = one_line_errors(CoordinatorError, SecureSumError, WireError, OSError)
_json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and end.")
_home_option = click.option(
    "--dir", "home", type=click.Path(path_type=Path), required=True, help="The authority's directory, made by init."
)
_MISMATCH: Final = 3


@click.group()
def directory() -> None:
    """Keep the key directory of a population: who has which keys, in a signed log that only grows.

    Run this on the enrolment authority's machine, which is not the coordinator's: whoever signs the directory could name
    itself as everybody. Only directory.fwkd leaves that machine.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage; verify has one more. Every verb knows --json.

    Example: flockwise directory init --population digits --dir authority
    """


@directory.command()
@click.option("--population", required=True, help="Name of the population.")
@click.option("--dir", "home", type=click.Path(path_type=Path), required=True, help="Directory to make.")
@_json_option
@_dry_run_option
@_errors_in_one_line
def init(*, population: str, home: Path, as_json: bool, dry_run: bool) -> None:
    """Make an authority: its key, and an empty key directory. Shows the fingerprint that owners compare.

    Exit codes: 0 made, 1 something is there already, or it cannot be written, 2 wrong usage.

    Example: flockwise directory init --population digits --dir authority
    """
    from coordinator.directory_files import DIRECTORY_FILE, KEY_FILE, make_authority_files

    made = make_authority_files(home, population, only_look=dry_run)
    values = _head_of(made) | {"directory": str(home / DIRECTORY_FILE), "made": not dry_run}
    if dry_run:
        values["authority"] = "(dry run: no key)"
    if as_json:
        print_json(values)
        return
    click.echo(f"{'would make' if dry_run else 'made'} {home}: keep {KEY_FILE} here, and a backup of it elsewhere")
    click.echo(f"authority {values['authority']}  (privacy.authority in a device's settings)")


@directory.command()
@click.argument("requests", nargs=-1)
@click.option("--from", "source", type=click.File(), help="File of requests, one a line; '-' is standard input.")
@_home_option
@_json_option
@_dry_run_option
@_errors_in_one_line
def add(**options: Any) -> None:
    """Add members by the requests that they made: 'flockwise edge directory-request' prints one, fwk1....

    Compare the fingerprints that this prints with those on the devices: a request says who it is from, and only you know
    whether that is so. All of them are added, or none.

    Exit codes: 0 added, 1 a request is not in order, an id or key is known already, 2 wrong usage.

    Example: flockwise directory add fwk1.h6Rtb2Rl... --dir authority
    """
    from secure_sum.key_directory import add_member

    _change_by_requests(options, add_member, "add")


@directory.command()
@click.argument("requests", nargs=-1)
@click.option("--from", "source", type=click.File(), help="File of requests, one a line; '-' is standard input.")
@_home_option
@_json_option
@_dry_run_option
@_errors_in_one_line
def rotate(**options: Any) -> None:
    """Give known members other keys, also those that were removed. Every device says so in its log.

    Exit codes: 0 done, 1 an id is unknown, or a request is not in order, 2 wrong usage.

    Example: flockwise directory rotate fwk1.h6Rtb2Rl... --dir authority
    """
    from secure_sum.key_directory import rotate_member

    _change_by_requests(options, rotate_member, "rotate")


@directory.command()
@click.argument("member_id")
@_home_option
@_json_option
@_dry_run_option
@_errors_in_one_line
def remove(*, member_id: str, home: Path, as_json: bool, dry_run: bool) -> None:
    """Remove a member. Its id comes back by rotate alone.

    Exit codes: 0 removed, 1 no such member, 2 wrong usage.

    Example: flockwise directory remove kitchen-pi --dir authority
    """
    from coordinator.directory_files import change_directory
    from secure_sum.key_directory import remove_member

    made_at = int(time.time())
    longer = change_directory(
        home, lambda log, key: remove_member(log, member_id, made_at=made_at, authority=key), only_look=dry_run
    )
    if as_json:
        print_json(_head_of(longer) | {"changed": not dry_run})
    else:
        click.echo(f"{'would remove' if dry_run else 'removed'} {member_id}: {len(longer.members)} members are left")


@directory.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--log", "whole_log", is_flag=True, help="Show every entry, not only who is a member now.")
@_json_option
@_errors_in_one_line
def show(*, path: Path, whole_log: bool, as_json: bool) -> None:
    """Check a key directory and show its members. PATH is the file, or the authority's directory.

    Exit codes: 0 shown, 1 there is none, or it cannot be believed, 2 wrong usage.

    Example: flockwise directory show directory.fwkd
    """
    from coordinator.directory_files import open_key_directory

    found = open_key_directory(path)
    members = [_member(keys) for _, keys in sorted(found.members.items())]
    entries = [_entry(entry) for entry in found.entries]
    if as_json:
        print_json(_head_of(found) | {"members": members} | ({"entries": entries} if whole_log else {}))
        return
    click.echo(f"population {found.population}  authority {_head_of(found)['authority']}  {len(entries)} entries")
    for values in entries if whole_log else members:
        click.echo("  " + "  ".join(f"{value}" for value in values.values()))


@directory.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--authority", "authority", default="", help="The fingerprint that it must have.")
@click.option("--continues", "older", type=click.Path(path_type=Path), help="An older copy that it must continue.")
@_json_option
@_errors_in_one_line
def verify(*, path: Path, authority: str, older: Path | None, as_json: bool) -> None:
    """Check every signature and link of a key directory; with --continues also for rollback and fork.

    Exit codes: 0 in order, 1 damaged or not signed as it should be, 2 wrong usage, 3 in order by itself, but another
    authority's, shorter than the older copy, or a fork of it.

    Example: flockwise directory verify directory.fwkd --authority 3f2a-... --continues last-week.fwkd
    """
    from coordinator.directory_files import open_key_directory
    from secure_sum.directory_pin import advanced_pin, check_first_contact, pin_of
    from secure_sum.errors import DirectoryError

    found = open_key_directory(path)
    problem = ""
    try:
        check_first_contact(found, population=found.population, fingerprint=authority.lower())
        if older is not None:
            advanced_pin(pin_of(open_key_directory(older)), found)
    except DirectoryError as error:
        problem = str(error)
    values = _head_of(found) | {"problem": problem}
    if as_json:
        print_json(values)
    else:
        click.echo(f"{values['num_entries']} entries in order  authority {values['authority']}  head {values['head']}")
    if problem:
        click.echo(f"error: {problem}", err=True)
        raise SystemExit(_MISMATCH)


def _change_by_requests(options: dict[str, Any], change: Callable[..., Any], verb: str) -> None:
    from coordinator.directory_files import change_directory
    from secure_sum.directory_entries import decode_request

    lines = [*options["requests"], *(options["source"] or [])]
    members = [decode_request(line) for line in lines if line.strip()]
    if not members:
        raise click.UsageError("name requests, or a file of them with --from")
    made_at = int(time.time())

    def change_all(log: Any, key: Any) -> Any:
        for member in members:
            log = change(log, member, made_at=made_at, authority=key)
        return log

    longer = change_directory(options["home"], change_all, only_look=options["dry_run"])
    shown = [_member(member) for member in members]
    if options["as_json"]:
        print_json(_head_of(longer) | {"members": shown, "changed": not options["dry_run"]})
        return
    for values in shown:
        click.echo(f"{'would ' if options['dry_run'] else ''}{verb} " + "  ".join(values.values()))


def _head_of(log: Any) -> dict[str, Any]:
    from secure_sum.directory_entries import fingerprint

    return {
        "population": log.population,
        "authority": fingerprint(log.authority_key),
        "num_entries": len(log.entries),
        "head": log.head.hex(),
    }


def _member(keys: Any) -> dict[str, str]:
    from secure_sum.directory_entries import fingerprint

    return {
        "member_id": keys.member_id,
        "role": keys.role.value,
        "identity": fingerprint(keys.identity_key),
        "sealing": fingerprint(keys.sealing_key),
    }


def _entry(entry: Any) -> dict[str, Any]:
    change = entry.change
    what = type(change).__struct_config__.tag
    made_at = dt.datetime.fromtimestamp(change.made_at, dt.UTC).isoformat(timespec="seconds")
    member = getattr(change, "member", None)
    keys = {"identity": "", "sealing": "", "role": ""} if member is None else _member(member)
    return {"index": change.index, "made_at": made_at, "change": what, "member_id": entry.member_id} | keys
