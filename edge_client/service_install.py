"""Installing the service: which files go where, and what happens to those that are there already.

First a plan, which changes nothing and can be shown; then `carry_out`. What an owner has edited is never overwritten
unless forced, and then a copy with `BACKUP_SUFFIX` stays. Secrets are never overwritten at all. Everything lies below a
root directory, so that an image can be built on another machine.
"""

import dataclasses
import enum
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from edge_client.atomic_files import write_atomically
from edge_client.config_loader import KEY_CREDENTIAL, PASSWORD_CREDENTIAL
from edge_client.errors import StorageError
from edge_client.identity import CREDENTIAL_NAME
from edge_client.service_unit import (
    CONFIG_TEMPLATE,
    DEFAULT_PREFIX,
    UNIT_NAME,
    is_untouched,
    packaged_text,
    render_unit,
    stamped,
)

__all__ = [
    "BACKUP_SUFFIX",
    "CONFIG_PATH",
    "CREDENTIALS_PATH",
    "UNIT_PATH",
    "Change",
    "ChangeKind",
    "carry_out",
    "commands_after_install",
    "commands_around_removal",
    "plan_installation",
    "plan_removal",
]

BACKUP_SUFFIX: Final = ".bak"
UNIT_PATH: Final = PurePosixPath("/etc/systemd/system") / UNIT_NAME
CONFIG_PATH: Final = PurePosixPath("/etc/flockwise") / CONFIG_TEMPLATE
CREDENTIALS_PATH: Final = PurePosixPath("/etc/flockwise/credentials")
_SECRETS: Final = (CREDENTIAL_NAME, KEY_CREDENTIAL, PASSWORD_CREDENTIAL)


class ChangeKind(enum.StrEnum):
    """What happens to a file or directory."""

    CREATE = "create"
    REPLACE = "replace"
    """It is ours and out of date, or forced."""
    REMOVE = "remove"
    KEEP = "keep"
    """It is as it should be, or its owner's to change."""
    EDITED = "edited"
    """Somebody has changed it, so it stays as it is: only force overwrites or removes it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One step of an installation or a removal."""

    path: PurePosixPath
    """Where, on the device."""
    kind: ChangeKind
    text: str | None = None
    """What the file is to hold; None for a directory, and for what is removed or kept."""
    mode: int = 0o644
    keep_backup: bool = False


def plan_installation(
    root: Path, *, version: str, prefix: PurePosixPath = DEFAULT_PREFIX, user: str = "", force: bool = False
) -> list[Change]:
    """What installing would do. Changes nothing.

    Args:
        root: What is ``/`` on the device.
        version: This package's version; it goes into the unit's stamp.
        prefix: The virtual environment on the device.
        user: Who the daemon runs as; systemd makes up a user if empty.
        force: Also what was edited is replaced, and a copy of it kept.

    Raises:
        ConfigError: A prefix or user that cannot be; see ``render_unit``.
        StorageError: A file that is there cannot be read.
    """
    unit = stamped(render_unit(prefix=prefix, user=user), version=version)
    changes = [_directory(root, CONFIG_PATH.parent, 0o755), _directory(root, CREDENTIALS_PATH, 0o700)]
    changes += [_secret(root, CREDENTIALS_PATH / name) for name in _SECRETS]
    changes.append(_config(root, force=force))
    changes.append(_unit(root, unit, force=force))
    return changes


def plan_removal(root: Path, *, force: bool = False, purge: bool = False) -> list[Change]:
    """What uninstalling would do: the unit goes; settings and secrets only if ``purge``. The device's state stays.

    Raises:
        StorageError: A file that is there cannot be read.
    """
    found = _read(root, UNIT_PATH)
    changes = []
    if found is not None:
        is_ours = force or is_untouched(found)
        changes.append(Change(path=UNIT_PATH, kind=ChangeKind.REMOVE if is_ours else ChangeKind.EDITED))
    files = [path for path in (*(CREDENTIALS_PATH / name for name in _SECRETS), CONFIG_PATH) if _exists(root, path)]
    changes += [Change(path=path, kind=ChangeKind.REMOVE if purge else ChangeKind.KEEP) for path in files]
    return changes


def carry_out(root: Path, changes: Sequence[Change]) -> None:
    """Makes the changes of a plan. Done twice, it does nothing the second time.

    Raises:
        StorageError: A file cannot be written; those before it are, and running it again goes on.
    """
    for change in changes:
        path = _at(root, change.path)
        try:
            match change.kind:
                case ChangeKind.CREATE | ChangeKind.REPLACE:
                    _write(path, change)
                case ChangeKind.REMOVE:
                    path.unlink(missing_ok=True)
                case ChangeKind.KEEP | ChangeKind.EDITED:
                    pass
        except OSError as error:
            raise StorageError(f"{path} cannot be changed: {error}") from error


def commands_after_install(changes: Sequence[Change], *, prefix: PurePosixPath) -> list[str]:
    """What the owner types next, to the letter."""
    program = f"{prefix}/bin/flockwise"
    first = [f"sudo nano {CONFIG_PATH}"] if any(c.path == CONFIG_PATH and c.text is not None for c in changes) else []
    return [
        *first,
        f"sudo {program} edge import-data FILE.csv --out /var/lib/flockwise/data",
        f"sudo {program} edge doctor --config {CONFIG_PATH}",
        "sudo systemctl daemon-reload",
        f"sudo systemctl enable --now {UNIT_NAME}",
        f"systemctl status {UNIT_NAME}",
    ]


def commands_around_removal(*, purge: bool) -> list[str]:
    """What the owner types too: systemd is not ours to command."""
    rest = ["sudo rm -rf /var/lib/flockwise /var/lib/private/flockwise /var/cache/private/flockwise"] if purge else []
    return [f"sudo systemctl disable --now {UNIT_NAME}", "sudo systemctl daemon-reload", *rest]


def _directory(root: Path, path: PurePosixPath, mode: int) -> Change:
    kind = ChangeKind.KEEP if _exists(root, path) else ChangeKind.CREATE
    return Change(path=path, kind=kind, mode=mode)


def _secret(root: Path, path: PurePosixPath) -> Change:
    if _exists(root, path):
        return Change(path=path, kind=ChangeKind.KEEP)
    return Change(path=path, kind=ChangeKind.CREATE, text="", mode=0o600)


def _config(root: Path, *, force: bool) -> Change:
    text, found = packaged_text(CONFIG_TEMPLATE), _read(root, CONFIG_PATH)
    if found is None:
        return Change(path=CONFIG_PATH, kind=ChangeKind.CREATE, text=text)
    if force and found != text:
        return Change(path=CONFIG_PATH, kind=ChangeKind.REPLACE, text=text, keep_backup=True)
    # It was made to be edited: nothing is wrong with that.
    return Change(path=CONFIG_PATH, kind=ChangeKind.KEEP)


def _unit(root: Path, text: str, *, force: bool) -> Change:
    found = _read(root, UNIT_PATH)
    if found is None:
        return Change(path=UNIT_PATH, kind=ChangeKind.CREATE, text=text)
    if _without_stamp(found) == _without_stamp(text):
        return Change(path=UNIT_PATH, kind=ChangeKind.KEEP)
    if is_untouched(found):
        return Change(path=UNIT_PATH, kind=ChangeKind.REPLACE, text=text)
    if force:
        return Change(path=UNIT_PATH, kind=ChangeKind.REPLACE, text=text, keep_backup=True)
    return Change(path=UNIT_PATH, kind=ChangeKind.EDITED)


def _without_stamp(text: str) -> str:
    return re.sub(r"\A# Installed by [^\n]*\n", "", text)


def _read(root: Path, path: PurePosixPath) -> str | None:
    try:
        return _at(root, path).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{_at(root, path)} cannot be read: {error}") from error


def _exists(root: Path, path: PurePosixPath) -> bool:
    try:
        return _at(root, path).exists()
    except OSError as error:
        raise StorageError(f"{_at(root, path)} cannot be looked at: {error}; run this as root") from error


def _at(root: Path, path: PurePosixPath) -> Path:
    return root / path.relative_to("/")


def _write(path: Path, change: Change) -> None:
    if change.text is None:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(change.mode)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if change.keep_backup:
        write_atomically(path.with_name(path.name + BACKUP_SUFFIX), path.read_bytes())
    # The umask is the shell's and says nothing about these files; a secret must not be readable even for a moment.
    previous = os.umask(0o077)
    try:
        write_atomically(path, change.text.encode())
    finally:
        os.umask(previous)
    path.chmod(change.mode)
