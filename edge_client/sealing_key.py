"""The device's X25519 key, to which others seal what is for it alone; made here, and bound to the device's identity.

It is a key of its own: an Ed25519 key signs, and signs what others ask for; one and the same key for both is what no
proof covers. The identity signs that the sealing key is its own, and so the key directory's authority, and everybody
who reads the directory, can check that both belong to one device.
"""

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.errors import IdentityError, StorageError
from edge_client.identity import DeviceIdentity
from edge_client.state_writer import StateWriter
from secure_sum.directory_entries import MemberKeys, MemberRole, bound_keys

__all__ = ["SealingKeyStore", "member_keys"]

_KEY_FILE: Final = "sealing.key"
_OWNER_ONLY: Final = 0o600


class SealingKeyStore:
    """Where the key is kept.

    Args:
        directory: The state directory; its owner has locked it.
        writer: Writes in it.
    """

    def __init__(self, directory: Path, *, writer: StateWriter) -> None:
        self._path = directory / _KEY_FILE
        self._writer = writer

    def load(self) -> X25519PrivateKey | None:
        """The key; None if this device has none.

        Raises:
            IdentityError: It cannot be used, or others can read it.
        """
        try:
            with self._path.open("rb") as stream:
                mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
                data = stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IdentityError(f"the device's sealing key {self._path} cannot be read: {error}") from error
        if mode & 0o077:
            raise IdentityError(
                f"others can read the device's sealing key: chmod 600 {self._path}, and have it rotated"
            )
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, X25519PrivateKey):
            raise IdentityError(f"{self._path} holds no X25519 key (PEM): restore it, or delete it and have it rotated")
        return key

    def load_or_make(self) -> X25519PrivateKey:
        """The key; made if there is none.

        Raises:
            IdentityError: As ``load``.
            StorageError: A new one cannot be kept.
        """
        found = self.load()
        if found is not None:
            return found
        key = X25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            self._writer.write(self._path, pem, mode=_OWNER_ONLY)
        except OSError as error:
            raise StorageError(f"the device's sealing key cannot be kept in {self._path}: {error}") from error
        return key


def member_keys(
    identity: DeviceIdentity, sealing: X25519PrivateKey, *, population: str, member_id: str, role: MemberRole
) -> MemberKeys:
    """What the member asks the directory's authority to enter: both public keys, bound by the identity's signature."""
    return bound_keys(
        population,
        member_id,
        role,
        identity_key=identity.public_key,
        sealing_key=sealing.public_key().public_bytes_raw(),
        sign=identity.sign_statement,
    )
