"""What the commands of the release channel have in common: where it is, its keys, and how they speak."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from coordinator.errors import CoordinatorError
from flockwise.reporting import one_line_errors
from wire_protocol.errors import WireError

__all__ = ["channel_option", "dry_run_option", "errors_in_one_line", "json_option", "key_option", "open_rollouts"]

errors_in_one_line = one_line_errors(CoordinatorError, WireError, OSError)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and end.")
channel_option = click.option(
    "--channel", type=click.Path(path_type=Path), required=True, help="Directory of the release channel."
)


def key_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Option: keys that are kept elsewhere."""
    return click.option(
        "--key", "keys", type=click.Path(exists=True, dir_okay=False, path_type=Path), multiple=True,
        help="A key file that is not in the channel's keys directory, such as root-1.pem on a stick. May be repeated.",
    )(command)  # fmt: skip


def open_rollouts(channel: Path, keys: tuple[Path, ...] = ()) -> tuple[Any, Any, Any]:
    """The repository, the book and the rollouts of a channel.

    Raises:
        ReleaseError: There is no channel, or it cannot be used.
    """
    from coordinator.releases.serving import KEYS_DIRECTORY, open_channel
    from coordinator.releases.signing_keys import KeyFiles, passphrase_of_environment

    files = KeyFiles(channel / KEYS_DIRECTORY, elsewhere=keys, passphrase=passphrase_of_environment())
    return open_channel(channel, files)
