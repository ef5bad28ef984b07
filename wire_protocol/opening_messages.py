"""The messages of a confidential round: the talk with those who open its sum.

An opener is a member of the population like any device. What it is asked, and what it answers, are blobs: the request's
is fetched by piece requests, the answer's pieces follow the answer unasked, as those of a report do, and a `Receipt`
that names the same round and nonce says which are missing, or that it was taken.
"""

import enum
from typing import Annotated

import msgspec

from wire_protocol.blobs import DIGEST_BYTES, BlobRef
from wire_protocol.limits import MAX_PIECES
from wire_protocol.message_base import Identifier, Message, Nonce, RoundId

__all__ = ["OpeningAnswer", "OpeningRefusal", "OpeningRequest"]


class OpeningRefusal(enum.Enum):
    """Why an opener does not answer: `secure_sum.errors.RefusalCause`, value for value."""

    MALFORMED = "malformed"
    WRONG_CONTEXT = "wrong_context"
    WRONG_SIZE = "wrong_size"
    TOO_FEW = "too_few"
    DUPLICATE_DEVICE = "duplicate_device"
    UNREGISTERED = "unregistered"
    BAD_SIGNATURE = "bad_signature"
    BAD_BOX = "bad_box"
    SECOND_SET = "second_set"
    BOTH_SIDES = "both_sides"
    WEAK_THRESHOLD = "weak_threshold"
    ISOLATED = "isolated"
    OUT_OF_RANGE = "out_of_range"
    WRONG_TOTAL = "wrong_total"
    NOT_READY = "not_ready"
    """The only one that may pass: the same request can be made again."""


class OpeningRequest(Message, frozen=True, kw_only=True, tag_field="type", tag="opening-request"):
    """Coordinator, to an opener: open this round's sum. Repeated until answered."""

    round_id: RoundId
    nonce: Nonce
    """Names this request: the same contributors and the same ask have the same nonce."""
    request: BlobRef
    """`secure_sum.openings.OpeningOrder`."""


class OpeningAnswer(Message, frozen=True, kw_only=True, tag_field="type", tag="opening-answer"):
    """Opener: the answer, whose pieces follow; or why there is none. The same request gets the same answer."""

    round_id: RoundId
    nonce: Nonce
    """The request's."""
    answer: BlobRef | None
    """`secure_sum.openings.OpeningResult`; None in a refusal."""
    piece_digests: Annotated[bytes, msgspec.Meta(max_length=MAX_PIECES * DIGEST_BYTES)] = b""
    """Digests of the answer's pieces; empty if it has one piece or there is no answer."""
    refusal: OpeningRefusal | None = None
    """Set exactly when there is no answer."""
    device_id: Identifier | None = None
    """The contributor that the refusal is about, if it is about one."""

    def __post_init__(self) -> None:
        if (self.answer is None) == (self.refusal is None):
            raise ValueError("an opening answer has either an answer or a refusal")
        if self.answer is not None and self.device_id is not None:
            raise ValueError("an answer is about no single device")
