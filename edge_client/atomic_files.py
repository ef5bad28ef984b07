"""Files that are either the old ones or the new ones, whatever happens in between, a power cut included."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from broker_link.failpoints import hit

__all__ = ["PART_SUFFIX", "atomic_file", "give_to_owner", "remove_parts", "sync_directory", "write_atomically"]

PART_SUFFIX = ".part"
"""Ends the name of a file that is still being written; whatever bears it may be deleted at the next start."""


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Writes a whole file: temporary file, fsync, rename, fsync of the directory.

    Args:
        path: The file.
        data: All of it.
        mode: Its permissions, less the umask, from its first byte on.

    Raises:
        OSError: The disk is full, or the directory cannot be written; ``path`` is as it was.
    """
    with atomic_file(path, mode=mode) as stream:
        stream.write(data)


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Opens a file for writing that becomes ``path`` when the block ends well, and vanishes otherwise.

    Raises:
        OSError: As ``write_atomically``.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART_SUFFIX}")
    hit("device.file.before_write")
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            give_to_owner(stream.fileno(), path.parent)
            yield stream
            stream.flush()
            hit("device.file.before_sync")
            os.fsync(stream.fileno())
        hit("device.file.before_rename")
        part.replace(path)
        hit("device.file.after_rename")
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            part.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def give_to_owner(descriptor: int, directory: Path) -> None:
    """Root's files in another user's directory become that user's: what a command with sudo writes, the daemon must use.

    Args:
        descriptor: An open file or directory in ``directory``.
        directory: Whose owner and group it gets. One that anybody may write to has no owner in this sense.

    Raises:
        OSError: The file system knows no owners.
    """
    if os.geteuid() == 0:
        owner = directory.stat()
        if owner.st_uid != 0 and not owner.st_mode & stat.S_IWOTH:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def sync_directory(directory: Path) -> None:
    """Makes renames in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(directory: Path) -> None:
    """Deletes what an earlier process left half written."""
    for part in directory.glob(f".*{PART_SUFFIX}"):
        part.unlink(missing_ok=True)
