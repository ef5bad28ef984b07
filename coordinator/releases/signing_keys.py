"""The keys that sign releases: one Ed25519 key per file, PEM, some of which do not belong on this machine.

| file | signs | where it belongs |
|---|---|---|
| ``root-1.pem`` .. ``root-3.pem`` | which keys count (2 of the 3 together) | apart from each other, offline |
| ``targets.pem`` | manifests of releases | with whoever approves releases, offline between them |
| ``rollout.pem`` | which share of the fleet tries what | with the fleet's operator |
| ``snapshot.pem``, ``timestamp.pem`` | that all of it is the newest | with the coordinator, online |

Whoever steals the online keys can hold a fleet at what it has, and choose among releases that ``targets`` has signed;
not make one.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner

from coordinator.errors import KeyFileUnusable, ReleaseError
from coordinator.key_files import make_key_file, read_key_file

__all__ = [
    "NUM_ROOT_KEYS",
    "PASSPHRASE_VARIABLE",
    "ROLES",
    "ROLLOUT",
    "ROOT_THRESHOLD",
    "KeyFiles",
    "make_key",
    "passphrase_of_environment",
    "read_key",
]

ROLLOUT: Final = "rollout"
"""The delegated role that signs orders."""
ROLES: Final = ("targets", ROLLOUT, "snapshot", "timestamp")
"""Roles with one key each."""
PASSPHRASE_VARIABLE: Final = "FLOCKWISE_KEY_PASSPHRASE"  # noqa: S105 - the variable's name
"""Environment variable that holds the passphrase of encrypted keys."""
NUM_ROOT_KEYS: Final = 3
ROOT_THRESHOLD: Final = 2


class KeyFiles:
    """A directory of signing keys, any of which may be elsewhere.

    Args:
        directory: Where the keys are.
        elsewhere: More key files, such as root keys on a stick.
        passphrase: Of encrypted keys; None for keys that are not.
    """

    def __init__(self, directory: Path, *, elsewhere: Iterable[Path] = (), passphrase: bytes | None = None) -> None:
        self._directory = directory
        self._elsewhere = {path.stem: path for path in elsewhere}
        self._passphrase = passphrase

    def signer(self, name: str) -> CryptoSigner:
        """The key of a file ``<name>.pem``.

        Raises:
            ReleaseError: It is not here, or cannot be read.
        """
        path = self._path(name)
        if not path.is_file():
            raise ReleaseError(f"the {name} key is not in {self._directory}; bring it back, or name it with --key")
        return read_key(path, passphrase=self._passphrase)

    def root_signers(self) -> Sequence[CryptoSigner]:
        """Every root key that is here."""
        names = sorted({path.stem for path in self._directory.glob("root-*.pem")} | self._names_elsewhere("root-"))
        return [self.signer(name) for name in names]

    def make(self, name: str) -> CryptoSigner:
        """Makes a key and its file.

        Raises:
            ReleaseError: There is one already: a key is never overwritten.
            OSError: It cannot be written.
        """
        path = self._directory / f"{name}.pem"
        if path.exists():
            raise ReleaseError(f"{path} exists; a key is never overwritten: move it away first")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return make_key(path, passphrase=self._passphrase)

    def prepare(self, name: str) -> CryptoSigner:
        """Makes the successor of a key, or finds the one that an interrupted rotation has made.

        Raises:
            ReleaseError: It cannot be read.
            OSError: It cannot be written.
        """
        path = self._next(name)
        return (
            read_key(path, passphrase=self._passphrase)
            if path.is_file()
            else make_key(path, passphrase=self._passphrase)
        )

    def promote(self, name: str, key_ids: Collection[str]) -> bool:
        """Takes a successor into use if it is one of ``key_ids``; the old file is kept aside (``*.retired``).

        Returns:
            Whether there was one.
        """
        path, known = self._next(name), self._path(name)
        if not path.is_file() or read_key(path, passphrase=self._passphrase).public_key.keyid not in key_ids:
            return False
        if known.is_file():
            known.replace(known.with_suffix(".retired"))
        path.replace(self._directory / f"{name}.pem")
        self._elsewhere.pop(name, None)
        return True

    def key_ids(self) -> set[str]:
        """The ids of every key that is here.

        Raises:
            ReleaseError: One cannot be read.
        """
        paths = {*self._directory.glob("*.pem"), *self._elsewhere.values()}
        return {read_key(path, passphrase=self._passphrase).public_key.keyid for path in paths}

    def _path(self, name: str) -> Path:
        return self._elsewhere.get(name, self._directory / f"{name}.pem")

    def _next(self, name: str) -> Path:
        return self._directory / f"{name}.next"

    def _names_elsewhere(self, prefix: str) -> set[str]:
        return {name for name in self._elsewhere if name.startswith(prefix)}


def make_key(path: Path, *, passphrase: bytes | None = None) -> CryptoSigner:
    """Makes a signing key and its file.

    Raises:
        OSError: It cannot be written.
    """
    return CryptoSigner(make_key_file(path, passphrase=passphrase))


def read_key(path: Path, *, passphrase: bytes | None = None) -> CryptoSigner:
    """Reads a signing key.

    Raises:
        ReleaseError: It cannot be read, is encrypted with another passphrase, or is a key of another kind.
    """
    try:
        return CryptoSigner(read_key_file(path, passphrase=passphrase))
    except KeyFileUnusable as error:
        hint = f"; its passphrase is read from {PASSPHRASE_VARIABLE}" if "password" in str(error).lower() else ""
        raise ReleaseError(f"{error}{hint}") from error


def passphrase_of_environment() -> bytes | None:
    """The passphrase of signing keys, if the environment has one."""
    value = os.environ.get(PASSPHRASE_VARIABLE)
    return value.encode() if value else None
