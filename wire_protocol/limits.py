"""Every size limit of the protocol, in one place. Checked before anything is decoded.

The default piece size keeps a whole MQTT packet (topic, envelope and piece) under 128 KiB, the smallest
message limit among the hosted brokers this project wants to run on (AWS IoT Core).
"""

from typing import Final

__all__ = [
    "DEFAULT_PIECE_BYTES",
    "MAX_BLOB_BYTES",
    "MAX_CONTROL_BYTES",
    "MAX_HEALTH_REASON_CHARS",
    "MAX_PIECES",
    "MAX_PIECE_BYTES",
    "MAX_TENSORS",
    "MIN_PIECE_BYTES",
    "PIECE_OVERHEAD_BYTES",
]

DEFAULT_PIECE_BYTES: Final = 120 * 1024
"""Bytes of payload in one piece unless the blob says otherwise."""

MIN_PIECE_BYTES: Final = 1024
MAX_PIECE_BYTES: Final = 1024 * 1024

PIECE_OVERHEAD_BYTES: Final = 512
"""What a piece message may be longer than its payload: envelope, field names, hash, index."""

MAX_BLOB_BYTES: Final = 256 * 1024 * 1024
"""Largest blob (model file, checkpoint, client update)."""

MAX_PIECES: Final = 3072
"""Most pieces in a blob: their digests (32 bytes each) must fit in one control message."""

MAX_CONTROL_BYTES: Final = 120 * 1024
"""Largest message that is not a piece, encoded."""

MAX_HEALTH_REASON_CHARS: Final = 200
"""Longest reason in a device's health message."""

MAX_TENSORS: Final = 4096
"""Most tensors in a checkpoint or client update."""
