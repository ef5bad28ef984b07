"""Issues a key authority's keys: from its state directory and a key directory to the signed file that devices get."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Final

from edge_client.atomic_files import write_atomically
from edge_client.errors import IdentityError, StorageError
from edge_client.identity import IdentityStore
from edge_client.opener.encryption_key_file import EncryptionKeyFile, make_release
from edge_client.pinned_directory import PinnedDirectory
from edge_client.state_dir import StateDir
from edge_client.state_writer import StateWriter
from secure_sum.encryption_keys import EncryptionKeys
from secure_sum.key_directory import MAX_DIRECTORY_BYTES, decode_directory

__all__ = ["ISSUED_DIRECTORY", "issue_keys", "released_by"]

ISSUED_DIRECTORY: Final = "issued_directory.fwkd"
"""In the state directory: the key directory with which the keys were issued."""
_RELEASES_FILE: Final = "releases"


def issue_keys(
    home: Path,
    *,
    authority_id: str,
    directory_file: Path,
    authority_fingerprint: str,
    new_keys: bool,
    out_file: Path | None,
) -> EncryptionKeys:
    """Makes a release, and keys if there are none.

    Args:
        home: The key authority's state directory. Its service must not be running.
        authority_id: Its name in the population.
        directory_file: The key directory; pinned, or checked against what is pinned.
        authority_fingerprint: Of the enrolment authority, or empty.
        new_keys: Make new keys also if there are some.
        out_file: Where the release is written; None makes and writes nothing, with keys that are there.

    Raises:
        IdentityError: A key cannot be used, or the directory does not have this key authority.
        StorageError: Something cannot be written, or the service is running.
        DirectoryError: The key directory is not believed.
        EncryptionUnavailable: TenSEAL is not installed.
        OSError: The directory cannot be read.
    """
    state_dir = StateDir(home)
    state_dir.lock()
    try:
        writer = StateWriter()
        with directory_file.open("rb") as stream:
            data = stream.read(MAX_DIRECTORY_BYTES + 1)
        pinned = PinnedDirectory(
            home,
            writer=writer,
            population=decode_directory(data).population,
            authority_fingerprint=authority_fingerprint,
        )
        directory = pinned.accept(data)
        identity = IdentityStore.of_this_process(home, writer=writer).load()
        if identity is None:
            raise IdentityError(f"there is no identity in {home}: 'flockwise key-authority request' makes it")
        keys = EncryptionKeyFile(home, writer=writer)
        make = keys.make if new_keys else keys.load_or_make
        material = keys.load() if out_file is None else make()
        release = make_release(material, directory, authority_id=authority_id, identity=identity)
        if out_file is not None:
            try:
                # First ours: what is released is released for the devices of this directory.
                writer.write(home / ISSUED_DIRECTORY, data)
                earlier = frozenset() if new_keys else released_by(home)
                _note_releases(home, earlier | {hashlib.sha256(release.encode()).digest()}, writer)
                write_atomically(out_file, release.encode())
            except OSError as error:
                raise StorageError(f"the released keys cannot be written to {out_file}: {error}") from error
        return release
    finally:
        state_dir.unlock()


def released_by(home: Path) -> frozenset[bytes]:
    """SHA-256 of every file in which the keys that are in force were released.

    Raises:
        StorageError: The list is damaged or cannot be read.
    """
    path = home / _RELEASES_FILE
    try:
        return frozenset(bytes.fromhex(line) for line in path.read_text(encoding="ascii").split())
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read ({error}): issue the keys anew") from error


def _note_releases(home: Path, digests: Collection[bytes], writer: StateWriter) -> None:
    writer.write(home / _RELEASES_FILE, "".join(f"{digest.hex()}\n" for digest in sorted(digests)).encode())
