"""An envelope for small state files: their kind, and a checksum over the rest. No I/O.

``FW``, two letters for the kind, one version byte, the SHA-256 of the body, the body. A flipped bit, a truncated file and a
file of another kind are all found before anything is decoded.
"""

import hashlib
from typing import Final

from edge_client.errors import CorruptState
from wire_protocol.blobs import DIGEST_BYTES

__all__ = ["SEAL_BYTES", "seal", "unseal"]

_VERSION: Final = b"\x01"
_KIND_BYTES: Final = 2
_DIGEST_AT: Final = 2 + _KIND_BYTES + len(_VERSION)
SEAL_BYTES: Final = _DIGEST_AT + DIGEST_BYTES
"""What the envelope adds to a body."""


def seal(kind: bytes, body: bytes) -> bytes:
    """Puts a body into its envelope.

    Raises:
        ValueError: ``kind`` is not two bytes.
    """
    if len(kind) != _KIND_BYTES:
        raise ValueError(f"a kind of file has {_KIND_BYTES} letters, not {kind!r}")
    return b"FW" + kind + _VERSION + hashlib.sha256(body).digest() + body


def unseal(kind: bytes, data: bytes, *, max_bytes: int) -> memoryview:
    """The body of a file.

    Raises:
        CorruptState: It is no undamaged file of this kind, or is longer than ``max_bytes``.
    """
    if len(data) > max_bytes:
        raise CorruptState(f"{len(data)} bytes or more; no such file is longer than {max_bytes}")
    if not data.startswith(b"FW" + kind + _VERSION):
        raise CorruptState(f"{len(data)} bytes that are no file of this kind and version")
    body = memoryview(data)[SEAL_BYTES:]
    if hashlib.sha256(body).digest() != data[_DIGEST_AT:SEAL_BYTES]:
        raise CorruptState("its checksum is wrong")
    return body
