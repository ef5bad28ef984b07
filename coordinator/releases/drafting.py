"""From a model's bytes to a release that can be signed: the manifest, and the blobs that it names, packed ones too."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Final

import zstandard

from wire_protocol.blobs import split_blob
from wire_protocol.limits import DEFAULT_PIECE_BYTES
from wire_protocol.release import (
    GoldenBatch,
    ModelTensor,
    PackedModel,
    ReleaseLineage,
    ReleaseManifest,
    ReleaseNeeds,
)

__all__ = ["GoldenRules", "ReleaseDraft", "draft_release", "pack_model"]

_LEVEL: Final = 19
_WORTH_IT: Final = 0.97
"""A packed model that is not at least so much smaller is not offered."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GoldenRules:
    """A golden batch, and how near a device must come to it."""

    data: bytes
    num_examples: int
    max_abs_error: float
    min_agreement: float
    max_latency_ms: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseDraft:
    """A release that is not signed yet."""

    manifest: ReleaseManifest
    blobs: tuple[bytes, ...]


def draft_release(
    *,
    name: str,
    number: int,
    model: bytes,
    tensors: tuple[ModelTensor, ModelTensor],
    golden: GoldenRules,
    needs: ReleaseNeeds,
    lineage: ReleaseLineage,
    note: str = "",
    bases: Sequence[bytes] = (),
    piece_bytes: int = DEFAULT_PIECE_BYTES,
) -> ReleaseDraft:
    """Makes a release.

    Args:
        name: The model's.
        number: The release's.
        model: The ``.tflite`` file.
        tensors: What it takes and gives.
        golden: How devices check it.
        needs: What a device must have.
        lineage: Where it comes from.
        note: For people.
        bases: Models that devices may have: a difference to each is offered where it is shorter.
        piece_bytes: Of one retained message; a broker may allow less than the default.

    Raises:
        BlobError: The model is empty or too large.
        ValueError: A bound is not positive and finite.
    """
    whole = pack_model(model, base=None)
    packed: list[tuple[PackedModel, bytes]] = []
    if len(whole) < _WORTH_IT * len(model):
        packed.append((PackedModel(blob=split_blob(whole, piece_bytes=piece_bytes).ref), whole))
    shortest = min(len(model), len(whole))
    for base in bases:
        data = pack_model(model, base=base)
        if len(data) < _WORTH_IT * shortest:
            packed.append(
                (
                    PackedModel(
                        blob=split_blob(data, piece_bytes=piece_bytes).ref, base_sha256=hashlib.sha256(base).hexdigest()
                    ),
                    data,
                )
            )
    manifest = ReleaseManifest(
        name=name,
        number=number,
        model=split_blob(model, piece_bytes=piece_bytes).ref,
        packed=tuple(item for item, _ in packed),
        input=tensors[0],
        output=tensors[1],
        golden=GoldenBatch(
            blob=split_blob(golden.data, piece_bytes=piece_bytes).ref,
            num_examples=golden.num_examples,
            max_abs_error=golden.max_abs_error,
            min_agreement=golden.min_agreement,
            max_latency_ms=golden.max_latency_ms,
        ),
        needs=needs,
        lineage=lineage,
        note=note,
    )
    return ReleaseDraft(manifest=manifest, blobs=(model, golden.data, *(data for _, data in packed)))


def pack_model(model: bytes, *, base: bytes | None) -> bytes:
    """One zstd frame that says its size; a difference to ``base`` if there is one (RFC 8878, a raw dictionary)."""
    if base is None:
        return zstandard.ZstdCompressor(level=_LEVEL).compress(model)
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, source_size=len(model), dict_size=len(base), enable_ldm=True, write_content_size=True
    )
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(model)
