"""The talk with those who open a sum, without I/O: orders go out as blobs, answers come in pieces, until all have answered.

Repeats itself until it is answered; what comes twice is answered twice and counted once. A request's nonce follows from
its order, so that a coordinator that was restarted asks the same thing by the same name.
"""

import collections
import dataclasses
import hashlib
import logging
import math
from collections.abc import Mapping
from typing import Final

from coordinator.actions import Publish, to_device
from coordinator.blob_shelf import BlobShelf
from coordinator.sum_mode import Answered
from secure_sum.errors import SecureSumError
from secure_sum.openings import OpeningOrder, OpeningResult, decode_result, encode_order
from wire_protocol.blobs import DIGEST_BYTES, BlobAssembler, BlobRef
from wire_protocol.errors import BlobError
from wire_protocol.messages import (
    OpeningAnswer,
    OpeningRefusal,
    OpeningRequest,
    Piece,
    Receipt,
    ReceiptStatus,
    RejectionReason,
)

__all__ = ["OpeningExchange", "OpeningSettings"]

_LOG = logging.getLogger(__name__)
_NONCE_BYTES: Final = 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OpeningSettings:
    """How patient the coordinator is with openers."""

    retry_s: float = 10.0
    """An unanswered request is repeated after this."""
    patience_s: float = 60.0
    """An opener from which nothing has come for so long is passed over, if others can do without it."""
    give_up_s: float = 3600.0
    """A sum that is not opened after this is given up, and its round with it."""

    def __post_init__(self) -> None:
        if not 0 < self.retry_s <= self.patience_s <= self.give_up_s < math.inf:
            raise ValueError("need 0 < retry_s <= patience_s <= give_up_s")


@dataclasses.dataclass(kw_only=True, slots=True)
class _Asked:
    """One request under way."""

    order: OpeningOrder
    request: OpeningRequest
    next_at: float
    heard_at: float
    assembler: BlobAssembler | None = None


class OpeningExchange:
    """Requests and answers of one round at a time.

    Args:
        population: Its name.
        shelf: Where openers fetch the orders.
        settings: How patient to be.
        max_result_bytes: Longest result that is taken.
    """

    def __init__(self, *, population: str, shelf: BlobShelf, settings: OpeningSettings, max_result_bytes: int) -> None:
        self._population = population
        self._shelf = shelf
        self._settings = settings
        self._max_result_bytes = max_result_bytes
        self._asked: dict[str, _Asked] = {}
        self._done: set[tuple[str, bytes]] = set()
        self._refs: dict[str, BlobRef] = {}
        self.answers: list[Answered] = []
        self.refusals: dict[str, OpeningRefusal] = {}
        """Opener -> why it will never answer in this round."""
        self.counts: collections.Counter[str] = collections.Counter()
        """Refusals by cause, and answers that were none (``bad_answer``), since the start."""
        self.num_result_bytes = 0
        """Bytes of results taken since the start."""

    def reset(self) -> None:
        """Forgets the round: nothing more is asked, and the orders are no longer offered."""
        for ref in self._refs.values():
            self._shelf.remove(ref)
        self._refs.clear()
        self._asked.clear()
        self._done.clear()
        self.answers = []
        self.refusals = {}

    def ask(self, round_id: int, orders: Mapping[str, OpeningOrder], *, now: float) -> list[Publish]:
        """Asks for exactly this from here on; sends what is new or due again."""
        for opener_id in [name for name in self._asked if name not in orders]:
            del self._asked[opener_id]
        for opener_id, order in orders.items():
            known = self._asked.get(opener_id)
            if known is None or known.order != order:
                self._asked[opener_id] = self._new(opener_id, round_id, order, now)
        due = []
        for opener_id, asked in self._asked.items():
            if now >= asked.next_at:
                asked.next_at = now + self._settings.retry_s
                due.append(to_device(self._population, opener_id, asked.request))
        return due

    def silent(self, *, now: float) -> frozenset[str]:
        """Openers from which nothing has come for too long."""
        return frozenset(
            name for name, asked in self._asked.items() if now - asked.heard_at >= self._settings.patience_s
        )

    def next_wakeup(self) -> float:
        """When something is due: infinity if nothing is."""
        return min((asked.next_at for asked in self._asked.values()), default=math.inf)

    def take_answer(self, opener_id: str, answer: OpeningAnswer, *, now: float) -> list[Publish]:
        """Takes an opener's answer, or its refusal."""
        if (opener_id, answer.nonce) in self._done:
            return [self._receipt(opener_id, answer.round_id, answer.nonce, ReceiptStatus.ACCEPTED)]
        asked = self._asked.get(opener_id)
        if asked is None or (asked.request.round_id, asked.request.nonce) != (answer.round_id, answer.nonce):
            return [self._refuse(opener_id, answer, RejectionReason.WRONG_ROUND)]
        if answer.refusal is not None:
            # One that is not ready counts as silent: it is passed over in its time, if others can do without it.
            return self._take_refusal(opener_id, answer, answer.refusal)
        asked.heard_at = now
        if answer.answer is None or answer.answer.num_bytes > self._max_result_bytes:
            return self._bad(opener_id, answer.round_id, answer.nonce, "longer than any result")
        if asked.assembler is None or asked.assembler.ref != answer.answer:
            return self._begin(opener_id, asked, answer, answer.answer)
        missing = tuple(asked.assembler.missing())
        return [self._receipt(opener_id, answer.round_id, answer.nonce, ReceiptStatus.INCOMPLETE, missing=missing)]

    def take_piece(self, opener_id: str, piece: Piece, *, now: float) -> list[Publish] | None:
        """Takes a piece of an answer; None if it belongs to no answer under way."""
        asked = self._asked.get(opener_id)
        if asked is None or asked.assembler is None or asked.assembler.ref.sha256 != piece.sha256:
            return None
        round_id, nonce = asked.request.round_id, asked.request.nonce
        try:
            if asked.assembler.add(piece.index, piece.data):
                asked.heard_at = now
            if not asked.assembler.is_complete:
                return []
            data = asked.assembler.result()
            result = decode_result(data, max_bytes=self._max_result_bytes)
        except (BlobError, SecureSumError) as error:
            return self._bad(opener_id, round_id, nonce, str(error))
        if (result.context, result.set_digest) != (asked.order.context, asked.order.set_digest()):
            return self._bad(opener_id, round_id, nonce, "an answer about another round or set")
        return self._complete(opener_id, asked, result, len(data))

    def _new(self, opener_id: str, round_id: int, order: OpeningOrder, now: float) -> _Asked:
        data = encode_order(order)
        old, ref = self._refs.get(opener_id), self._shelf.put(data)
        self._refs[opener_id] = ref
        if old is not None and old not in self._refs.values():
            self._shelf.remove(old)
        nonce = hashlib.sha256(data).digest()[:_NONCE_BYTES]
        request = OpeningRequest(round_id=round_id, nonce=nonce, request=ref)
        return _Asked(order=order, request=request, next_at=now, heard_at=now)

    def _begin(self, opener_id: str, asked: _Asked, answer: OpeningAnswer, ref: BlobRef) -> list[Publish]:
        asked.assembler = BlobAssembler(ref)
        expected = 0 if ref.num_pieces == 1 else ref.num_pieces * DIGEST_BYTES
        if len(answer.piece_digests) != expected:
            return self._bad(opener_id, answer.round_id, answer.nonce, "piece digests that do not fit its size")
        try:
            if expected:
                asked.assembler.set_piece_list(answer.piece_digests)
        except BlobError as error:
            return self._bad(opener_id, answer.round_id, answer.nonce, str(error))
        # The pieces follow by themselves; asking for them now would bring each one twice.
        return []

    def _complete(self, opener_id: str, asked: _Asked, result: OpeningResult, num_bytes: int) -> list[Publish]:
        self.answers.append(Answered(opener_id=opener_id, order=asked.order, result=result))
        self.num_result_bytes += num_bytes
        self._done.add((opener_id, asked.request.nonce))
        del self._asked[opener_id]
        return [self._receipt(opener_id, asked.request.round_id, asked.request.nonce, ReceiptStatus.ACCEPTED)]

    def _take_refusal(self, opener_id: str, answer: OpeningAnswer, refusal: OpeningRefusal) -> list[Publish]:
        self.counts[refusal.value] += 1
        _LOG.warning(
            "opening_refused opener=%s round_id=%d cause=%s device_id=%s",
            *(opener_id, answer.round_id, refusal.value, answer.device_id or ""),
        )
        if refusal is not OpeningRefusal.NOT_READY:
            self.refusals[opener_id] = refusal
            self._done.add((opener_id, answer.nonce))
            del self._asked[opener_id]
        return [self._receipt(opener_id, answer.round_id, answer.nonce, ReceiptStatus.ACCEPTED)]

    def _bad(self, opener_id: str, round_id: int, nonce: bytes, text: str) -> list[Publish]:
        """An answer that is none: this opener is not asked again in this round."""
        self.counts["bad_answer"] += 1
        _LOG.warning("opening_answer_bad opener=%s round_id=%d: %s", opener_id, round_id, text)
        self.refusals[opener_id] = OpeningRefusal.MALFORMED
        self._asked.pop(opener_id, None)
        return [self._receipt(opener_id, round_id, nonce, ReceiptStatus.REJECTED, reason=RejectionReason.MALFORMED)]

    def _refuse(self, opener_id: str, answer: OpeningAnswer, reason: RejectionReason) -> Publish:
        return self._receipt(opener_id, answer.round_id, answer.nonce, ReceiptStatus.REJECTED, reason=reason)

    def _receipt(
        self,
        opener_id: str,
        round_id: int,
        nonce: bytes,
        status: ReceiptStatus,
        *,
        reason: RejectionReason | None = None,
        missing: tuple[int, ...] = (),
    ) -> Publish:
        receipt = Receipt(round_id=round_id, nonce=nonce, status=status, reason=reason, missing=missing)
        return to_device(self._population, opener_id, receipt)
