"""What all messages are made of: their base, and the types of their common fields."""

from typing import Annotated

import msgspec

from wire_protocol.blobs import DIGEST_BYTES
from wire_protocol.identifiers import IDENTIFIER_PATTERN

__all__ = ["Digest", "Identifier", "Message", "MessagePart", "Nonce", "RoundId"]

Nonce = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
RoundId = Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
Identifier = Annotated[str, msgspec.Meta(pattern=IDENTIFIER_PATTERN)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class MessagePart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Common settings of every part of a message."""


class Message(MessagePart, frozen=True, kw_only=True):
    """Base of all messages."""
