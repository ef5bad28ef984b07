"""The rounds in which a key authority was handed something else than the sum: counted for ever, for one key.

SQLite, ``synchronous=FULL``: a wrong total is on disk before its refusal is sent.
"""

import sqlite3
from pathlib import Path
from typing import Final

from edge_client.errors import StorageError
from secure_sum.helper_rules import SetBook

__all__ = ["KeyBook"]

_BUSY_S: Final = 5.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS wrong_totals(key_id BLOB, context BLOB, PRIMARY KEY (key_id, context)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS wrong_totals_stay BEFORE DELETE ON wrong_totals
    BEGIN SELECT RAISE(ABORT, 'a wrong total is for ever'); END;
"""


class KeyBook:
    """A `secure_sum.key_rules.DecryptionBook`: the totals of rounds, and those that were wrong.

    Args:
        path: The database of wrong totals; made if it is not there. None keeps it in memory: for simulations alone.
        sets: Where each round's total is noted.
        key_id: Names the encryption key: new keys begin at nought.

    Raises:
        StorageError: It cannot be opened.
    """

    def __init__(self, path: Path | None, *, sets: SetBook, key_id: bytes) -> None:
        self._sets = sets
        self._key_id = key_id
        try:
            self._database = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=_BUSY_S)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise StorageError(f"the record of wrong totals {path} cannot be used: {error}") from error

    def claim(self, context: bytes, set_digest: bytes) -> bool:
        """Notes the total of a round, durably, unless one is noted; whether this one is noted now."""
        return self._sets.claim(context, set_digest)

    def num_wrong_totals(self) -> int:
        """Rounds whose total was wrong under this key.

        Raises:
            StorageError: It cannot be read: nothing may be answered.
        """
        try:
            count = "SELECT COUNT(*) FROM wrong_totals WHERE key_id = ?"
            return int(self._database.execute(count, (self._key_id,)).fetchone()[0])
        except sqlite3.Error as error:
            raise StorageError(f"the record of wrong totals cannot be read: {error}") from error

    def note_wrong_total(self, context: bytes) -> None:
        """Notes one, durably.

        Raises:
            StorageError: It cannot be written: nothing may be answered.
        """
        try:
            self._database.execute("INSERT OR IGNORE INTO wrong_totals VALUES (?, ?)", (self._key_id, context))
        except sqlite3.Error as error:
            raise StorageError(f"a wrong total could not be noted: {error}") from error

    def close(self) -> None:
        """Closes the database."""
        self._database.close()
