"""What a device keeps between runs: its id, its lock, its blobs."""

import fcntl
import secrets
from pathlib import Path
from typing import BinaryIO, Final

from edge_client.atomic_files import give_to_owner, remove_parts, write_atomically
from edge_client.errors import StorageError
from wire_protocol.errors import InvalidIdentifier
from wire_protocol.identifiers import checked_identifier

__all__ = ["StateDir", "ledger_path", "time_floor_path"]

_ID_FILE: Final = "device_id"
_LOCK_FILE: Final = "lock"


def ledger_path(state_dir: Path) -> Path:
    """Where the privacy ledger of a state directory is, for reading beside a running daemon."""
    return state_dir / "privacy.sqlite"


def time_floor_path(state_dir: Path) -> Path:
    """Where the latest time that was proved is kept, for looking at a device that may not have run yet."""
    return state_dir / "time_floor"


class StateDir:
    """The directory of one device. One daemon at a time may hold it.

    Args:
        path: Made, for its owner alone, if it is not there.

    Raises:
        StorageError: It cannot be made or used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: BinaryIO | None = None
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"the state directory {path} cannot be made: {error}; set device.state_dir") from error

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
    def ledger(self) -> Path:
        """The privacy ledger."""
        return ledger_path(self._path)

    def lock(self) -> None:
        """Keeps every other daemon out until ``unlock`` or the end of this process.

        Raises:
            StorageError: Another one has it: two daemons under one id would throw each other off the broker.
        """
        try:
            stream = (self._path / _LOCK_FILE).open("ab")
            give_to_owner(stream.fileno(), self._path)
        except OSError as error:
            raise StorageError(f"the state directory {self._path} cannot be written: {error}") from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.close()
            raise StorageError(f"another daemon is using {self._path}: stop it, or set device.state_dir") from error
        self._lock = stream
        remove_parts(self._path)

    def unlock(self) -> None:
        """Lets others in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def device_id(self, configured: str) -> str:
        """The device's id: the configured one, or one made up at the first start and kept.

        Raises:
            StorageError: It cannot be read or kept.
        """
        if configured:
            return configured
        path = self._path / _ID_FILE
        try:
            if path.exists():
                return checked_identifier(path.read_text().strip(), kind="device")
            made_up = f"device-{secrets.token_hex(8)}"
            write_atomically(path, f"{made_up}\n".encode())
        except (OSError, InvalidIdentifier, UnicodeDecodeError) as error:
            raise StorageError(f"the device's id in {path} cannot be read or kept: {error}") from error
        return made_up
