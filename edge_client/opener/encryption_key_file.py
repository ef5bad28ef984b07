"""The key authority's own keys: made here, kept for its owner alone, and released to devices sealed and signed.

encryption.key    both halves of the BFV key and the tag secret: with the coordinator's ciphertexts, every update
"""

import os
import stat
from pathlib import Path
from typing import Annotated, Final

import msgspec

from edge_client.checked_file import seal, unseal
from edge_client.errors import CorruptState, IdentityError, StorageError
from edge_client.identity import DeviceIdentity
from edge_client.state_writer import StateWriter
from secure_sum.bfv import make_key_pair
from secure_sum.directory_entries import MemberRole
from secure_sum.encryption_keys import EncryptionKeys, release_encryption_keys
from secure_sum.errors import DirectoryError
from secure_sum.key_directory import KeyDirectory
from secure_sum.sum_tags import TAG_SECRET_BYTES

__all__ = ["EncryptionKeyFile", "KeyMaterial", "make_release"]

_FILE: Final = "encryption.key"
_MAGIC: Final = b"EK"
_MAX_BYTES: Final = 2 * 1024 * 1024
_OWNER_ONLY: Final = 0o600


class KeyMaterial(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decrypts and tells a sum from anything else."""

    secret_key: bytes
    public_key: bytes
    tag_secret: Annotated[bytes, msgspec.Meta(min_length=TAG_SECRET_BYTES, max_length=TAG_SECRET_BYTES)]

    def __repr__(self) -> str:
        return "KeyMaterial(...)"


class EncryptionKeyFile:
    """Where the keys are kept.

    Args:
        directory: The state directory; its owner has locked it.
        writer: Writes in it.
    """

    def __init__(self, directory: Path, *, writer: StateWriter) -> None:
        self._path = directory / _FILE
        self._writer = writer

    def load(self) -> KeyMaterial:
        """The keys.

        Raises:
            IdentityError: There are none, they cannot be used, or others can read them.
        """
        found = self._read()
        if found is None:
            raise IdentityError(f"there is no {self._path}: 'flockwise key-authority issue' makes it")
        return found

    def load_or_make(self) -> KeyMaterial:
        """The keys; made if there are none.

        Raises:
            IdentityError: Those that are there cannot be used.
            StorageError: New ones cannot be kept.
            EncryptionUnavailable: TenSEAL is not installed.
        """
        return self._read() or self.make()

    def make(self) -> KeyMaterial:
        """New keys in place of any; what was encrypted with the old ones can no longer be decrypted.

        Raises:
            StorageError: They cannot be kept.
            EncryptionUnavailable: TenSEAL is not installed.
        """
        pair = make_key_pair()
        made = KeyMaterial(secret_key=pair.secret, public_key=pair.public, tag_secret=os.urandom(TAG_SECRET_BYTES))
        try:
            self._writer.write(self._path, seal(_MAGIC, msgspec.msgpack.encode(made)), mode=_OWNER_ONLY)
        except OSError as error:
            raise StorageError(f"the encryption keys cannot be kept in {self._path}: {error}") from error
        return made

    def _read(self) -> KeyMaterial | None:
        try:
            with self._path.open("rb") as stream:
                mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
                data = stream.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IdentityError(f"the encryption keys {self._path} cannot be read: {error}") from error
        if mode & 0o077:
            raise IdentityError(f"others can read the encryption keys: chmod 600 {self._path}, and issue new ones")
        try:
            return _MATERIAL.decode(unseal(_MAGIC, data, max_bytes=_MAX_BYTES))
        except (CorruptState, msgspec.MsgspecError, RecursionError) as error:
            raise IdentityError(f"{self._path} holds no encryption keys: restore it, or issue new ones") from error


_MATERIAL: Final = msgspec.msgpack.Decoder(KeyMaterial)


def make_release(
    material: KeyMaterial, directory: KeyDirectory, *, authority_id: str, identity: DeviceIdentity
) -> EncryptionKeys:
    """What devices get: the public key, and for each device of the key directory the tag secret, sealed for it.

    Raises:
        IdentityError: The directory has another key authority, or none, under this name; or no device.
    """
    try:
        own = directory.member(authority_id, MemberRole.KEY_AUTHORITY)
    except DirectoryError as error:
        raise IdentityError(f"{error}: have the enrolment authority enter this key authority's request") from error
    if own.identity_key != identity.public_key:
        raise IdentityError(f"the key directory has another identity key for {authority_id}: have it rotated")
    devices = directory.members_with(MemberRole.DEVICE)
    if not devices:
        raise IdentityError("there is no device in the key directory: enter the devices first, then issue the keys")
    return release_encryption_keys(
        population=directory.population,
        authority_id=authority_id,
        public_key=material.public_key,
        tag_secret=material.tag_secret,
        sealing_keys={member.member_id: member.sealing_key for member in devices},
        sign=identity.sign_statement,
        random_bytes=os.urandom,
    )
