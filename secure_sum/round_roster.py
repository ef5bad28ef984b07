"""The roster of a round with pairwise masks, as bytes: who is asked to take part.

The magic, then the ids as one MessagePack array, ascending. One roster has one spelling.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from secure_sum.errors import MalformedSealed, OversizedSealed

__all__ = ["MAX_ROSTER_BYTES", "MAX_ROSTER_DEVICES", "decode_roster", "encode_roster"]

MAX_ROSTER_DEVICES: Final = 10_000
MAX_ROSTER_BYTES: Final = MAX_ROSTER_DEVICES * 66 + 16
_MAGIC: Final = b"FR\x01"
_Id = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]
_Ids = Annotated[tuple[_Id, ...], msgspec.Meta(min_length=1, max_length=MAX_ROSTER_DEVICES)]
_DECODER: Final = msgspec.msgpack.Decoder(_Ids)


def encode_roster(device_ids: Sequence[str]) -> bytes:
    """The bytes of a roster; the ids may come in any order."""
    return _MAGIC + msgspec.msgpack.encode(sorted(device_ids))


def decode_roster(data: bytes) -> tuple[str, ...]:
    """Reads a roster.

    Raises:
        OversizedSealed: Longer than a roster can be; nothing was parsed.
        MalformedSealed: Not a roster in its one spelling, or an id is there twice.
    """
    if len(data) > MAX_ROSTER_BYTES:
        raise OversizedSealed(f"a roster of {len(data)} bytes; one has at most {MAX_ROSTER_BYTES}")
    if not data.startswith(_MAGIC):
        raise MalformedSealed("this is no roster of a round")
    try:
        device_ids: tuple[str, ...] = _DECODER.decode(data[len(_MAGIC) :])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedSealed(f"not a roster of a round: {error}") from error
    if any(one >= other for one, other in itertools.pairwise(device_ids)):
        raise MalformedSealed("a roster's ids are not in ascending order, or one is there twice")
    if encode_roster(device_ids) != data:
        raise MalformedSealed("a roster in another spelling than its one")
    return device_ids
