"""From what was fetched to the model's bytes: whole, packed, or a difference to the model that is here."""

import hashlib
from collections.abc import Callable

import zstandard

from edge_client.errors import ReleaseRefused
from wire_protocol.blobs import BlobRef
from wire_protocol.release import PackedModel, ReleaseManifest

__all__ = ["cheapest", "unpack_model"]

_WINDOW_LOG_MAX = 28
"""Largest window of a frame, as a power of two: 256 MiB, what a blob may have."""


def cheapest(manifest: ReleaseManifest, *, has_base: Callable[[str], bool]) -> PackedModel | None:
    """The shortest way to a model's bytes; None to fetch them as they are.

    Args:
        manifest: Of the release.
        has_base: Whether the model of this SHA-256 (hexadecimal) is on this device.
    """
    usable = [packed for packed in manifest.packed if not packed.base_sha256 or has_base(packed.base_sha256)]
    best = min(usable, key=lambda packed: packed.blob.num_bytes, default=None)
    return best if best is not None and best.blob.num_bytes < manifest.model.num_bytes else None


def unpack_model(data: bytes, wanted: BlobRef, *, base: bytes | None) -> bytes:
    """Unpacks a zstd frame.

    Args:
        data: The frame; its hash has been checked.
        wanted: What must come out.
        base: The model it is a difference to; None for none.

    Raises:
        ReleaseRefused: It does not give exactly the bytes that the manifest names. No more than these are ever made.
    """
    try:
        if zstandard.frame_content_size(data) != wanted.num_bytes:
            raise ReleaseRefused("the packed model says another size than its manifest")
        dictionary = (
            None if base is None else zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        )
        unpacker = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << _WINDOW_LOG_MAX)
        model = unpacker.decompress(data, max_output_size=wanted.num_bytes)
    except (zstandard.ZstdError, MemoryError) as error:
        raise ReleaseRefused(f"the packed model cannot be unpacked: {error}") from error
    if hashlib.sha256(model).digest() != wanted.sha256:
        raise ReleaseRefused("the packed model is not the one that its manifest names")
    return model
