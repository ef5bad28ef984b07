"""The journal of rounds: what was assigned and what was counted, durable before any device is told so.

SQLite in WAL mode with ``synchronous=FULL``: when `sync` returns, everything noted before it survives a power cut. The
journal is the only memory of an unfinished round. After a restart, and when the aggregator comes later than the
updates, the round's contributions are folded from it, in the order of their arrival (`round_sums`): so the accumulator
and the set of counted updates cannot disagree.
"""

import dataclasses
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from broker_link.failpoints import hit
from coordinator.errors import JournalDamaged, JournalUnwritable
from coordinator.round_table import Member, MemberState, RoundState
from wire_protocol.messages import Metrics, RejectionReason, RoundKind

__all__ = ["Contribution", "ForgetfulJournal", "Journal", "JournaledRound", "RoundJournal"]

_ROUNDS_KEPT: Final = 16
"""More than ``wire_protocol.band_matrix.MAX_BANDS``: a restart must find who has to rest."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS rounds (
    round_id INTEGER PRIMARY KEY, kind TEXT NOT NULL, base_commits INTEGER NOT NULL, state TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS members (
    round_id INTEGER NOT NULL, device_id TEXT NOT NULL, nonce BLOB NOT NULL, state TEXT NOT NULL, rejection TEXT,
    PRIMARY KEY (round_id, device_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contributions (
    position INTEGER PRIMARY KEY, round_id INTEGER NOT NULL, device_id TEXT NOT NULL, model_delta BLOB,
    aggregation_weight REAL NOT NULL, loss_sum REAL NOT NULL, num_correct REAL NOT NULL, weight_sum REAL NOT NULL,
    UNIQUE (round_id, device_id)
) STRICT;
"""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Contribution:
    """One counted report."""

    device_id: str
    model_delta: bytes | None
    """Encoded, as it came; None in an evaluation round."""
    aggregation_weight: float
    metrics: Metrics


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class JournaledRound:
    """What the journal knows of a round."""

    round_id: int
    kind: RoundKind
    base_commits: int
    """Commits of the state that the cohort started from."""
    state: RoundState
    members: Mapping[str, Member]


class Journal(Protocol):
    """What a round loop notes, and what it finds again after a restart."""

    def open_round(self, round_id: int, kind: RoundKind, *, base_commits: int) -> None:
        """Notes a new round."""

    def assign(self, round_id: int, members: Mapping[str, Member]) -> None:
        """Notes the cohort of a round."""

    def add(self, round_id: int, contribution: Contribution) -> None:
        """Notes a contribution and that its device has been counted: both or neither."""

    def stop_reporting(self, round_id: int) -> None:
        """Notes that a round takes no more reports."""

    def close_round(self, round_id: int, state: RoundState) -> None:
        """Notes how a round ended."""

    def sync(self) -> None:
        """Makes everything noted so far durable."""

    def rounds(self) -> list[JournaledRound]:
        """The rounds remembered, oldest first."""

    def contributions(self, round_id: int) -> Iterator[Contribution]:
        """A round's contributions in the order of their arrival."""


class ForgetfulJournal:
    """Notes nothing: for simulations, whose rounds need not survive them."""

    def open_round(self, round_id: int, kind: RoundKind, *, base_commits: int) -> None:
        """Notes nothing."""

    def assign(self, round_id: int, members: Mapping[str, Member]) -> None:
        """Notes nothing."""

    def add(self, round_id: int, contribution: Contribution) -> None:
        """Notes nothing."""

    def stop_reporting(self, round_id: int) -> None:
        """Notes nothing."""

    def close_round(self, round_id: int, state: RoundState) -> None:
        """Notes nothing."""

    def sync(self) -> None:
        """Has nothing to do."""

    def rounds(self) -> list[JournaledRound]:
        """Remembers nothing."""
        return []

    def contributions(self, round_id: int) -> Iterator[Contribution]:
        """Remembers nothing."""
        del round_id
        return iter(())


class RoundJournal:
    """A file that remembers rounds. Used from one thread; use as a context manager.

    Args:
        path: The database file; made if it does not exist.

    Raises:
        JournalDamaged: The file is no journal, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=1.0)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            raise JournalDamaged(
                f"{path} cannot be used ({error}); is another coordinator running on this state directory?"
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # SQLite quotes damaged names in its complaints
            raise JournalDamaged(
                f"{path} is not a readable journal ({error}); move it away: at most the unfinished round is lost"
            ) from error
        self._is_writing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Syncs and closes the file."""
        self.sync()
        self._db.close()

    def open_round(self, round_id: int, kind: RoundKind, *, base_commits: int) -> None:
        """Notes a new round."""
        hit("coordinator.journal.before_open")
        self._write(
            "INSERT INTO rounds VALUES (?, ?, ?, ?)", (round_id, kind.value, base_commits, RoundState.SELECTING.value)
        )
        hit("coordinator.journal.after_open")

    def assign(self, round_id: int, members: Mapping[str, Member]) -> None:
        """Notes the cohort of a round."""
        hit("coordinator.journal.before_assign")
        self._write("UPDATE rounds SET state = ? WHERE round_id = ?", (RoundState.REPORTING.value, round_id))
        for device_id, member in members.items():
            self._write(
                "INSERT INTO members VALUES (?, ?, ?, ?, NULL)", (round_id, device_id, member.nonce, member.state.value)
            )
        hit("coordinator.journal.after_assign")

    def add(self, round_id: int, contribution: Contribution) -> None:
        """Notes a contribution and that its device has been counted: both or neither.

        Raises:
            JournalDamaged: The device has been counted in this round before (a fault of ours).
        """
        hit("coordinator.journal.before_add")
        metrics = contribution.metrics
        self._write(
            "INSERT INTO contributions (round_id, device_id, model_delta, aggregation_weight, loss_sum, num_correct,"
            " weight_sum) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *(round_id, contribution.device_id, contribution.model_delta, contribution.aggregation_weight),
                *(metrics.loss_sum, metrics.num_correct, metrics.weight_sum),
            ),
        )
        self.mark(round_id, contribution.device_id, MemberState.FOLDED)
        hit("coordinator.journal.after_add")

    def mark(self, round_id: int, device_id: str, state: MemberState, rejection: RejectionReason | None = None) -> None:
        """Notes what a member did."""
        self._write(
            "UPDATE members SET state = ?, rejection = ? WHERE round_id = ? AND device_id = ?",
            (state.value, None if rejection is None else rejection.value, round_id, device_id),
        )

    def stop_reporting(self, round_id: int) -> None:
        """Notes that a round takes no more reports: whatever restarts, it will only be aggregated or abandoned."""
        self._write("UPDATE rounds SET state = ? WHERE round_id = ?", (RoundState.AGGREGATING.value, round_id))

    def close_round(self, round_id: int, state: RoundState) -> None:
        """Notes how a round ended, drops its contributions, and forgets rounds long over."""
        hit("coordinator.journal.before_close")
        self._write("UPDATE rounds SET state = ? WHERE round_id = ?", (state.value, round_id))
        self._write("DELETE FROM contributions WHERE round_id = ?", (round_id,))
        forgotten = "(SELECT round_id FROM rounds ORDER BY round_id DESC LIMIT -1 OFFSET ?)"
        for table in ("members", "rounds"):
            # Constant table names; SQLite takes no parameter there.
            self._write(f"DELETE FROM {table} WHERE round_id IN {forgotten}", (_ROUNDS_KEPT,))  # noqa: S608
        hit("coordinator.journal.after_close")

    def sync(self) -> None:
        """Makes everything noted so far durable. One disk flush, however much was noted."""
        if self._is_writing:
            hit("coordinator.journal.before_sync")
            self._execute("COMMIT", ())
            self._is_writing = False
            hit("coordinator.journal.after_sync")

    def rounds(self) -> list[JournaledRound]:
        """The rounds remembered, oldest first; an unfinished one can only be the last."""
        rows = self._execute("SELECT * FROM rounds ORDER BY round_id", ())
        try:
            return [
                JournaledRound(
                    round_id=round_id,
                    kind=RoundKind(kind),
                    base_commits=base_commits,
                    state=RoundState(state),
                    members=self._members(round_id),
                )
                for round_id, kind, base_commits, state in rows
            ]
        except (ValueError, sqlite3.Error) as error:
            raise JournalDamaged(f"{self._path} holds a round that cannot be read: {error}; move it away") from error

    def contributions(self, round_id: int) -> Iterator[Contribution]:
        """A round's contributions in the order of their arrival, one at a time."""
        rows = self._execute(
            "SELECT device_id, model_delta, aggregation_weight, loss_sum, num_correct, weight_sum FROM contributions"
            " WHERE round_id = ? ORDER BY position",
            (round_id,),
        )
        try:
            for device_id, model_delta, aggregation_weight, loss_sum, num_correct, weight_sum in rows:
                yield Contribution(
                    device_id=device_id,
                    model_delta=model_delta,
                    aggregation_weight=aggregation_weight,
                    metrics=Metrics(loss_sum=loss_sum, num_correct=num_correct, weight_sum=weight_sum),
                )
        except (ValueError, sqlite3.Error) as error:
            raise JournalDamaged(f"{self._path} holds a report that cannot be read: {error}; move it away") from error

    def _members(self, round_id: int) -> dict[str, Member]:
        rows = self._execute("SELECT device_id, nonce, state, rejection FROM members WHERE round_id = ?", (round_id,))
        return {
            device_id: Member(
                nonce=nonce,
                state=MemberState(state),
                rejection=None if rejection is None else RejectionReason(rejection),
            )
            for device_id, nonce, state, rejection in rows
        }

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        if not self._is_writing:
            self._execute("BEGIN IMMEDIATE", ())
            self._is_writing = True
        self._execute(statement, values)

    def _execute(self, statement: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise JournalUnwritable(
                f"{self._path} cannot be written ({error}); make room on the disk and start the coordinator again: "
                "it goes on where it stopped"
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise JournalDamaged(f"{self._path}: {error}") from error
