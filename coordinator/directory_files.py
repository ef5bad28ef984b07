"""The enrolment authority's files: its key, which never leaves this machine, and the key directory, which everybody gets.

    authority.key    Ed25519, PEM, for its owner alone: whoever has it can give any id any key
    directory.fwkd   the log; copied to the coordinator, which hands it on and can change nothing in it

The authority is not the coordinator: keep these files on another machine, under another person's hand. A log that was
put back from a backup and then continued is a fork, which every device that saw the first one refuses for good.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.durable_files import write_durably
from coordinator.errors import DirectoryFilesUnusable
from secure_sum.errors import DirectoryError
from secure_sum.key_directory import (
    MAX_DIRECTORY_BYTES,
    KeyDirectory,
    decode_directory,
    empty_directory,
    encode_directory,
)
from wire_protocol.identifiers import checked_identifier

__all__ = ["DIRECTORY_FILE", "KEY_FILE", "change_directory", "make_authority_files", "open_key_directory"]

KEY_FILE: Final = "authority.key"
DIRECTORY_FILE: Final = "directory.fwkd"
_OWNER_ONLY: Final = 0o600


def make_authority_files(home: Path, population: str, *, only_look: bool) -> KeyDirectory:
    """Makes an authority and its empty log.

    Args:
        home: A directory that is not there, or is empty.
        population: Whose keys it will list.
        only_look: Check everything and write nothing.

    Raises:
        DirectoryFilesUnusable: Something is there already.
        InvalidIdentifier: The population's name is not allowed.
        OSError: It cannot be written.
    """
    checked_identifier(population, kind="population")
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise DirectoryFilesUnusable(f"{home} is there already: name a new directory; nothing was changed")
    key = Ed25519PrivateKey.generate()
    directory = empty_directory(population, key.public_key().public_bytes_raw())
    if not only_look:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_durably(home / KEY_FILE, pem, mode=_OWNER_ONLY)
        write_durably(home / DIRECTORY_FILE, encode_directory(directory), mode=0o644)
    return directory


def open_key_directory(path: Path) -> KeyDirectory:
    """Reads and checks a log: a file, or the authority's directory.

    Raises:
        DirectoryFilesUnusable: There is none, or it is damaged.
    """
    file = path / DIRECTORY_FILE if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            return decode_directory(stream.read(MAX_DIRECTORY_BYTES + 1))
    except OSError as error:
        raise DirectoryFilesUnusable(f"the key directory {file} cannot be read: {error}") from error
    except DirectoryError as error:
        raise DirectoryFilesUnusable(f"{file} cannot be believed: {error}") from error


def change_directory(
    home: Path, change: Callable[[KeyDirectory, Ed25519PrivateKey], KeyDirectory], *, only_look: bool
) -> KeyDirectory:
    """Continues the log; one process at a time, so that no two entries follow the same one.

    Args:
        home: The authority's directory.
        change: From a log and the authority's key to the longer log.
        only_look: Check everything and write nothing.

    Raises:
        DirectoryFilesUnusable: The files cannot be used.
        DirectoryError: The change is not allowed; the log is as it was.
        OSError: It cannot be written; the log is as it was.
    """
    with _key(home) as key:
        longer = change(open_key_directory(home), key)
        if not only_look:
            write_durably(home / DIRECTORY_FILE, encode_directory(longer), mode=0o644)
    return longer


@contextlib.contextmanager
def _key(home: Path) -> Iterator[Ed25519PrivateKey]:
    """The authority's key, locked against other processes."""
    path = home / KEY_FILE
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DirectoryFilesUnusable(
            f"the authority's key {path} cannot be read: {error}; 'directory init' makes one"
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o077:
            raise DirectoryFilesUnusable(f"others can read the authority's key: chmod 600 {path}")
        try:
            key = serialization.load_pem_private_key(stream.read(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise DirectoryFilesUnusable(f"{path} holds no Ed25519 key (PEM): restore it from its backup")
        yield key
