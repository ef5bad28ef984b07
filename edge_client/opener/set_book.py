"""The sets of contributors that an opener has answered for, one per round and for ever, on disk before the answer.

SQLite, write-ahead log, ``synchronous=FULL``; triggers refuse change and deletion. A row takes about a hundred bytes. A
book that cannot be read or written, or is gone though a mark beside it says there was one, answers nothing. An old copy put back in its place is not noticed: whoever can
do that on an opener can make it answer twice in one round.
"""

import contextlib
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edge_client.errors import StorageError

__all__ = ["SqliteSetBook"]

_BUSY_TIMEOUT_S: Final = 5.0
_MARK_SUFFIX: Final = ".kept"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS sets(context BLOB PRIMARY KEY, set_digest BLOB NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS sets_stay BEFORE DELETE ON sets
    BEGIN SELECT RAISE(ABORT, 'a set is for ever'); END;
CREATE TRIGGER IF NOT EXISTS sets_are_fixed BEFORE UPDATE ON sets
    BEGIN SELECT RAISE(ABORT, 'a set is for ever'); END;
"""


class SqliteSetBook:
    """A `secure_sum` set book on disk. One process at a time.

    Args:
        path: The database; made if it is not there. None keeps it in memory: for simulated members alone.

    Raises:
        StorageError: It cannot be opened, or is gone.
    """

    def __init__(self, path: Path | None) -> None:
        self._name = "in memory" if path is None else str(path)
        mark = None if path is None else path.with_name(path.name + _MARK_SUFFIX)
        if path is not None and mark is not None and mark.exists() and not path.exists():
            raise StorageError(
                f"the book of opened rounds {path} is gone, but {mark.name} says there was one: restore it"
            )
        try:
            # One thread at a time, which need not be the one that opened it: a daemon is made in one and served in another.
            self._database = sqlite3.connect(
                path or ":memory:", isolation_level=None, timeout=_BUSY_TIMEOUT_S, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
            if mark is not None:
                mark.touch(mode=0o600)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"the book of opened rounds {self._name} cannot be used: {error}") from error

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
    def num_sets(self) -> int:
        """How many rounds this opener has committed itself to."""
        return int(self._database.execute("SELECT COUNT(*) FROM sets").fetchone()[0])

    def claim(self, context: bytes, set_digest: bytes) -> bool:
        """Notes the set of a round, unless one is noted; on disk when this returns.

        Returns:
            Whether this set is the one that is noted now.

        Raises:
            StorageError: The book cannot be read or written; nothing may be answered.
        """
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.execute(
                    "INSERT INTO sets(context, set_digest) VALUES (?, ?) ON CONFLICT DO NOTHING", (context, set_digest)
                )
                row = self._database.execute("SELECT set_digest FROM sets WHERE context = ?", (context,)).fetchone()
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StorageError(f"the book of opened rounds {self._name} cannot be written: {error}") from error
        return row is not None and row[0] == set_digest
