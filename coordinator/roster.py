"""The roster: which device ids belong to which keys, who is revoked, and the tokens by which devices enrol.

SQLite in WAL mode with ``synchronous=FULL``, written by the running coordinator and by the operator's commands at the
same time. It holds no secret: of a device the public key, of a token the public half.
"""

import dataclasses
import enum
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from coordinator.errors import RosterUnusable
from wire_protocol.enrolment import EnrolmentOutcome

__all__ = ["DeviceRecord", "DeviceState", "HighWater", "RefusalRecord", "Roster", "TokenRecord"]

_RESERVED: Final = frozenset({"coordinator"})
"""The broker's rights go by the device id; this one is the coordinator's."""
_BUSY_S: Final = 5.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS devices (
    population TEXT NOT NULL, device_id TEXT NOT NULL, public_key BLOB NOT NULL, state TEXT NOT NULL,
    enrolled_at REAL NOT NULL, token_id TEXT NOT NULL, revoked_at REAL,
    epoch INTEGER NOT NULL, counter INTEGER NOT NULL,
    PRIMARY KEY (population, device_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (
    token_id TEXT PRIMARY KEY, population TEXT NOT NULL, public_key BLOB NOT NULL, device_id TEXT,
    made_at REAL NOT NULL, expires_at REAL NOT NULL, uses_left INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refusals (
    population TEXT NOT NULL, device_id TEXT NOT NULL, reason TEXT NOT NULL, num INTEGER NOT NULL, last_at REAL NOT NULL,
    PRIMARY KEY (population, device_id, reason)
) STRICT, WITHOUT ROWID;
"""
_DEVICE_COLUMNS: Final = "device_id, public_key, state, enrolled_at, token_id, revoked_at, epoch, counter"


class DeviceState(enum.Enum):
    """Whether a device may take part."""

    ACTIVE = "active"
    REVOKED = "revoked"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HighWater:
    """The highest position accepted from a device."""

    epoch: int
    counter: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RefusalRecord:
    """What a running coordinator refused on the topics of one device, for one reason."""

    num: int
    last_at: float
    """Seconds since 1970, to a few seconds."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRecord:
    """One enrolled device. Times are seconds since 1970."""

    device_id: str
    public_key: bytes
    state: DeviceState
    enrolled_at: float
    token_id: str
    revoked_at: float | None
    high_water: HighWater


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenRecord:
    """The coordinator's half of a token. Times are seconds since 1970."""

    token_id: str
    population: str
    public_key: bytes
    device_id: str | None
    """The only device it is for; None for any id that nobody has."""
    made_at: float
    expires_at: float
    uses_left: int


class Roster:
    """One roster file.

    Args:
        path: The file; made, for its owner alone, if it is not there.

    Raises:
        RosterUnusable: It cannot be opened, or is no roster.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise RosterUnusable(f"the roster {path} cannot be opened: {error}") from error

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    @property
    def data_version(self) -> int:
        """Changes when another process has written."""
        with self._errors():
            return int(self._database.execute("PRAGMA data_version").fetchone()[0])

    def devices(self, population: str) -> list[DeviceRecord]:
        """All devices of a population, by id."""
        query = f"SELECT {_DEVICE_COLUMNS} FROM devices WHERE population = ? ORDER BY device_id"  # noqa: S608
        with self._errors():
            return [_device(row) for row in self._database.execute(query, (population,))]

    def device(self, population: str, device_id: str) -> DeviceRecord | None:
        """One device; None if the id is not enrolled."""
        query = f"SELECT {_DEVICE_COLUMNS} FROM devices WHERE population = ? AND device_id = ?"  # noqa: S608
        with self._errors():
            row = self._database.execute(query, (population, device_id)).fetchone()
        return None if row is None else _device(row)

    def token(self, token_id: str) -> TokenRecord | None:
        """One token; None if there is no such one."""
        names = [field.name for field in dataclasses.fields(TokenRecord)]
        query = f"SELECT {', '.join(names)} FROM tokens WHERE token_id = ?"  # noqa: S608
        with self._errors():
            row = self._database.execute(query, (token_id,)).fetchone()
        return None if row is None else TokenRecord(**dict(zip(names, row, strict=True)))

    def add_token(self, token: TokenRecord) -> None:
        """Keeps a new token."""
        values = (
            *(token.token_id, token.population, token.public_key, token.device_id),
            *(token.made_at, token.expires_at, token.uses_left),
        )
        with self._transaction():
            self._database.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def enrol(self, record: DeviceRecord, *, population: str, now: float) -> EnrolmentOutcome:
        """Enrols a device whose proof has been checked, and uses its token up: both or neither.

        Args:
            record: The device as it is to be.
            population: What it joins.
            now: Seconds since 1970.
        """
        with self._transaction():
            token = self.token(record.token_id)
            known = self.device(population, record.device_id)
            outcome = _judge(record, known, token, population=population, now=now)
            if outcome is EnrolmentOutcome.ACCEPTED and not _is_repeated(record, known):
                self._put(record, population)
                self._database.execute(
                    "UPDATE tokens SET uses_left = uses_left - 1 WHERE token_id = ?", (record.token_id,)
                )
        return outcome

    def set_state(self, population: str, device_id: str, state: DeviceState, *, now: float) -> bool:
        """Revokes or reinstates; returns whether there is such a device."""
        revoked_at = now if state is DeviceState.REVOKED else None
        with self._transaction():
            cursor = self._database.execute(
                "UPDATE devices SET state = ?, revoked_at = ? WHERE population = ? AND device_id = ?",
                (state.value, revoked_at, population, device_id),
            )
        return cursor.rowcount == 1

    def refusals(self, population: str) -> dict[str, dict[str, RefusalRecord]]:
        """What was refused, by device and reason; of ids that are not enrolled together, under an empty id.

        Anybody who may publish on a device's topics can make its numbers rise; a conflict takes its key.
        """
        query = "SELECT device_id, reason, num, last_at FROM refusals WHERE population = ? ORDER BY device_id, reason"
        found: dict[str, dict[str, RefusalRecord]] = {}
        with self._errors():
            for device_id, reason, num, last_at in self._database.execute(query, (population,)):
                found.setdefault(device_id, {})[reason] = RefusalRecord(num=num, last_at=last_at)
        return found

    def keep(
        self,
        population: str,
        marks: Iterable[tuple[str, bytes, HighWater]],
        refusals: Mapping[tuple[str, str], int],
        *,
        now: float,
    ) -> None:
        """Keeps what was accepted and refused, all in one transaction.

        Args:
            population: Whose.
            marks: (device id, its key, mark). A mark never falls, and none is put on a key that is no longer the
                device's.
            refusals: How many more there were, by (device id or empty, reason).
            now: Seconds since 1970.
        """
        rows = [
            (mark.epoch, mark.counter, population, device_id, key, mark.epoch, mark.counter)
            for device_id, key, mark in marks
        ]
        counts = [(population, device_id, reason, num, now) for (device_id, reason), num in refusals.items()]
        with self._transaction():
            self._database.executemany(
                "UPDATE devices SET epoch = ?, counter = ? "
                "WHERE population = ? AND device_id = ? AND public_key = ? AND (epoch, counter) <= (?, ?)",
                rows,
            )
            self._database.executemany(
                "INSERT INTO refusals VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
                "SET num = num + excluded.num, last_at = excluded.last_at",
                counts,
            )

    def _put(self, record: DeviceRecord, population: str) -> None:
        mark = record.high_water
        columns = f"population, {_DEVICE_COLUMNS}"
        self._database.execute(
            f"INSERT OR REPLACE INTO devices ({columns}) VALUES (?, ?, ?, ?, ?, ?, NULL, ?, ?)",  # noqa: S608
            (
                *(population, record.device_id, record.public_key, record.state.value),
                *(record.enrolled_at, record.token_id, mark.epoch, mark.counter),
            ),
        )
        # They were the earlier key's.
        self._database.execute(
            "DELETE FROM refusals WHERE population = ? AND device_id = ?", (population, record.device_id)
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RosterUnusable(f"the roster {self._path} cannot be used: {error}") from error


def _judge(
    record: DeviceRecord, known: DeviceRecord | None, token: TokenRecord | None, *, population: str, now: float
) -> EnrolmentOutcome:
    """Whether a token lets a device in. The order matters: a repeated enrolment is answered as the first one was."""
    if token is None or token.population != population:
        return EnrolmentOutcome.UNKNOWN_TOKEN
    if record.device_id in _RESERVED or token.device_id not in {None, record.device_id}:
        return EnrolmentOutcome.OTHER_DEVICE
    if _is_repeated(record, known):
        return EnrolmentOutcome.ACCEPTED
    if known is not None:
        refusal = _judge_return(record, known, token)
        if refusal is not None:
            return refusal
    if now >= token.expires_at:
        return EnrolmentOutcome.TOKEN_EXPIRED
    return EnrolmentOutcome.ACCEPTED if token.uses_left > 0 else EnrolmentOutcome.TOKEN_USED


def _judge_return(record: DeviceRecord, known: DeviceRecord, token: TokenRecord) -> EnrolmentOutcome | None:
    """Why an id that has been enrolled may not come back; None if it may.

    Only by a token made for it after its revocation: one that is still about must not undo that. And only with
    another key: the revoked one comes back by ``reinstate`` alone.
    """
    if known.state is DeviceState.ACTIVE or known.revoked_at is None:
        return EnrolmentOutcome.ALREADY_ENROLLED
    is_invited = token.device_id == record.device_id and token.made_at > known.revoked_at
    return None if is_invited and record.public_key != known.public_key else EnrolmentOutcome.REVOKED


def _is_repeated(record: DeviceRecord, known: DeviceRecord | None) -> bool:
    """Whether this very enrolment has been made: its answer was lost, or the broker delivered it twice."""
    return (
        known is not None
        and known.state is DeviceState.ACTIVE
        and (known.public_key, known.token_id) == (record.public_key, record.token_id)
    )


def _device(row: tuple[str, bytes, str, float, str, float | None, int, int]) -> DeviceRecord:
    device_id, public_key, state, enrolled_at, token_id, revoked_at, epoch, counter = row
    return DeviceRecord(
        device_id=device_id,
        public_key=public_key,
        state=DeviceState(state),
        enrolled_at=enrolled_at,
        token_id=token_id,
        revoked_at=revoked_at,
        high_water=HighWater(epoch=epoch, counter=counter),
    )
