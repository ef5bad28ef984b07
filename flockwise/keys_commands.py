"""`flockwise keys`: the keys of a release channel."""

import time
from pathlib import Path
from typing import Any

import click

from flockwise.release_options import (
    channel_option,
    dry_run_option,
    errors_in_one_line,
    json_option,
    key_option,
    open_rollouts,
)
from flockwise.reporting import print_json

__all__ = ["keys"]


@click.group()
def keys() -> None:
    """Make, rotate and show the keys that sign releases.

    Keys are Ed25519. With FLOCKWISE_KEY_PASSPHRASE set they are written encrypted, and read so.

    Exit codes: 0 done, 1 a key or the channel cannot be used, 2 wrong usage. Every verb knows --json.

    Example: flockwise keys init --channel releases
    """


@keys.command()
@channel_option
@json_option
@dry_run_option
@errors_in_one_line
def init(*, channel: Path, as_json: bool, dry_run: bool) -> None:
    """Make all keys and an empty signed channel; print what to do with them.

    Exit codes: 0 made, 1 there is a channel already or it cannot be written, 2 wrong usage.

    Example: flockwise keys init --channel releases
    """
    from coordinator.errors import ReleaseError
    from coordinator.releases.repository import ReleaseRepository
    from coordinator.releases.serving import KEYS_DIRECTORY
    from coordinator.releases.signing_keys import NUM_ROOT_KEYS, KeyFiles, passphrase_of_environment

    directory = channel / KEYS_DIRECTORY
    if (channel / "metadata").exists():
        raise ReleaseError(f"{channel} has a release channel already")
    if not dry_run:
        passphrase = passphrase_of_environment()
        repository = ReleaseRepository.create(channel, KeyFiles(directory, passphrase=passphrase), now=time.time)
        (channel / "root.json").write_bytes(repository.root_bytes)
    root_keys = [str(directory / f"root-{index}.pem") for index in range(1, NUM_ROOT_KEYS + 1)]
    if as_json:
        print_json(
            {"made": not dry_run, "keys": str(directory), "root_keys": root_keys, "root": str(channel / "root.json")}
        )
        return
    click.echo(f"{'would make' if dry_run else 'made'} the keys in {directory}")
    click.echo(f"1. Move {', '.join(root_keys)} to three different places that are not online.")
    click.echo(f"2. Move {directory / 'targets.pem'} to whoever approves releases; name it with --key when you push.")
    click.echo(f"3. Give every device {channel / 'root.json'} (releases.root_file): it is where its trust begins.")


@keys.command()
@click.argument("role", type=click.Choice(["root", "targets", "rollout", "snapshot", "timestamp"]))
@channel_option
@key_option
@json_option
@dry_run_option
@errors_in_one_line
def rotate(*, role: str, channel: Path, keys: tuple[Path, ...], as_json: bool, dry_run: bool) -> None:
    """Replace the key of a role (of root: all three). What the old key signed is signed again; devices follow.

    Needs two of the three root keys; for rollout the targets key. Old key files are kept as *.retired.

    Exit codes: 0 replaced, 1 a key is missing or the channel cannot be written, 2 wrong usage.

    Example: flockwise keys rotate targets --channel releases --key stick-1/root-1.pem --key stick-2/root-2.pem
    """
    repository, book, _ = open_rollouts(channel, keys)
    book.close()
    if dry_run:
        repository.check_can_rotate(role)
        version = None
    else:
        version = repository.rotate(role)
    if as_json:
        print_json({"role": role, "rotated": not dry_run, "root_version": version})
    else:
        click.echo(f"would replace the {role} key" if dry_run else f"replaced the {role} key (root version {version})")


@keys.command()
@channel_option
@json_option
@errors_in_one_line
def status(*, channel: Path, as_json: bool) -> None:
    """Show which keys are here, which versions are signed, and when each role's word ends.

    Exit codes: 0 done, 1 the channel cannot be read, 2 wrong usage.

    Example: flockwise keys status --channel releases
    """
    repository, book, _ = open_rollouts(channel)
    book.close()
    rows: list[dict[str, Any]] = repository.roles()
    if as_json:
        print_json({"roles": rows})
        return
    for row in rows:
        here = (
            "key here"
            if row["keys_here"] >= row["threshold"]
            else f"{row['keys_here']} of {row['threshold']} keys here"
        )
        click.echo(f"{row['role']:10} version {row['version']:4}  until {row['expires_at']}  {here}")
