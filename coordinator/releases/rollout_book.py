"""What is known of rollouts and of the devices in them: SQLite, written by commands and by the running station alike."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from coordinator.errors import ReleaseError
from coordinator.releases.gates import GateRules
from coordinator.releases.rollout_table import RolloutState
from wire_protocol.errors import WireError
from wire_protocol.messages import decode_message, encode_message
from wire_protocol.release_report import ReleaseReport

__all__ = ["MAX_DEVICES", "Rollout", "RolloutBook", "RolloutStep"]

MAX_DEVICES: Final = 200_000
"""Devices whose reports about one model are kept."""

_BUSY_S: Final = 5.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS reports (
    name TEXT NOT NULL, device_id TEXT NOT NULL, report BLOB NOT NULL, heard_at REAL NOT NULL,
    PRIMARY KEY (name, device_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rollouts (
    rollout_id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, rollout BLOB NOT NULL
) STRICT;
"""


class RolloutStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that happened to a rollout."""

    at: float
    """Seconds since 1970 UTC."""
    what: str
    permille: int
    reason: str = ""


class Rollout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rollout of one release."""

    name: str
    candidate: int
    baseline: int
    """0 if the model had none."""
    stages: tuple[int, ...]
    """Shares of the fleet in thousandths, rising, the last 1000."""
    rules: GateRules
    salt: str
    tags: tuple[str, ...] = ()
    state: RolloutState = RolloutState.RUNNING
    stage: int = 0
    """Index into ``stages``."""
    stage_began_at: float
    steps: tuple[RolloutStep, ...] = ()

    @property
    def permille(self) -> int:
        """The present share."""
        return self.stages[self.stage]

    @property
    def is_open(self) -> bool:
        """Whether it may still change."""
        return self.state in {RolloutState.RUNNING, RolloutState.PAUSED}


class RolloutBook:
    """One file of rollouts and reports.

    Args:
        path: The file; made, for its owner alone, if it is not there.

    Raises:
        ReleaseError: It cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ReleaseError(f"{path} cannot be used: {error}; move it away, or name another file") from error

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def note_reports(
        self, reports: list[tuple[str, ReleaseReport]], *, now: float, max_devices: int = MAX_DEVICES
    ) -> int:
        """Keeps the last report of each device, many in one transaction.

        Args:
            reports: (device id, report), oldest first.
            now: Seconds since 1970 UTC.
            max_devices: Of a model; who comes later is not kept. Without a roster anybody can be many devices.

        Returns:
            How many were not kept.

        Raises:
            ReleaseError: The book cannot be written; none was kept.
        """
        num_left_out = 0
        with self._writing() as db:
            num_free = {
                name: max_devices - db.execute("SELECT COUNT(*) FROM reports WHERE name = ?", (name,)).fetchone()[0]
                for name in {report.name for _, report in reports}
            }
            for device_id, report in reports:
                row = (encode_message(report), now, report.name, device_id)
                if db.execute(
                    "UPDATE reports SET report = ?, heard_at = ? WHERE name = ? AND device_id = ?", row
                ).rowcount:
                    continue
                if num_free[report.name] <= 0:
                    num_left_out += 1
                    continue
                num_free[report.name] -= 1
                db.execute("INSERT INTO reports (report, heard_at, name, device_id) VALUES (?, ?, ?, ?)", row)
        return num_left_out

    def reports(self, name: str) -> dict[str, ReleaseReport]:
        """Device -> its last report about a model; what cannot be read is left out."""
        found: dict[str, ReleaseReport] = {}
        for device_id, data in self._read(
            "SELECT device_id, report FROM reports WHERE name = ? ORDER BY device_id", name
        ):
            try:
                found[device_id] = decode_message(data, ReleaseReport)
            except WireError:
                continue
        return found

    def add(self, rollout: Rollout) -> int:
        """Keeps a new rollout; returns its id."""
        with self._writing() as db:
            cursor = db.execute("INSERT INTO rollouts (name, rollout) VALUES (?, ?)", (rollout.name, _encode(rollout)))
        return cursor.lastrowid or 0

    def update(self, rollout_id: int, rollout: Rollout) -> None:
        """Replaces a rollout."""
        with self._writing() as db:
            db.execute("UPDATE rollouts SET rollout = ? WHERE rollout_id = ?", (_encode(rollout), rollout_id))

    def rollouts(self, name: str = "") -> list[tuple[int, Rollout]]:
        """(id, rollout) of one model, or of all, oldest first.

        Raises:
            ReleaseError: One cannot be read.
        """
        rows = self._read("SELECT rollout_id, rollout FROM rollouts WHERE ? IN ('', name) ORDER BY rollout_id", name)
        try:
            return [(rollout_id, msgspec.json.decode(data, type=Rollout)) for rollout_id, data in rows]
        except (msgspec.MsgspecError, ValueError) as error:
            raise ReleaseError(f"{self._path} holds a rollout that cannot be read: {error}") from error

    def open_rollout(self, name: str) -> tuple[int, Rollout] | None:
        """The rollout of a model that is under way, if any."""
        return next(((number, rollout) for number, rollout in reversed(self.rollouts(name)) if rollout.is_open), None)

    def _read(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise ReleaseError(f"{self._path} cannot be read: {error}") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise ReleaseError(f"{self._path} cannot be written: {error}") from error


def _encode(rollout: Rollout) -> bytes:
    return msgspec.json.encode(rollout)
