"""Round ids: from 1, never reused, also across restarts and abandoned rounds."""

from pathlib import Path

from broker_link.failpoints import hit
from coordinator.durable_files import write_durably
from coordinator.errors import InvalidBundle

__all__ = ["RoundIds"]


class RoundIds:
    """Hands out round ids, and makes each one durable before it is used.

    Args:
        path: File that remembers the last id handed out; None forgets at exit (simulations).
        start: The last id in use if the file does not exist yet.

    Raises:
        InvalidBundle: The file does not hold a number.
    """

    def __init__(self, path: Path | None = None, *, start: int = 0) -> None:
        self._path = path
        self._last = start
        if path is not None and path.exists():
            try:
                self._last = max(start, int(path.read_text()))
            except ValueError as error:
                raise InvalidBundle(
                    f"{path} does not hold a round number; write the last round's number into it"
                ) from error

    @property
    def last_id(self) -> int:
        """The last id handed out; 0 if none was."""
        return self._last

    def next_id(self) -> int:
        """The next id.

        Raises:
            OSError: It cannot be made durable; it must not be used then.
        """
        self._last += 1
        if self._path is not None:
            hit("coordinator.round_id.before_write")
            write_durably(self._path, b"%d\n" % self._last)
            hit("coordinator.round_id.after_write")
        return self._last
