"""What the coordinator asks an opener, and what comes back: an *order* and a *result*, each as bytes.

An order names one set of contributors in one round: what each of them has signed, and the box that is for this opener.
A result names round and set again. Both are MessagePack in one form alone: what decodes encodes to the same bytes.
"""

import hashlib
import itertools
import struct
from collections.abc import Sequence
from typing import Annotated, Final, TypeVar

import msgspec

from secure_sum.context import CONTEXT_BYTES, round_context
from secure_sum.errors import MalformedSealed, OversizedSealed
from secure_sum.key_directory import MAX_DIRECTORY_BYTES
from secure_sum.sealed_box import BOX_KEY_BYTES
from secure_sum.sealed_update import (
    DIGEST_BYTES,
    MAX_BOX_BYTES,
    MAX_BOXES,
    SIGNATURE_BYTES,
    SealedHeader,
    SealedMode,
    Statement,
)

__all__ = [
    "Contributor",
    "HelperAsk",
    "KeyAsk",
    "MaskAsk",
    "OpeningAsk",
    "OpeningOrder",
    "OpeningResult",
    "contributor_of",
    "decode_order",
    "decode_result",
    "encode_order",
    "encode_result",
    "is_rising",
]

_MAX_CONTRIBUTORS: Final = 100_000
_DOMAIN: Final = b"flockwise set of contributors 1\x00"
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
_U32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
_S = TypeVar("_S", bound=msgspec.Struct)


class Contributor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=True):
    """One sealed update, without its payload, as one opener sees it."""

    device_id: _Name
    min_contributors: _U32
    """What the device demands."""
    payload_sha256: _Digest
    ephemeral_key: Annotated[bytes, msgspec.Meta(min_length=BOX_KEY_BYTES, max_length=BOX_KEY_BYTES)]
    box_digests: Annotated[bytes, msgspec.Meta(max_length=DIGEST_BYTES * MAX_BOXES)]
    box: Annotated[bytes, msgspec.Meta(max_length=MAX_BOX_BYTES)]
    """This opener's; empty if the mode has none."""
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class HelperAsk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="helpers"):
    """To a helper: the sum of the masks of these parts, over all contributors."""

    parts: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=255)], ...], msgspec.Meta(min_length=1, max_length=16)]
    """Rising."""
    directory: Annotated[bytes, msgspec.Meta(max_length=MAX_DIRECTORY_BYTES)] = b""
    """The key directory in which the contributors stand; believed as far as the helper's own pin goes."""


class MaskAsk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="masks"):
    """To a member of the committee: shares, for the contributors as those that arrived, and these as those that did not."""

    roster_sha256: _Digest
    """Of the round's roster: who has masks with whom."""
    missing: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=_MAX_CONTRIBUTORS)]
    """Rising."""
    directory: Annotated[bytes, msgspec.Meta(max_length=MAX_DIRECTORY_BYTES)] = b""
    """The key directory in which the contributors stand; the member believes it as far as its own pin goes."""


class KeyAsk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="he"):
    """To the key authority: the sum, out of this ciphertext."""

    total: bytes
    """`secure_sum.ciphertext`: the contributors' ciphertexts and tags, added up."""
    keys_sha256: _Digest
    """Of the released keys that the plan names: a key authority that has made new ones since can say so."""


OpeningAsk = HelperAsk | MaskAsk | KeyAsk
"""What is asked, by mode."""

_MODES: Final[dict[type[msgspec.Struct], SealedMode]] = {
    HelperAsk: SealedMode.HELPERS,
    MaskAsk: SealedMode.MASKS,
    KeyAsk: SealedMode.HE,
}


class OpeningOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the coordinator asks one opener."""

    population: _Name
    task_id: _Name
    plan_sha256: _Digest
    round_id: Annotated[int, msgspec.Meta(ge=1, lt=2**53)]
    num_values: _U32
    """d."""
    contributors: Annotated[tuple[Contributor, ...], msgspec.Meta(max_length=_MAX_CONTRIBUTORS)]
    """By rising device id."""
    ask: OpeningAsk

    @property
    def context(self) -> bytes:
        """The round's 32 bytes, formed here and not taken on trust."""
        return round_context(
            population=self.population, task_id=self.task_id, plan_sha256=self.plan_sha256, round_id=self.round_id
        )

    @property
    def mode(self) -> SealedMode:
        """Which mode the ask belongs to."""
        return _MODES[type(self.ask)]

    def statement(self, contributor: Contributor) -> Statement:
        """What a contributor must have signed to be one."""
        return Statement(
            context=self.context,
            mode=self.mode,
            device_id=contributor.device_id,
            num_values=self.num_values,
            min_contributors=contributor.min_contributors,
            payload_sha256=contributor.payload_sha256,
            ephemeral_key=contributor.ephemeral_key,
            box_digests=contributor.box_digests,
        )

    def set_digest(self) -> bytes:
        """32 bytes that name the set: who is in it, and what each of them has signed. The same for every opener."""
        digest = hashlib.sha256(_DOMAIN + self.context + struct.pack(">I", len(self.contributors)))
        for contributor in self.contributors:
            digest.update(hashlib.sha256(self.statement(contributor).bytes_to_sign).digest())
        return digest.digest()


class OpeningResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an opener answers."""

    context: Annotated[bytes, msgspec.Meta(min_length=CONTEXT_BYTES, max_length=CONTEXT_BYTES)]
    set_digest: _Digest
    data: bytes
    """Helpers and key authority: [d] words of 4 bytes, little endian. Committee: shares (`mask_opening`)."""


def contributor_of(header: SealedHeader, *, box_index: int | None) -> Contributor:
    """A sealed update as the opener with this box sees it; None if the mode has no boxes."""
    statement = header.statement
    return Contributor(
        device_id=statement.device_id,
        min_contributors=statement.min_contributors,
        payload_sha256=statement.payload_sha256,
        ephemeral_key=statement.ephemeral_key,
        box_digests=statement.box_digests,
        box=b"" if box_index is None else header.boxes[box_index],
        signature=header.signature,
    )


def encode_order(order: OpeningOrder) -> bytes:
    """The order's bytes."""
    return msgspec.msgpack.encode(order)


def decode_order(data: bytes, *, max_bytes: int) -> OpeningOrder:
    """Reads an order.

    Raises:
        OversizedSealed: Longer than ``max_bytes``; nothing was parsed.
        MalformedSealed: Not an order in its one form.
    """
    return _decode(data, OpeningOrder, max_bytes=max_bytes)


def encode_result(result: OpeningResult) -> bytes:
    """The result's bytes."""
    return msgspec.msgpack.encode(result)


def decode_result(data: bytes, *, max_bytes: int) -> OpeningResult:
    """Reads a result.

    Raises:
        OversizedSealed: Longer than ``max_bytes``; nothing was parsed.
        MalformedSealed: Not a result in its one form.
    """
    return _decode(data, OpeningResult, max_bytes=max_bytes)


def _decode(data: bytes, kind: type[_S], *, max_bytes: int) -> _S:
    if len(data) > max_bytes:
        raise OversizedSealed(f"{len(data)} bytes of {kind.__name__}; the limit is {max_bytes}")
    try:
        decoded = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError, OverflowError) as error:
        raise MalformedSealed(f"not an {kind.__name__}: {error}") from error
    if msgspec.msgpack.encode(decoded) != data:
        raise MalformedSealed(f"an {kind.__name__} in another form than its one")
    return decoded


def is_rising(names: Sequence[str]) -> bool:
    """Whether names are sorted and all different."""
    return all(one < other for one, other in itertools.pairwise(names))
