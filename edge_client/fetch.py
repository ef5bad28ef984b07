"""Fetching blobs in pieces, without I/O: what arrives and the time go in, requests and whole blobs come out.

Pull, never push: at most ``window`` pieces are under way at any moment, so the broker never holds a model for a slow
device, and a broken connection costs no piece that has arrived.
"""

import collections
import enum
import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

from broker_link.backoff import FullJitterBackoff
from edge_client.settings import FetchSettings
from wire_protocol.blobs import BlobAssembler, BlobRef
from wire_protocol.errors import BlobError
from wire_protocol.messages import Piece, PieceList, PieceListRequest, PieceRequest

__all__ = ["BlobFetcher", "FetchRequest", "Taken"]

FetchRequest: TypeAlias = PieceListRequest | PieceRequest

_LIST = -1
"""Stands for the list of piece digests among the indices under way."""


class Taken(enum.Enum):
    """What became of a piece, or of a list of piece digests, that arrived."""

    USEFUL = "useful"
    USELESS = "useless"
    """Of no blob that is being fetched, or here already."""
    BAD = "bad"
    """Does not match its hash."""


class BlobFetcher:
    """Fetches some blobs.

    Give it every ``PieceList`` and ``Piece``, send what ``requests`` returns, and ask ``pop_blob`` for what is whole.

    Args:
        refs: What to fetch, most urgent first; a blob named twice is fetched once.
        settings: Window and waiting times.
        uniform: ``uniform(low, high)`` for the jitter of repeated requests.
    """

    __slots__ = (
        "_assemblers",
        "_backoff",
        "_complete",
        "_extra_wait_s",
        "_in_flight",
        "_pending",
        "_quiet_until",
        "_settings",
        "num_bad_pieces",
    )

    def __init__(
        self, refs: Iterable[BlobRef], *, settings: FetchSettings, uniform: Callable[[float, float], float]
    ) -> None:
        self._settings = settings
        self._assemblers: dict[bytes, BlobAssembler] = {}
        self._pending: collections.deque[tuple[bytes, int]] = collections.deque()
        self.add(refs)
        self._complete: list[BlobAssembler] = []
        self._in_flight: set[tuple[bytes, int]] = set()
        self._backoff = FullJitterBackoff(base_s=settings.timeout_s, cap_s=settings.backoff_cap_s, uniform=uniform)
        self._extra_wait_s = 0.0
        self._quiet_until = 0.0
        self.num_bad_pieces = 0

    def add(self, refs: Iterable[BlobRef]) -> None:
        """Fetches these too."""
        for ref in refs:
            if ref.sha256 not in self._assemblers:
                assembler = self._assemblers[ref.sha256] = BlobAssembler(ref)
                self._pending.append((ref.sha256, 0 if assembler.has_piece_list else _LIST))

    @property
    def is_done(self) -> bool:
        """Whether every blob has been handed out."""
        return not self._assemblers

    @property
    def num_in_flight(self) -> int:
        """Pieces and lists asked for and not yet here."""
        return len(self._in_flight)

    def next_wakeup(self) -> float:
        """When ``requests`` must be called at the latest: 0 is at once, infinity never."""
        if self._in_flight:
            return self._quiet_until
        return 0.0 if self._pending else math.inf

    def requests(self, now: float) -> list[FetchRequest]:
        """What to ask for now: what is due again, and new pieces while the window has room.

        New pieces are asked for only when half the window is free: one request then brings several pieces. What is
        under way counts as lost only when nothing at all has come for a while: a slow link is no lossy one, and
        asking it again for what is still queued would make it slower.
        """
        self._expire(now)
        window = self._settings.window
        if not self._pending or len(self._in_flight) > window // 2:
            return []
        self._expect_until(now)
        wanted: dict[bytes, list[int]] = {}
        lists: list[FetchRequest] = []
        while self._pending and len(self._in_flight) < window:
            sha256, index = self._pending.popleft()
            self._in_flight.add((sha256, index))
            if index == _LIST:
                lists.append(PieceListRequest(sha256=sha256))
            else:
                wanted.setdefault(sha256, []).append(index)
        return lists + [PieceRequest(sha256=sha256, indices=tuple(indices)) for sha256, indices in wanted.items()]

    def reconnect(self) -> None:
        """After a new connection: what was under way is lost and will be asked for again."""
        self._put_back()
        self._extra_wait_s = 0.0
        self._backoff.reset()

    def take(self, message: PieceList | Piece, now: float) -> Taken:
        """Takes a piece or a list of piece digests.

        What is bad is counted, and asked for again when its time is up: at once would be a loop that a forger drives.
        """
        assembler = self._assemblers.get(message.sha256)
        if assembler is None or assembler.is_complete:
            return Taken.USELESS
        try:
            if isinstance(message, Piece):
                is_new = assembler.add(message.index, message.data)
                key = (message.sha256, message.index)
            else:
                is_new = not assembler.has_piece_list
                assembler.set_piece_list(message.digests)
                key = (message.sha256, _LIST)
        except BlobError:
            self.num_bad_pieces += 1
            return Taken.BAD
        if not is_new:
            return Taken.USELESS
        self._progressed(key, now)
        if isinstance(message, PieceList):
            self._pending.extend((message.sha256, index) for index in range(assembler.ref.num_pieces))
        elif assembler.is_complete:
            self._complete.append(assembler)
        return Taken.USEFUL

    def pop_blob(self) -> tuple[BlobRef, bytes] | None:
        """A blob whose last piece has come; each is handed out once.

        Raises:
            BlobError: Every piece matches its hash and the whole does not: this reference can never be fetched.
        """
        if not self._complete:
            return None
        assembler = self._complete.pop()
        del self._assemblers[assembler.ref.sha256]
        return assembler.ref, assembler.result()

    def _progressed(self, key: tuple[bytes, int], now: float) -> None:
        if key in self._in_flight:
            self._in_flight.remove(key)
        elif key in self._pending:
            # It came after its request had been given up: do not ask again.
            self._pending.remove(key)
        # Halved, not forgotten: on a link slower than the time-out each reset would ask for everything twice.
        self._extra_wait_s /= 2
        self._backoff.reset()
        self._expect_until(now)

    def _expect_until(self, now: float) -> None:
        self._quiet_until = now + self._settings.timeout_s + self._extra_wait_s

    def _expire(self, now: float) -> None:
        if self._in_flight and now >= self._quiet_until:
            self._put_back()
            self._extra_wait_s = max(self._extra_wait_s, self._backoff.next_wait_s())

    def _put_back(self) -> None:
        self._pending.extendleft(sorted(self._in_flight, reverse=True))
        self._in_flight.clear()
