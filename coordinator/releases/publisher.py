"""Puts the release channel on a broker: each signed file and each piece is one retained message, whoever reads it.

What devices must have before they can act on it comes first: pieces, then manifests and orders, then the roles that
list them, and the timestamp last. A device that hears the timestamp finds the rest retained.
"""

import re
from collections.abc import Iterator
from typing import Final

from coordinator.releases.repository import ReleaseRepository
from wire_protocol.blobs import BlobRef, split_blob
from wire_protocol.release import ReleaseManifest
from wire_protocol.topics import release_file, release_piece, release_piece_list

__all__ = ["channel_messages"]

_ORDER: Final = (r"[0-9a-f]{64}\..*", r"\d+\.root\.json", r"\d+\.targets\.json", r"\d+\.rollout\.json", r"\d+\.snapshot\.json", "timestamp.json")  # fmt: skip


def channel_messages(repository: ReleaseRepository, population: str) -> Iterator[tuple[str, bytes]]:
    """Everything that is to be retained, piece by piece: (topic, payload).

    Raises:
        ReleaseError: Something of the channel cannot be read.
    """
    seen: set[bytes] = set()
    for manifest in repository.manifests():
        for ref in _blobs(manifest):
            if ref.sha256 not in seen:
                seen.add(ref.sha256)
                yield from _pieces(repository.blob(ref.sha256), ref, population)
    files = repository.files()
    for name in sorted(files, key=_rank):
        yield release_file(population, name), files[name]


def _blobs(manifest: ReleaseManifest) -> list[BlobRef]:
    packed = [packed.blob for packed in manifest.packed]
    smaller = any(not item.base_sha256 and item.blob.num_bytes < manifest.model.num_bytes for item in manifest.packed)
    # A device never asks for the plain file where a packed one needs nothing but unpacking.
    return [*([] if smaller else [manifest.model]), *packed, manifest.golden.blob]


def _pieces(data: bytes, ref: BlobRef, population: str) -> Iterator[tuple[str, bytes]]:
    blob = split_blob(data, piece_bytes=ref.piece_bytes)
    for index in range(ref.num_pieces):
        yield release_piece(population, ref.sha256, index), blob.piece(index)
    if ref.num_pieces > 1:
        yield release_piece_list(population, ref.sha256), blob.piece_digests


def _rank(name: str) -> tuple[int, str]:
    return next(rank for rank, pattern in enumerate(_ORDER) if re.fullmatch(pattern, name)), name
