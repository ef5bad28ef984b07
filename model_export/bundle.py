"""The four files of an export, written together or not at all."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Final

from model_export.errors import NotABundle
from wire_protocol import model_contract as contract

__all__ = ["Bundle", "refuse_other_files", "write_bundle"]

_NAMES: Final = frozenset(
    (contract.BUNDLE_MODEL, contract.BUNDLE_PLAN, contract.BUNDLE_CHECKPOINT, contract.BUNDLE_CERTIFICATE)
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """The contents of the files."""

    model: bytes
    plan: bytes
    checkpoint: bytes
    certificate: bytes

    @property
    def files(self) -> Mapping[str, bytes]:
        """File name -> contents."""
        return {
            contract.BUNDLE_MODEL: self.model,
            contract.BUNDLE_PLAN: self.plan,
            contract.BUNDLE_CHECKPOINT: self.checkpoint,
            contract.BUNDLE_CERTIFICATE: self.certificate,
        }


def write_bundle(bundle: Bundle, directory: pathlib.Path) -> None:
    """Writes a bundle; an earlier one in the same place is replaced as a whole.

    A reader sees the old files, the new ones, or for an instant no directory, but never a mixture.

    Raises:
        NotABundle: The directory holds files of other names; nothing was changed.
    """
    refuse_other_files(directory)
    parent = directory.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=parent))
    try:
        fresh.chmod(0o755)  # mkdtemp makes it private; a bundle is to be served
        for name, contents in bundle.files.items():
            _write_durably(fresh / name, contents)
        _swap(fresh, directory.absolute())
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _sync_directory(parent)


def refuse_other_files(directory: pathlib.Path) -> None:
    """Refuses a directory that a bundle must not replace.

    Raises:
        NotABundle: It is a file, or holds files of other names.
    """
    if directory.exists() and not directory.is_dir():
        raise NotABundle(f"{directory} is not a directory")
    others = sorted({path.name for path in directory.iterdir()} - _NAMES) if directory.exists() else []
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
