"""`flockwise edge install` and `uninstall`: the device daemon as a systemd service."""

import os
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import click

from edge_client.errors import EdgeClientError, StorageError
from flockwise.reporting import one_line_errors, print_json

if TYPE_CHECKING:
    from edge_client.service_install import Change

__all__ = ["install", "uninstall"]

_EDITED: Final = 3
_MEANINGS: Final = {
    "create": "create",
    "replace": "replace",
    "remove": "remove",
    "keep": "keep",
    "edited": "keep, for it was edited (--force overrides)",
}

_root_option = click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False, exists=True), envvar="DESTDIR", default=Path("/"),
    help="Directory that is / on the device, for those who build images. [env: DESTDIR; default: /]",
)  # fmt: skip
_force_option = click.option("--force", is_flag=True, help="Also what was edited; a copy stays as .bak.")
_json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
_errors_in_one_line = one_line_errors(EdgeClientError)


@click.command()
@click.option("--prefix", default="/opt/flockwise", show_default=True, help="Virtual environment with bin/flockwise.")
@click.option("--user", default="", help="Run as this user. [default: one that systemd makes up while it runs]")
@_root_option
@_force_option
@_json_option
@_dry_run_option
@_errors_in_one_line
def install(*, prefix: str, user: str, root: Path, force: bool, as_json: bool, dry_run: bool) -> None:
    """Install the systemd unit, a configuration to fill in, and places for secrets; print the commands that follow.

    Run it as root, once or again: what is there and right stays, and what was edited is not overwritten.

    Exit codes: 0 installed, 1 failed (not root, no bin/flockwise in the prefix, a file cannot be written), 2 wrong
    usage, 3 installed but for an edited file, which was kept.

    Example: sudo /opt/flockwise/bin/flockwise edge install --dry-run
    """
    from edge_client.daemon import client_version
    from edge_client.service_install import carry_out, commands_after_install, plan_installation

    _check_root(root, dry_run=dry_run)
    place = PurePosixPath(prefix)
    changes = plan_installation(root, version=client_version(), prefix=place, user=user, force=force)
    warning = _check_program(root, place)
    if not dry_run:
        carry_out(root, changes)
    commands = commands_after_install(changes, prefix=place)
    _print(changes, commands=commands, warning=warning, dry_run=dry_run, as_json=as_json)


@click.command()
@click.option("--purge", is_flag=True, help="Also the configuration and the secrets.")
@_root_option
@_force_option
@_json_option
@_dry_run_option
@_errors_in_one_line
def uninstall(*, purge: bool, root: Path, force: bool, as_json: bool, dry_run: bool) -> None:
    """Remove the systemd unit. Configuration, secrets and the device's state stay unless purged.

    Exit codes: 0 removed (or there was nothing), 1 failed (not root, a file cannot be removed), 2 wrong usage, 3 an
    edited unit was kept.

    Example: sudo /opt/flockwise/bin/flockwise edge uninstall --dry-run
    """
    from edge_client.service_install import carry_out, commands_around_removal, plan_removal

    _check_root(root, dry_run=dry_run)
    changes = plan_removal(root, force=force, purge=purge)
    if not dry_run:
        carry_out(root, changes)
    _print(changes, commands=commands_around_removal(purge=purge), warning="", dry_run=dry_run, as_json=as_json)


def _check_root(root: Path, *, dry_run: bool) -> None:
    if root == Path("/") and os.geteuid() != 0 and not dry_run:
        raise StorageError("this writes below /etc: run it with sudo, or name another root with --root")


def _check_program(root: Path, prefix: PurePosixPath) -> str:
    """What to say about a prefix without a program: nothing starts on this device, but an image may get it later."""
    program = root / prefix.relative_to("/") / "bin" / "flockwise"
    if program.exists():
        return ""
    problem = f"there is no {program}"
    if root != Path("/"):
        return f"{problem} yet"
    raise StorageError(f"{problem}: name the environment that flockwise is installed in, --prefix {sys.prefix}")


def _print(changes: "list[Change]", *, commands: list[str], warning: str, dry_run: bool, as_json: bool) -> None:
    """Says what was done and what comes next, and ends with the exit code."""
    values: dict[str, Any] = {
        "dry_run": dry_run,
        "changes": [{"path": str(change.path), "change": change.kind.value} for change in changes],
        "warning": warning,
        "next": commands,
    }
    if as_json:
        print_json(values)
    else:
        verb = "would " if dry_run else ""
        for change in changes:
            click.echo(f"{verb}{_MEANINGS[change.kind.value]}: {change.path}")
        if warning:
            click.echo(f"warning: {warning}", err=True)
        click.echo("next:")
        for command in commands:
            click.echo(f"    {command}")
    sys.exit(_EDITED if any(change.kind.value == "edited" for change in changes) else 0)
