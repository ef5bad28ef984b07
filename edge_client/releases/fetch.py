"""Fetching the blobs of a release from retained topics: which to follow now, how fast, and what came. No I/O but the pieces'.

A piece is a retained message, published once however many devices read it. A device follows the topics of a few pieces
at a time; when one has come it follows the next, as fast as its owner allows. What does not come is left and followed
again after a while: the broker then sends what it retains once more.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from wire_protocol.blobs import BlobRef
from wire_protocol.errors import BlobError, MalformedMessage
from wire_protocol.topics import parse_release_piece, release_piece, release_piece_list

__all__ = ["Pieces", "ReleaseFetch"]

_RETRY_BASE_S: Final = 120.0
"""Long: a connection loses nothing, and whoever asks a busy broker again makes it send twice. With 10 s, ten thousand
devices at once asked so often that they never got through (`scripts/bench push`)."""
_RETRY_CAP_S: Final = 900.0
_LEFT_ALONE_S: Final = 0.2
"""A topic that brought nothing is left for this long before it is followed again."""


class Pieces(Protocol):
    """Where the pieces of one blob go; `piece_file.PieceFile` on a device."""

    ref: BlobRef

    @property
    def needs_list(self) -> bool:
        """Whether the piece digests are not known yet."""

    @property
    def missing(self) -> list[int]:
        """Indices of the pieces that are not here, in order."""

    @property
    def is_complete(self) -> bool:
        """Whether every piece is here."""

    def set_list(self, digests: bytes) -> None:
        """Takes the piece digests, or raises BlobError."""

    def add(self, index: int, data: bytes) -> bool:
        """Takes a piece, or raises BlobError; says whether it was missing."""


class ReleaseFetch:
    """Fetches some blobs, one after the other.

    Args:
        population: Whose topics.
        files: What is wanted; those that are complete already cost nothing.
        window: Pieces followed at a time. What is under way when a connection breaks may have to come again.
        max_bytes_per_s: The owner's limit; infinity for none.
        uniform: ``uniform(low, high)``: spreads the retries of many devices.
    """

    __slots__ = (
        "_files",
        "_followed",
        "_max_bytes_per_s",
        "_next_at",
        "_pause_until",
        "_population",
        "_retries",
        "_uniform",
        "_window",
        "num_bad",
        "num_bytes",
        "num_repeated",
    )  # fmt: skip

    def __init__(
        self,
        *,
        population: str,
        files: Sequence[Pieces],
        uniform: Callable[[float, float], float],
        window: int = 4,
        max_bytes_per_s: float = math.inf,
    ) -> None:
        if window < 1 or not max_bytes_per_s > 0:
            raise ValueError("window and max_bytes_per_s must be positive")
        self._population = population
        self._files = tuple(files)
        self._uniform = uniform
        self._window = window
        self._max_bytes_per_s = max_bytes_per_s
        self._followed: dict[str, float] = {}
        """Topic -> when it is given up for now."""
        self._pause_until = -math.inf
        self._next_at = -math.inf
        self._retries: collections.Counter[str] = collections.Counter()
        self.num_bad = 0
        self.num_bytes = 0
        """Bytes of pieces that came, useful or not."""
        self.num_repeated = 0
        """Pieces that came though they were here."""

    @property
    def is_complete(self) -> bool:
        """Whether everything is here."""
        return all(file.is_complete for file in self._files)

    @property
    def topics(self) -> frozenset[str]:
        """The topics to follow now."""
        return frozenset(self._followed)

    def next_wakeup(self) -> float:
        """When ``tick`` is due, on the clock of ``now``."""
        if self.is_complete:
            return math.inf
        waits = [*self._followed.values()]
        if len(self._followed) < self._window:
            waits.append(max(self._pause_until, self._next_at))
        return min(waits, default=math.inf)

    def tick(self, now: float) -> None:
        """Lets time pass: gives up what does not come, and follows what is next. Read ``topics`` afterwards."""
        late = [topic for topic, until in self._followed.items() if now >= until]
        for topic in late:
            del self._followed[topic]
            self._retries[topic] += 1
        if late:
            # Left first, so that following again is a new subscription.
            self._pause_until = now + _LEFT_ALONE_S
            return
        if now < max(self._pause_until, self._next_at):
            return
        for topic in self._wanted():
            if len(self._followed) >= self._window:
                return
            if topic not in self._followed:
                self._followed[topic] = now + self._patience_s(topic)

    def reconnect(self, now: float) -> None:
        """After a new connection the link follows again by itself: everyone gets its time again."""
        for topic in self._followed:
            self._followed[topic] = now + self._patience_s(topic)

    def take(self, topic: str, payload: bytes, now: float) -> None:
        """Takes what came on a followed topic; what is not asked for, or wrong, is counted and dropped.

        Raises:
            StorageError: It cannot be written.
        """
        try:
            sha256, index = parse_release_piece(topic)
        except MalformedMessage:
            self.num_bad += 1
            return
        self._followed.pop(topic, None)
        self.num_bytes += len(payload)
        if math.isfinite(self._max_bytes_per_s):
            self._next_at = max(now, self._next_at) + len(payload) / self._max_bytes_per_s
        for file in self._files:
            if file.ref.sha256 == sha256:
                self._put(file, topic, index, payload, now)
                return
        self.num_bad += 1

    def _put(self, file: Pieces, topic: str, index: int | None, payload: bytes, now: float) -> None:
        try:
            if index is None:
                file.set_list(payload)
            elif file.needs_list:
                self.num_bad += 1
            elif not file.add(index, payload):
                self.num_repeated += 1
            self._retries.pop(topic, None)
        except BlobError:
            # Whoever retained this may mend it: it stays followed, and is asked for again later.
            self.num_bad += 1
            self._retries[topic] += 1
            self._followed[topic] = now + self._patience_s(topic)

    def _wanted(self) -> list[str]:
        """Topics of what is missing, in order: a list before its pieces, one blob after the other."""
        for file in self._files:
            if file.is_complete:
                continue
            if file.needs_list:
                return [release_piece_list(self._population, file.ref.sha256)]
            return [release_piece(self._population, file.ref.sha256, index) for index in file.missing]
        return []

    def _patience_s(self, topic: str) -> float:
        longest = min(_RETRY_CAP_S, _RETRY_BASE_S * 2.0 ** min(self._retries[topic], 16))
        return self._uniform(0.5 * longest, longest)
