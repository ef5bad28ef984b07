"""The files of the release channel: where each is, what is in it, and who may change it. `repository` writes."""

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, TargetFile

from coordinator.errors import ReleaseError

__all__ = ["ChannelFiles", "target_file"]

_LOCK_S: Final = 30.0
_SignedT = TypeVar("_SignedT", bound=Signed)


class ChannelFiles:
    """The directory of one release channel. An object of it belongs to one thread.

    Args:
        directory: Where it is.
    """

    def __init__(self, directory: Path) -> None:
        self.metadata = directory / "metadata"
        self.targets = directory / "targets"
        self._blobs = directory / "blobs"
        self._lock_path = directory / "lock"
        self._lock = -1
        self._depth = 0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process, and every other object of this one, from changing the channel. May be nested.

        Raises:
            ReleaseError: The lock cannot be had: the directory cannot be written, or another process keeps it.
        """
        if self._depth == 0:
            self._lock = self._acquire()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                os.close(self._lock)

    def _acquire(self) -> int:
        try:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ReleaseError(f"the channel cannot be locked: {error}") from error
        ends_at = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > ends_at:
                    os.close(descriptor)
                    raise ReleaseError(f"another process is changing the channel ({self._lock_path})") from error
                time.sleep(0.02)
            else:
                return descriptor

    def make(self) -> None:
        """Makes the empty directories.

        Raises:
            OSError: They cannot be made.
        """
        for part in (self.metadata, self.targets, self._blobs):
            part.mkdir(mode=0o755, parents=True, exist_ok=True)

    def root(self) -> Root:
        """The newest root.

        Raises:
            ReleaseError: It cannot be read.
        """
        return self.load(Root, "root")

    def root_path(self, version: int) -> Path:
        """Where a version of the root is."""
        return self.metadata / f"{version}.root.json"

    def newest_version(self, role: str) -> int:
        """The highest version of a role that has numbered files; 0 if there is none."""
        return max((int(path.name.split(".")[0]) for path in self.metadata.glob(f"*.{role}.json")), default=0)

    def load(self, kind: type[_SignedT], role: str) -> _SignedT:
        """The newest word of a role.

        Raises:
            ReleaseError: It cannot be read.
        """
        return self.read(kind, "timestamp.json" if role == "timestamp" else f"{self.newest_version(role)}.{role}.json")

    def read(self, kind: type[_SignedT], name: str) -> _SignedT:
        """A metadata file; signatures are the devices' to check.

        Raises:
            ReleaseError: It cannot be read, or is of another kind.
        """
        path = self.metadata / name
        try:
            signed = Metadata.from_bytes(path.read_bytes()).signed
        except (OSError, RepositoryError) as error:
            raise ReleaseError(f"{path} cannot be read: {error}") from error
        if not isinstance(signed, kind):
            raise ReleaseError(f"{path} is no {kind.__name__}")
        return signed

    def read_target(self, path: str, info: TargetFile) -> bytes:
        """A target's bytes.

        Raises:
            ReleaseError: They cannot be read, or are not those that were signed.
        """
        file = self.targets / target_file(path, info)
        try:
            data = file.read_bytes()
            info.verify_length_and_hashes(data)
        except (OSError, RepositoryError) as error:
            raise ReleaseError(f"{file} cannot be used: {error}") from error
        return data

    def highest_release(self, name: str) -> int:
        """The highest number of a manifest that was ever written here for a model; 0 for none."""
        pattern = re.compile(rf"[0-9a-f]{{64}}\.manifest-{re.escape(name)}-([0-9]{{1,10}})\.json")
        matches = [pattern.fullmatch(path.name) for path in self.targets.iterdir()]
        return max((int(match[1]) for match in matches if match), default=0)

    def blob_path(self, sha256: bytes) -> Path:
        """Where a blob is."""
        return self._blobs / sha256.hex()

    def blob(self, sha256: bytes) -> bytes:
        """A blob that a manifest names.

        Raises:
            ReleaseError: It is not here, or is damaged.
        """
        try:
            data = self.blob_path(sha256).read_bytes()
        except OSError as error:
            raise ReleaseError(f"the blob {sha256.hex()} of a release is gone: {error}") from error
        if hashlib.sha256(data).digest() != sha256:
            raise ReleaseError(f"the blob {sha256.hex()} of a release is damaged; push the release again")
        return data


def target_file(path: str, info: TargetFile) -> str:
    """The name of a target's file on disk and on the broker: consistent snapshots put the hash before it."""
    return f"{info.hashes['sha256']}.{path}"
