"""An opener's talk with the coordinator, without I/O: requests come in, orders are fetched, answers go out.

One request is worked on at a time, the last one: a coordinator has one round. A repeated request is answered again with
the same bytes; after a restart it is fetched and answered anew, and the opener's book makes the answer the same one.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from broker_link.link import Incoming, LinkDown, LinkEvent, LinkUp
from edge_client.channel import DeviceChannel
from edge_client.errors import EdgeClientError
from edge_client.events import Publish, Tick
from edge_client.fetch import BlobFetcher
from edge_client.settings import AgentSettings
from edge_client.upload import ReportUpload
from secure_sum.errors import OpeningRefused, RefusalCause, SecureSumError
from secure_sum.openings import OpeningOrder, OpeningResult, decode_order, encode_result
from wire_protocol.blobs import split_blob
from wire_protocol.errors import BlobError, WireError
from wire_protocol.limits import DEFAULT_PIECE_BYTES
from wire_protocol.messages import (
    DeviceMessage,
    Message,
    OpeningAnswer,
    OpeningRefusal,
    OpeningRequest,
    Piece,
    PieceList,
    Receipt,
    decode_message,
    message_kind,
)

__all__ = ["MAX_ORDER_BYTES", "AnswerOrder", "OpenerSession"]

_LOG = logging.getLogger(__name__)
MAX_ORDER_BYTES: Final = 64 * 1024 * 1024
"""A thousand contributors with a hundred neighbours each take about 4 MB."""
AnswerOrder: TypeAlias = Callable[[OpeningOrder], OpeningResult]
"""``answer(order)``: the opener's rules and its answer; raises ``OpeningRefused``, or an ``EdgeClientError`` if it cannot
keep what it must keep."""
_DOWN_MESSAGES: Final[tuple[type[Message], ...]] = (OpeningRequest, Piece, PieceList, Receipt)
_DOWN_KINDS: Final[Mapping[str, type[Message]]] = {message_kind(kind): kind for kind in _DOWN_MESSAGES}


@dataclasses.dataclass(kw_only=True, slots=True)
class _Work:
    """The request under way: first its order is fetched, then its answer is sent."""

    request: OpeningRequest
    fetcher: BlobFetcher | None
    upload: ReportUpload | None = None
    is_taken: bool = False
    """Whether the coordinator has the whole answer."""


class OpenerSession:
    """Answers opening requests. Give it every event; publish what it returns; call again by ``next_wakeup``.

    Args:
        channel: The opener's topics, and the seal of its messages.
        answer: Answers an order, or refuses.
        settings: Waiting times of transfers.
        uniform: ``uniform(low, high)`` for their jitter.
    """

    def __init__(
        self,
        channel: DeviceChannel,
        *,
        answer: AnswerOrder,
        settings: AgentSettings | None = None,
        uniform: Callable[[float, float], float],
    ) -> None:
        self._channel = channel
        self._answer = answer
        self._settings = settings or AgentSettings()
        self._uniform = uniform
        self._work: _Work | None = None
        self._is_up = False
        self.num_answered = 0
        """Orders answered, each once however often it was asked for."""
        self.num_refused = 0

    def next_wakeup(self) -> float:
        """When a ``Tick`` is due, on the clock of ``now``: infinity is never."""
        work = self._work
        if work is None or work.is_taken or not self._is_up:
            return math.inf
        transfer = work.fetcher or work.upload
        return math.inf if transfer is None else transfer.next_wakeup()

    def handle(self, event: LinkEvent | Tick, now: float) -> list[Publish]:
        """Takes an event; what is not an opener's is left alone.

        Args:
            event: What happened.
            now: Monotonic time in seconds.
        """
        match event:
            case LinkUp():
                self._is_up = True
                self._reconnect()
            case LinkDown():
                self._is_up = False
            case Incoming():
                self._incoming(event, now)
            case Tick():
                pass
        return [self._channel.publish(message) for message in self._due(now)]

    def _reconnect(self) -> None:
        work = self._work
        transfer = None if work is None or work.is_taken else work.fetcher or work.upload
        if transfer is not None:
            transfer.reconnect()

    def _incoming(self, event: Incoming, now: float) -> None:
        prefix, _, name = event.topic.rpartition("/")
        kind = _DOWN_KINDS.get(name)
        if kind is None or not self._channel.is_down(prefix) or (kind is not OpeningRequest and self._work is None):
            return
        try:
            message = decode_message(event.payload, kind)
        except WireError:
            _LOG.warning("opener_message_refused kind=%s", name)
            return
        match message:
            case OpeningRequest():
                self._requested(message, now)
            case Piece() | PieceList():
                self._take_piece(message, now)
            case Receipt():
                self._take_receipt(message, now)

    def _requested(self, request: OpeningRequest, now: float) -> None:
        work = self._work
        if work is not None and work.request == request:
            if work.upload is not None and work.is_taken:
                # The coordinator has lost what it had taken: the same bytes again.
                work.is_taken = False
                work.upload.reconnect()
            return
        _LOG.info("opening_requested round_id=%d bytes=%d", request.round_id, request.request.num_bytes)
        self._work = _Work(request=request, fetcher=None)
        if request.request.num_bytes > MAX_ORDER_BYTES:
            self._refuse(self._work, OpeningRefused(RefusalCause.MALFORMED, "an order of that size is none"), now)
            return
        self._work.fetcher = BlobFetcher([request.request], settings=self._settings.fetch, uniform=self._uniform)

    def _take_piece(self, message: Piece | PieceList, now: float) -> None:
        work = self._work
        if work is None or work.fetcher is None:
            return
        work.fetcher.take(message, now)
        try:
            fetched = work.fetcher.pop_blob()
        except BlobError as error:
            self._refuse(work, OpeningRefused(RefusalCause.MALFORMED, str(error)), now)
            return
        if fetched is not None:
            self._answer_order(work, fetched[1], now)

    def _answer_order(self, work: _Work, data: bytes, now: float) -> None:
        try:
            order = decode_order(data, max_bytes=MAX_ORDER_BYTES)
            result = self._answer(order)
        except OpeningRefused as refusal:
            self._refuse(work, refusal, now)
            return
        except SecureSumError as error:
            self._refuse(work, OpeningRefused(RefusalCause.MALFORMED, str(error)), now)
            return
        except EdgeClientError as error:
            _LOG.exception("opener_not_ready")
            self._refuse(work, OpeningRefused(RefusalCause.NOT_READY, type(error).__name__), now)
            return
        self.num_answered += 1
        _LOG.info("opening_answered round_id=%d contributors=%d", order.round_id, len(order.contributors))
        blob = split_blob(encode_result(result), piece_bytes=DEFAULT_PIECE_BYTES)
        message = OpeningAnswer(
            round_id=work.request.round_id,
            nonce=work.request.nonce,
            answer=blob.ref,
            piece_digests=blob.piece_digests if blob.ref.num_pieces > 1 else b"",
        )
        self._send(
            work, ReportUpload(report=message, update=blob, settings=self._settings.upload, uniform=self._uniform)
        )

    def _refuse(self, work: _Work, refusal: OpeningRefused, now: float) -> None:
        del now
        self.num_refused += 1
        _LOG.warning(
            "opening_refused round_id=%d device=%s: %s", work.request.round_id, refusal.device_id or "-", refusal
        )
        message = OpeningAnswer(
            round_id=work.request.round_id,
            nonce=work.request.nonce,
            answer=None,
            refusal=OpeningRefusal(refusal.cause.value),
            device_id=refusal.device_id or None,
        )
        self._send(
            work, ReportUpload(report=message, update=None, settings=self._settings.upload, uniform=self._uniform)
        )

    def _send(self, work: _Work, upload: ReportUpload) -> None:
        work.fetcher = None
        work.upload = upload

    def _take_receipt(self, receipt: Receipt, now: float) -> None:
        work = self._work
        if work is None or work.upload is None:
            return
        if (receipt.round_id, receipt.nonce) != (work.request.round_id, work.request.nonce):
            return
        if work.upload.take_receipt(receipt, now):
            work.is_taken = True
            if isinstance(work.upload.report, OpeningAnswer) and work.upload.report.answer is None:
                # A refusal is forgotten: should the same request come again, it is looked at anew.
                self._work = None

    def _due(self, now: float) -> Sequence[DeviceMessage]:
        work = self._work
        if work is None or work.is_taken or not self._is_up:
            return ()
        if work.fetcher is not None:
            return work.fetcher.requests(now)
        return () if work.upload is None else work.upload.messages(now)
