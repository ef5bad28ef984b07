"""Small files that are whole and durable, or as they were, however the machine stops."""

import os
from pathlib import Path

from broker_link.failpoints import hit

__all__ = ["write_durably"]


def write_durably(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Writes a file; when this returns, content and name survive a power cut.

    Args:
        path: Where.
        data: What.
        mode: Its permissions, less the process's umask; never more than these even for a moment.

    Written beside its place (``*.part``), synced, renamed into it, and the directory synced: without that last step a
    power cut may bring the old file back.

    Raises:
        OSError: It cannot be written; what was there before is still there.
    """
    partial = path.with_suffix(".part")
    hit("coordinator.file.before_write")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        stream.write(data)
        stream.flush()
        hit("coordinator.file.before_sync")
        os.fsync(stream.fileno())
    hit("coordinator.file.before_rename")
    partial.replace(path)
    hit("coordinator.file.after_rename")
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
