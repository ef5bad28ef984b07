"""A directory of files that is replaced as a whole."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Mapping

from model_export.errors import NotABundle

__all__ = ["refuse_strange_files", "write_directory"]


def write_directory(files: Mapping[str, bytes], directory: pathlib.Path, *, known: Collection[str]) -> None:
    """Writes files; an earlier directory in the same place is replaced as a whole.

    A reader sees the old files, the new ones, or for an instant no directory, but never a mixture.

    Args:
        files: File name -> contents.
        directory: Where to; its parents are made.
        known: Names that an earlier directory may hold.

    Raises:
        NotABundle: The directory holds files of other names; nothing was changed.
    """
    refuse_strange_files(directory, known=known)
    parent = directory.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=parent))
    try:
        fresh.chmod(0o755)  # mkdtemp makes it private; these files are to be served
        for name, contents in files.items():
            _write_durably(fresh / name, contents)
        _swap(fresh, directory.absolute())
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _sync_directory(parent)


def refuse_strange_files(directory: pathlib.Path, *, known: Collection[str]) -> None:
    """Refuses a directory that must not be replaced.

    Raises:
        NotABundle: It is a file, or holds files of other names than those known.
    """
    if directory.exists() and not directory.is_dir():
        raise NotABundle(f"{directory} is not a directory")
    others = sorted({path.name for path in directory.iterdir()} - {*known}) if directory.exists() else []
    if others:
        raise NotABundle(f"{directory} holds other files ({', '.join(others[:3])}); choose a new or empty directory")


def _swap(fresh: pathlib.Path, directory: pathlib.Path) -> None:
    old = fresh.with_name(f"{fresh.name}.old")
    if not directory.exists():
        fresh.rename(directory)
        return
    directory.rename(old)
    try:
        fresh.rename(directory)
    except OSError:
        old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_durably(path: pathlib.Path, contents: bytes) -> None:
    with path.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can; the files themselves are synced
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
