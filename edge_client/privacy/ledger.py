"""The device's privacy ledger: what was released, what it cost, and the owner's budget, which nobody can raise.

SQLite, write-ahead log, ``synchronous=FULL``. Every row is chained to the one before by a hash; triggers refuse
deletion and change. A charge and the bytes it pays for are one transaction, committed **before** the bytes may be
published; whoever asks for the same release again gets the same bytes and pays nothing: fresh noise on the same update
could be averaged away.

The budget is a *filter*: fixed beforehand, and a release that would pass it is refused (Feldman, Zrnic 2021; for
Gaussian histories Koskela, Tobaben, Honkela 2023). "Spent so far" is what the filter has let through, and is no
guarantee of its own. A charge is never given back, whatever becomes of the round.

Everything doubtful refuses: a broken chain, a row that is not readable, a ledger that ends before the mark (a second
small file that remembers how far it had come: an old copy put back), none where a mark says there was one, or a mark
that is gone. Putting back ledger *and* mark together is not noticed here.

The bytes are kept for the latest release alone (`drop_payloads_but`): a ledger must not grow by a model a round.
"""

import contextlib
import dataclasses
import hashlib
import json
import sqlite3
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edge_client.atomic_files import write_atomically
from edge_client.errors import BudgetExceeded, LedgerDamaged, StorageError
from edge_client.privacy.accountant import cost_of, epsilon_of, no_cost
from edge_client.privacy.rules import PrivacyBudget
from wire_protocol.privacy_spec import GaussianEvent, GeometricEvent, LaplaceEvent, PrivacyEvent, SkellamEvent

__all__ = ["LedgerEntry", "PrivacyLedger"]

_GENESIS: Final = bytes(32)
_MARK_SUFFIX: Final = ".mark"
_BUSY_TIMEOUT_S: Final = 5.0
_ROUNDING: Final = 1e-9
"""Epsilons this close are equal: a budget of exactly T rounds must admit the T-th."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries(
    seq INTEGER PRIMARY KEY, release_id TEXT UNIQUE NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL,
    payload_sha256 BLOB NOT NULL, payload BLOB, previous BLOB NOT NULL, hash BLOB NOT NULL);
CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS entries_are_fixed
    BEFORE UPDATE OF seq, release_id, kind, detail, payload_sha256, previous, hash ON entries
    BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS payloads_are_only_dropped BEFORE UPDATE OF payload ON entries
    WHEN NEW.payload IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'a released payload can only be dropped'); END;
"""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LedgerEntry:
    """One release, as the owner sees it."""

    release_id: str
    event: PrivacyEvent
    epsilon_after: float
    """What the filter had let through when this was charged."""


class PrivacyLedger:
    """The ledger of one device. One process at a time: the state directory's lock sees to that.

    Args:
        path: The database; a mark is kept beside it. None keeps it in memory: for simulated devices alone.
        budget: The owner's. At the first opening it is written down; later ones can only lower it. None opens the
            ledger for reading alone, also beside a running daemon: it must exist, and releases nothing.

    Raises:
        LedgerDamaged: It is not what this device wrote; nothing may be released until the owner has decided.
        StorageError: It cannot be opened or written.
    """

    def __init__(self, path: Path | None, *, budget: PrivacyBudget | None) -> None:
        self._mark = None if path is None else path.with_name(path.name + _MARK_SUFFIX)
        if path is not None and self._mark is not None and self._mark.exists() and not path.exists():
            raise LedgerDamaged(f"the privacy ledger {path} is gone, but {self._mark.name} says there was one")
        self._entries: list[LedgerEntry] = []
        self._spent = no_cost()
        self._budget = PrivacyBudget(epsilon=0.0)
        self._last = (0, _GENESIS)
        self._marked = 0
        try:
            if budget is None:
                self._database = _connect_for_reading(path)
                self._read()
                return
            self._database = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=_BUSY_TIMEOUT_S)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
            self._read()
            if self._marked < self._last[0]:
                # A crash came between a charge and its mark: the next one must not find the mark two behind, or none.
                self._advance(self._last)
            self._lower(budget)
        except sqlite3.DatabaseError as error:
            raise _translated(error, f"the privacy ledger {path}") from error

    @staticmethod
    def had_one(path: Path) -> bool:
        """Whether a mark says that there was a ledger at ``path``."""
        return path.with_name(path.name + _MARK_SUFFIX).exists()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    @property
    def budget(self) -> PrivacyBudget:
        """What is allowed: the lowest that was ever asked for."""
        return self._budget

    @property
    def spent_epsilon(self) -> float:
        """What the filter has let through, at the budget's delta."""
        return epsilon_of(self._spent, self._budget.target_delta)

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """Every release, oldest first."""
        return tuple(self._entries)

    def knows(self, release_id: str) -> bool:
        """Whether this release has been charged already."""
        return any(entry.release_id == release_id for entry in self._entries)

    def epsilon_with(self, event: PrivacyEvent) -> float:
        """What would be spent after one more such release."""
        return epsilon_of(self._spent + cost_of(event), self._budget.target_delta)

    def release(self, release_id: str, event: PrivacyEvent, make_payload: Callable[[], bytes]) -> bytes:
        """Charges a release and makes its bytes, or returns the bytes of one that was charged before.

        Args:
            release_id: Names it for ever: plan, round and assignment (`release_desk.release_id`).
            event: What it costs.
            make_payload: Draws the noise and encodes; called at most once, inside the transaction.

        Returns:
            The only bytes that may ever be published under this id. They are on disk.

        Raises:
            BudgetExceeded: It would pass the budget. Nothing was charged or made.
            LedgerDamaged: The bytes of an earlier release are not the ones that were charged.
            StorageError: The disk did not take it. Nothing may be published.
        """
        try:
            with self._transaction():
                row = self._database.execute(
                    "SELECT payload, payload_sha256 FROM entries WHERE release_id = ?", (release_id,)
                ).fetchone()
                if row is not None:
                    return _checked_payload(release_id, *row)
                self.refuse_beyond_budget(release_id, event)
                payload = make_payload()
                head = self._append(release_id, "charge", _encode_event(event), payload)
        except sqlite3.Error as error:
            raise StorageError(f"the charge for {release_id} could not be written: {error}") from error
        self._note(release_id, event)
        self._advance(head)
        return payload

    def refuse_beyond_budget(self, release_id: str, event: PrivacyEvent) -> None:
        """Refuses a new release that the budget does not allow.

        Raises:
            BudgetExceeded: It would pass the budget.
        """
        after = self.epsilon_with(event)
        if after > self._budget.epsilon + _ROUNDING:
            raise BudgetExceeded(
                f"{release_id} would bring this device to epsilon {after:.4f}; its owner allows "
                f"{self._budget.epsilon:g} (spent so far: {self.spent_epsilon:.4f})"
            )

    def drop_payloads_but(self, release_id: str) -> None:
        """Frees the space of every other release; the charges stay for ever. Best effort: a later call makes up for it."""
        with contextlib.suppress(sqlite3.Error):
            self._database.execute(
                "UPDATE entries SET payload = NULL WHERE payload IS NOT NULL AND release_id <> ?", (release_id,)
            )

    # -- inside

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _append(self, release_id: str, kind: str, detail: str, payload: bytes) -> tuple[int, bytes]:
        seq, previous = self._last[0] + 1, self._last[1]
        digest = hashlib.sha256(payload).digest()
        link = _link(previous, (seq, release_id, kind, detail, digest.hex()))
        self._database.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (seq, release_id, kind, detail, digest, payload, previous, link),
        )
        return seq, link

    def _advance(self, head: tuple[int, bytes]) -> None:
        """Remembers how far the ledger has come. A mark that is one behind after a crash is in order."""
        self._last = head
        if self._mark is None:
            return
        try:
            write_atomically(self._mark, json.dumps({"seq": head[0], "hash": head[1].hex()}).encode())
        except OSError as error:
            raise StorageError(f"the mark of the privacy ledger cannot be written: {error}") from error

    def _read(self) -> None:
        """Checks the whole chain against itself and the mark, and adds up."""
        mark_seq, mark_hash = self._read_mark()
        rows = self._database.execute(
            "SELECT seq, release_id, kind, detail, payload_sha256, previous, hash FROM entries ORDER BY seq"
        )
        expected, previous = 1, _GENESIS
        for seq, release_id, kind, detail, digest, claimed_previous, link in rows:
            is_chained = seq == expected and claimed_previous == previous
            if not is_chained or link != _link(previous, (seq, release_id, kind, detail, digest.hex())):
                raise LedgerDamaged(f"entry {seq} of the privacy ledger does not follow from the one before")
            if seq == mark_seq and link != mark_hash:
                raise LedgerDamaged(f"entry {seq} of the privacy ledger is not the one that was marked")
            self._take(release_id, kind, detail)
            expected, previous = seq + 1, link
        if expected <= mark_seq:
            raise LedgerDamaged(f"the privacy ledger ends at entry {expected - 1}; it had come to {mark_seq} before")
        if self._mark is not None and mark_seq == 0 and expected > 2:  # noqa: PLR2004 - a crash can lose the first alone
            raise LedgerDamaged(f"the privacy ledger has {expected - 1} entries, but {self._mark} is gone")
        self._last = (expected - 1, previous)
        self._marked = mark_seq

    def _read_mark(self) -> tuple[int, bytes]:
        if self._mark is None:
            return 0, _GENESIS
        try:
            mark = json.loads(self._mark.read_bytes())
            return int(mark["seq"]), bytes.fromhex(mark["hash"])
        except FileNotFoundError:
            return 0, _GENESIS
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LedgerDamaged(f"the mark of the privacy ledger {self._mark} cannot be read: {error}") from error

    def _take(self, release_id: str, kind: str, detail: str) -> None:
        try:
            if kind == "budget":
                values = json.loads(detail)
                self._budget = PrivacyBudget(epsilon=values["epsilon"], target_delta=values["target_delta"])
            else:
                self._note(release_id, _decode_event(detail))
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerDamaged(f"entry {release_id!r} of the privacy ledger cannot be read: {error}") from error

    def _note(self, release_id: str, event: PrivacyEvent) -> None:
        self._spent += cost_of(event)
        self._entries.append(LedgerEntry(release_id=release_id, event=event, epsilon_after=self.spent_epsilon))

    def _lower(self, budget: PrivacyBudget) -> None:
        """Writes down a first budget, or a lower one."""
        if self._last[0] > 0:
            budget = PrivacyBudget(
                epsilon=min(budget.epsilon, self._budget.epsilon),
                target_delta=min(budget.target_delta, self._budget.target_delta),
            )
            if budget == self._budget:
                return
        with self._transaction():
            head = self._append(f"budget-{self._last[0] + 1}", "budget", json.dumps(dataclasses.asdict(budget)), b"")
        self._budget = budget
        self._advance(head)


def _connect_for_reading(path: Path | None) -> sqlite3.Connection:
    if path is None or not path.exists():
        raise StorageError(f"there is no privacy ledger at {path}: this device has released nothing private")
    uri = f"file:{urllib.parse.quote(str(path.absolute()))}?mode=ro"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_TIMEOUT_S)


def _link(previous: bytes, row: tuple[int, str, str, str, str]) -> bytes:
    """The hash of a row: sequence number, release, kind, detail and the payload's SHA-256, after the row before."""
    return hashlib.sha256(previous + json.dumps(row).encode()).digest()


def _checked_payload(release_id: str, payload: bytes | None, digest: bytes) -> bytes:
    if payload is None:
        raise LedgerDamaged(f"{release_id} was released and answered before; its bytes are no longer kept")
    if hashlib.sha256(payload).digest() != digest:
        raise LedgerDamaged(f"the bytes of {release_id} are not the ones that were charged")
    return payload


_EVENTS: Final = {kind.__name__: kind for kind in (GaussianEvent, GeometricEvent, LaplaceEvent, SkellamEvent)}


def _encode_event(event: PrivacyEvent) -> str:
    return json.dumps({"event": type(event).__name__, **dataclasses.asdict(event)})


def _decode_event(detail: str) -> PrivacyEvent:
    values = json.loads(detail)
    event: PrivacyEvent = _EVENTS[values.pop("event")](**values)
    return event


def _translated(error: sqlite3.DatabaseError, what: str) -> StorageError:
    """A database that is none is damage; a disk that fails is not."""
    if isinstance(error, sqlite3.OperationalError):
        return StorageError(f"{what} cannot be opened or written: {error}")
    return LedgerDamaged(f"{what} cannot be read: {error}")
