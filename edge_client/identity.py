"""The device's identity: an Ed25519 key made here, which never leaves, and the order of what it signs.

Every start of the daemon raises the *epoch*, durably, before anything is signed; every message raises the *counter*.
So the pair rises over the device's whole life at the price of one small write per start. If the epoch is lost, the
time of day takes its place: it is far above any count of starts. If that clock is behind what was used before, the
coordinator refuses what is signed, and the device must be enrolled anew.
"""

import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.errors import CorruptState, IdentityError, StorageError
from edge_client.state_writer import StateWriter
from wire_protocol.signed import MAX_SEQUENCE_NUMBER, MESSAGE_DOMAIN, SignedMessage, bytes_to_sign, frame_signed

__all__ = ["CREDENTIAL_NAME", "DeviceIdentity", "IdentityStore", "next_epoch"]

CREDENTIAL_NAME: Final = "flockwise-identity"
"""Name of the key's file in systemd's ``$CREDENTIALS_DIRECTORY``."""

_KEY_FILE: Final = "identity.key"
_EPOCH_FILE: Final = "epoch"
_OWNER_ONLY: Final = 0o600
_NUMBER: Final = re.compile(rb"[0-9]{1,10}\n?")


class DeviceIdentity:
    """Signs. Not for two threads at a time.

    Args:
        key: The device's key.
        epoch: Higher than in any earlier life of this identity.
    """

    __slots__ = ("_counter", "_key", "epoch")

    def __init__(self, key: Ed25519PrivateKey, *, epoch: int) -> None:
        self._key = key
        self._counter = 0
        self.epoch = epoch

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def seal(self, topic: str, message: bytes) -> bytes:
        """Signs a message for one topic, at the next position.

        Raises:
            IdentityError: 2^32 messages have been signed since the start: only a restart can go on.
        """
        if self._counter >= MAX_SEQUENCE_NUMBER:
            raise IdentityError("no message number is left in this epoch: restart the daemon")
        self._counter += 1
        signature = self._key.sign(bytes_to_sign(topic, epoch=self.epoch, counter=self._counter, message=message))
        return frame_signed(
            SignedMessage(epoch=self.epoch, counter=self._counter, signature=signature, message=message)
        )

    def sign_statement(self, statement: bytes) -> bytes:
        """Signs a statement of another domain than messages: its first bytes say what it is.

        Raises:
            IdentityError: It could be taken for a message of this device.
        """
        if statement.startswith(MESSAGE_DOMAIN):
            raise IdentityError("messages are signed by seal, which counts them")
        return self._key.sign(statement)


def next_epoch(stored: int | None, *, unix_time: float) -> int:
    """The epoch after ``stored``; from the time of day if none is known.

    Raises:
        IdentityError: None is left.
    """
    epoch = stored + 1 if stored is not None else max(1, int(unix_time))
    if not 0 < epoch <= MAX_SEQUENCE_NUMBER:
        raise IdentityError("no epoch is left for this key: have the device revoked and enrol it anew")
    return epoch


class IdentityStore:
    """Where the key and the epoch are kept.

    Args:
        directory: The state directory; its owner has locked it.
        writer: Writes in it.
        clock: Time of day, in seconds since 1970.
        credentials: systemd's ``$CREDENTIALS_DIRECTORY``; a key in it comes before the state directory's.
    """

    def __init__(
        self, directory: Path, *, writer: StateWriter, clock: Callable[[], float], credentials: str | None = None
    ) -> None:
        self._key_path = directory / _KEY_FILE
        self._epoch_path = directory / _EPOCH_FILE
        self._credential = Path(credentials) / CREDENTIAL_NAME if credentials else None
        self._writer = writer
        self._clock = clock

    @classmethod
    def of_this_process(cls, directory: Path, *, writer: StateWriter) -> Self:
        """With the clock of this machine, and the credentials that systemd gave this process."""
        credentials = os.environ.get("CREDENTIALS_DIRECTORY")
        return cls(directory, writer=writer, clock=time.time, credentials=credentials)

    def load(self) -> DeviceIdentity | None:
        """The identity, in a new epoch; None if this device has no key.

        Raises:
            IdentityError: The key cannot be used, or others can read it.
            StorageError: The new epoch cannot be kept: nothing may be signed.
        """
        key = self._read_key()
        return None if key is None else DeviceIdentity(key, epoch=self._begin_epoch())

    def load_or_make(self) -> DeviceIdentity:
        """The identity, in a new epoch; a key is made if there is none.

        Raises:
            IdentityError: As ``load``.
            StorageError: As ``load``, or the key cannot be kept.
        """
        found = self.load()
        if found is not None:
            return found
        key = Ed25519PrivateKey.generate()
        try:
            self._writer.write(self._key_path, _pem(key), mode=_OWNER_ONLY)
        except OSError as error:
            raise StorageError(f"the device's key cannot be kept in {self._key_path}: {error}") from error
        return DeviceIdentity(key, epoch=self._begin_epoch())

    def has_key(self) -> bool:
        """Whether this device has a key that can be used. Changes nothing.

        Raises:
            IdentityError: It has one that cannot.
        """
        return self._read_key() is not None

    def _read_key(self) -> Ed25519PrivateKey | None:
        path = self._credential if self._credential is not None and _is_filled(self._credential) else self._key_path
        try:
            with path.open("rb") as stream:
                mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
                data = stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IdentityError(f"the device's key {path} cannot be read: {error}") from error
        # systemd gives credentials to this service alone, whatever their mode says.
        if path == self._key_path and mode & 0o077:
            raise IdentityError(f"others can read the device's key: chmod 600 {path}, and enrol anew if they may have")
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            # Not put aside by itself: what replaces it would need a new enrolment, which is the owner's to decide.
            raise IdentityError(f"{path} holds no Ed25519 key (PEM): restore it, or delete it and enrol anew")
        return key

    def _begin_epoch(self) -> int:
        epoch = next_epoch(self._stored_epoch(), unix_time=self._clock())
        try:
            self._writer.write(self._epoch_path, b"%d\n" % epoch)
        except OSError as error:
            raise StorageError(f"the epoch cannot be kept in {self._epoch_path}: {error}") from error
        return epoch

    def _stored_epoch(self) -> int | None:
        try:
            data = self._epoch_path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"the epoch in {self._epoch_path} cannot be read: {error}") from error
        if _NUMBER.fullmatch(data) is None:
            self._writer.quarantine(self._epoch_path, CorruptState("no epoch: going on from the time of day"))
            return None
        return int(data)


def _is_filled(credential: Path) -> bool:
    """Whether a credential is there; the unit gives a newline where there is no file."""
    try:
        return credential.stat().st_size > 1
    except OSError:
        return False


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
