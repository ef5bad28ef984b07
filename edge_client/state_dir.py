"""What a device keeps between runs: its id, its lock, its blobs."""

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
from pathlib import Path
from typing import Final

from edge_client.atomic_files import give_to_owner, remove_parts
from edge_client.errors import CorruptState, StorageError
from edge_client.state_writer import StateWriter
from wire_protocol.errors import InvalidIdentifier
from wire_protocol.identifiers import checked_identifier

__all__ = ["StateDir", "ledger_path", "models_path", "time_floor_path"]

_LOG = logging.getLogger(__name__)
_MAX_ID_BYTES: Final = 100
_ID_FILE: Final = "device_id"
_LOCK_FILE: Final = "lock"


def models_path(state_dir: Path) -> Path:
    """Where a state directory keeps released models; makes nothing."""
    return state_dir / "models"


def ledger_path(state_dir: Path) -> Path:
    """Where the privacy ledger of a state directory is, for reading beside a running daemon."""
    return state_dir / "privacy.sqlite"


def time_floor_path(state_dir: Path) -> Path:
    """Where the latest time that was proved is kept, for looking at a device that may not have run yet."""
    return state_dir / "time_floor"


class StateDir:
    """The directory of one device. One daemon at a time may hold it.

    A directory that cannot be made or written keeps no daemon from running: it runs without memory, which its log says.

    Args:
        path: Made, for its owner alone, if it is not there.

    Raises:
        StorageError: Something that is no directory stands there: that is not ours to move.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError as error:
            raise StorageError(f"the state directory {path} is a file; set device.state_dir") from error
        except OSError as error:
            _say_not_persistent(path, error)

    @property
    def blobs(self) -> Path:
        """Where blobs are kept."""
        return self._path / "blobs"

    @property
    def outbox(self) -> Path:
        """Where a report waits for its receipt."""
        return self._path / "outbox"

    @property
    def time_floor(self) -> Path:
        """The file of the latest time that was proved."""
        return time_floor_path(self._path)

    @property
    def crash_record(self) -> Path:
        """What is known about failures of this device."""
        return self._path / "crashes"

    @property
    def task_position(self) -> Path:
        """The position of the newest task that the coordinator signed."""
        return self._path / "task_position"

    @property
    def models(self) -> Path:
        """Released models, which apps open."""
        return models_path(self._path)

    @property
    def release_metadata(self) -> Path:
        """What has been verified of the release channel."""
        return self._path / "releases"

    @property
    def ledger(self) -> Path:
        """The privacy ledger."""
        return ledger_path(self._path)

    def lock(self) -> None:
        """Keeps every other daemon out until ``unlock`` or the end of this process, as far as the directory allows.

        Raises:
            StorageError: Another one has it: two daemons under one id would throw each other off the broker.
        """
        try:
            descriptor = self._open_lock()
        except OSError as error:
            _say_not_persistent(self._path, error)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StorageError(f"another daemon is using {self._path}: stop it, or set device.state_dir") from error
        except OSError as error:
            _LOG.warning("state_not_locked path=%s error=%r", self._path, str(error))
        self._lock = descriptor
        with contextlib.suppress(OSError):
            remove_parts(self._path)

    def unlock(self) -> None:
        """Lets others in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def device_id(self, configured: str, *, writer: StateWriter | None = None) -> str:
        """The device's id: the configured one, or one made up at the first start and kept.

        A damaged file is put aside and another id made up: to the coordinator that is a new device.

        Raises:
            StorageError: There is none, and a new one cannot be kept: the device would be another one at every start.
        """
        if configured:
            return configured
        path, writer = self._path / _ID_FILE, writer or StateWriter()
        data = writer.read(path, max_bytes=_MAX_ID_BYTES)
        if data is not None:
            try:
                return _decode_id(data)
            except CorruptState as error:
                writer.quarantine(path, error)
        made_up = f"device-{secrets.token_hex(8)}"
        try:
            writer.write(path, _encode_id(made_up))
        except OSError as error:
            raise StorageError(f"the device's id cannot be kept in {path}: {error}; set device.id") from error
        return made_up

    def _open_lock(self) -> int:
        """The lock file; where it cannot be made, the directory itself can be locked just as well."""
        flags = os.O_CLOEXEC
        try:
            descriptor = os.open(self._path / _LOCK_FILE, flags | os.O_RDWR | os.O_CREAT, 0o600)
        except IsADirectoryError:
            return os.open(self._path, flags | os.O_RDONLY)
        except OSError as error:
            descriptor = os.open(self._path, flags | os.O_RDONLY)
            _say_not_persistent(self._path, error)
            return descriptor
        with contextlib.suppress(OSError):  # a file system without owners locks as well
            give_to_owner(descriptor, self._path)
        return descriptor


def _encode_id(device_id: str) -> bytes:
    """With a checksum, so that a flipped bit does not make another device of this one."""
    return f"{device_id} {hashlib.sha256(device_id.encode()).hexdigest()[:8]}\n".encode()


def _decode_id(data: bytes) -> str:
    device_id = data.split(b" ")[0].decode(errors="replace")
    if data != _encode_id(device_id):
        raise CorruptState("no device id with its checksum")
    try:
        return checked_identifier(device_id, kind="device")
    except InvalidIdentifier as error:
        raise CorruptState(str(error)) from error


def _say_not_persistent(path: Path, error: OSError) -> None:
    _LOG.error(
        "state_not_persistent path=%s error=%r: reports cannot be stored, so every round is given back; set device.state_dir",
        path, str(error),
    )  # fmt: skip
