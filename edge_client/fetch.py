"""Fetching blobs in pieces, without I/O: what arrives and the time go in, requests and whole blobs come out.

Pull, never push: at most ``window`` pieces are under way at any moment, so the broker never holds a model for a slow
device, and a broken connection costs no piece that has arrived.
"""

import collections
from collections.abc import Callable, Iterable
from typing import TypeAlias

from broker_link.backoff import FullJitterBackoff
from edge_client.settings import FetchSettings
from wire_protocol.blobs import BlobAssembler, BlobRef
from wire_protocol.errors import BlobError
from wire_protocol.messages import Piece, PieceList, PieceListRequest, PieceRequest

__all__ = ["BlobFetcher", "FetchRequest"]

FetchRequest: TypeAlias = PieceListRequest | PieceRequest

_LIST = -1
"""Stands for the list of piece digests among the indices under way."""


class BlobFetcher:
    """Fetches some blobs; give it every ``PieceList`` and ``Piece``, and send what ``requests`` returns.

    Args:
        refs: What to fetch, most urgent first; a blob named twice is fetched once.
        settings: Window and waiting times.
        uniform: ``uniform(low, high)`` for the jitter of repeated requests.
    """

    __slots__ = ("_assemblers", "_backoff", "_extra_wait_s", "_in_flight", "_pending", "_settings", "num_bad_pieces")

    def __init__(
        self, refs: Iterable[BlobRef], *, settings: FetchSettings, uniform: Callable[[float, float], float]
    ) -> None:
        self._settings = settings
        self._assemblers = {ref.sha256: BlobAssembler(ref) for ref in refs}
        self._pending: collections.deque[tuple[bytes, int]] = collections.deque(
            (sha256, 0 if assembler.has_piece_list else _LIST) for sha256, assembler in self._assemblers.items()
        )
        self._in_flight: dict[tuple[bytes, int], float] = {}
        self._backoff = FullJitterBackoff(
            base_s=settings.timeout_s, cap_s=settings.backoff_cap_s, uniform=uniform
        )
        self._extra_wait_s = 0.0
        self.num_bad_pieces = 0

    @property
    def is_done(self) -> bool:
        """Whether every blob has been handed out."""
        return not self._assemblers

    @property
    def num_in_flight(self) -> int:
        """Pieces and lists asked for and not yet here."""
        return len(self._in_flight)

    def next_wakeup(self) -> float:
        """When ``requests`` must be called at the latest; it may be asked earlier at any time."""
        return min(self._in_flight.values(), default=float("-inf") if self._pending else float("inf"))

    def requests(self, now: float) -> list[FetchRequest]:
        """What to ask for now: what is due again, and new pieces while the window has room.

        New pieces are asked for only when half the window is free: one request then brings several pieces.
        """
        self._expire(now)
        window = self._settings.window
        if not self._pending or len(self._in_flight) > window // 2:
            return []
        expires_at = now + self._settings.timeout_s + self._extra_wait_s
        wanted: dict[bytes, list[int]] = {}
        lists: list[FetchRequest] = []
        while self._pending and len(self._in_flight) < window:
            sha256, index = self._pending.popleft()
            self._in_flight[sha256, index] = expires_at
            if index == _LIST:
                lists.append(PieceListRequest(sha256=sha256))
            else:
                wanted.setdefault(sha256, []).append(index)
        return lists + [PieceRequest(sha256=sha256, indices=tuple(indices)) for sha256, indices in wanted.items()]

    def reconnect(self) -> None:
        """After a new connection: what was under way is lost and will be asked for again."""
        self._put_back(list(self._in_flight))
        self._extra_wait_s = 0.0
        self._backoff.reset()

    def take_piece_list(self, message: PieceList) -> bool:
        """Takes a list of piece digests.

        Returns:
            Whether it was of use. A list that does not match its reference is counted and asked for again when due.
        """
        assembler = self._assemblers.get(message.sha256)
        if assembler is None or assembler.has_piece_list:
            return False
        try:
            assembler.set_piece_list(message.digests)
        except BlobError:
            self.num_bad_pieces += 1
            return False
        self._progressed((message.sha256, _LIST))
        self._pending.extend((message.sha256, index) for index in range(assembler.ref.num_pieces))
        return True

    def take_piece(self, message: Piece) -> tuple[BlobRef, bytes] | None:
        """Takes a piece.

        Returns:
            The blob, if this was its last piece; otherwise None. A piece of no use is dropped; one that does not
            match its hash is counted, and asked for again when its time is up (at once would be a loop that a
            forger drives).

        Raises:
            BlobError: All pieces match their hashes and the whole does not: this reference can never be fetched.
        """
        assembler = self._assemblers.get(message.sha256)
        if assembler is None:
            return None
        try:
            is_new = assembler.add(message.index, message.data)
        except BlobError:
            self.num_bad_pieces += 1
            return None
        if is_new:
            self._progressed((message.sha256, message.index))
        if not assembler.is_complete:
            return None
        del self._assemblers[message.sha256]
        return assembler.ref, assembler.result()

    def _progressed(self, key: tuple[bytes, int]) -> None:
        if self._in_flight.pop(key, None) is None and key in self._pending:
            # It came after its request had been given up: do not ask again.
            self._pending.remove(key)
        self._extra_wait_s = 0.0
        self._backoff.reset()

    def _expire(self, now: float) -> None:
        expired = [key for key, expires_at in self._in_flight.items() if expires_at <= now]
        if expired:
            self._put_back(expired)
            self._extra_wait_s = self._backoff.next_wait_s()

    def _put_back(self, keys: list[tuple[bytes, int]]) -> None:
        for key in keys:
            del self._in_flight[key]
        self._pending.extendleft(reversed(keys))
