"""Errors of the wire protocol.

    WireError
    ├── MalformedMessage      the bytes are not a message of this protocol
    ├── OversizedMessage      the bytes are longer than the declared limit; nothing was decoded
    ├── UnsupportedVersion    a well-formed envelope of a protocol version this side does not speak
    ├── InvalidIdentifier     a device, population or task id with characters outside the allowed set
    ├── TensorMismatch        tensors whose names, dtypes or shapes are not the ones agreed in the plan
    ├── NonFiniteTensor       a tensor that holds NaN or an infinity
    └── BlobError             a piece, piece list or blob that does not match its hash or size

All are the *sender's* fault and permanent: the same bytes will fail again. None is retried.
"""

__all__ = [
    "BlobError",
    "InvalidIdentifier",
    "MalformedMessage",
    "NonFiniteTensor",
    "OversizedMessage",
    "TensorMismatch",
    "UnsupportedVersion",
    "WireError",
]


class WireError(Exception):
    """Base of everything the decoders of this package raise on bad input."""


class MalformedMessage(WireError):
    """The bytes are not a message of this protocol."""


class OversizedMessage(WireError):
    """The bytes are longer than the limit for their kind; nothing was decoded."""


class UnsupportedVersion(WireError):
    """The envelope names a protocol version this side does not speak."""


class InvalidIdentifier(WireError):
    """An id holds characters outside the allowed set, or is too long."""


class TensorMismatch(WireError):
    """Tensor names, dtypes or shapes differ from the agreed specification."""


class NonFiniteTensor(WireError):
    """A tensor holds NaN or an infinity."""


class BlobError(WireError):
    """A piece, piece list or blob does not match its hash or its size."""
