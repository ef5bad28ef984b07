"""What a device sends under homomorphic encryption, and what the coordinator's total is, as bytes: one form for both.

    46 43       "FC"
    01          version
    num_values  u32: d
    tags        4 of u32, each below t: see `sum_tags`
    num_chunks  u32, then for each a length (u32) and the ciphertext as TenSEAL writes it, to the end

There is one way to write it: whatever decodes encodes to the same bytes. Integers are big endian. Nothing here decrypts.
"""

import dataclasses
import struct
from typing import Final

from secure_sum.bfv import CHUNK_VALUES, PLAIN_MODULUS
from secure_sum.errors import MalformedSealed, OversizedSealed

__all__ = [
    "MAX_CHUNK_BYTES",
    "NUM_TAGS",
    "Ciphertext",
    "decode_ciphertext",
    "encode_ciphertext",
    "max_ciphertext_bytes",
]

MAX_CHUNK_BYTES: Final = 132_096
"""Two polynomials of 4,096 coefficients modulo two primes, 8 bytes each, uncompressed, and 1,024 bytes of headers."""
NUM_TAGS: Final = 4

_HEADER: Final = struct.Struct(f">2sBI{NUM_TAGS}II")
_LENGTH: Final = struct.Struct(">I")
_MAGIC: Final = b"FC"
_VERSION: Final = 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ciphertext:
    """Encrypted numbers and the tags that belong to them; decoded, not believed."""

    num_values: int
    tags: tuple[int, ...]
    """[NUM_TAGS] modulo t."""
    chunks: tuple[bytes, ...] = dataclasses.field(repr=False)


def max_ciphertext_bytes(num_values: int) -> int:
    """Most bytes that d encrypted numbers may take."""
    num_chunks = -(-num_values // CHUNK_VALUES)
    return _HEADER.size + num_chunks * (_LENGTH.size + MAX_CHUNK_BYTES)


def encode_ciphertext(ciphertext: Ciphertext) -> bytes:
    """The bytes.

    Raises:
        MalformedSealed: A tag or a length is out of range.
    """
    if len(ciphertext.tags) != NUM_TAGS or not all(0 <= tag < PLAIN_MODULUS for tag in ciphertext.tags):
        raise MalformedSealed(f"{NUM_TAGS} tags below {PLAIN_MODULUS} belong to a ciphertext")
    header = _HEADER.pack(_MAGIC, _VERSION, ciphertext.num_values, *ciphertext.tags, len(ciphertext.chunks))
    return header + b"".join(_LENGTH.pack(len(chunk)) + chunk for chunk in ciphertext.chunks)


def decode_ciphertext(data: bytes, *, num_values: int) -> Ciphertext:
    """Takes the bytes apart; whether they are ciphertexts under the right key, `bfv` says.

    Args:
        data: Bytes from the network.
        num_values: d, as the plan has it.

    Raises:
        OversizedSealed: Longer than d encrypted numbers can be; nothing was parsed.
        MalformedSealed: Not the bytes of d encrypted numbers.
    """
    if len(data) > max_ciphertext_bytes(num_values):
        raise OversizedSealed(f"{len(data)} bytes for {num_values} encrypted numbers")
    if len(data) < _HEADER.size:
        raise MalformedSealed("no encrypted update: too short")
    magic, version, found, *rest = _HEADER.unpack_from(data)
    tags, num_chunks = tuple(rest[:NUM_TAGS]), rest[NUM_TAGS]
    if (magic, version, found) != (_MAGIC, _VERSION, num_values) or not all(tag < PLAIN_MODULUS for tag in tags):
        raise MalformedSealed(f"not {num_values} encrypted numbers of a version that this side knows")
    if num_chunks != -(-num_values // CHUNK_VALUES):
        raise MalformedSealed(f"{num_chunks} ciphertexts for {num_values} numbers")
    chunks, at = [], _HEADER.size
    for _ in range(num_chunks):
        if len(data) < at + _LENGTH.size:
            raise MalformedSealed("an encrypted update that ends before its ciphertexts do")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if not 0 < length <= min(MAX_CHUNK_BYTES, len(data) - at):
            raise MalformedSealed("a ciphertext that is too long, or longer than what is there")
        chunks.append(data[at : at + length])
        at += length
    if at != len(data):
        raise MalformedSealed("bytes after an encrypted update")
    return Ciphertext(num_values=num_values, tags=tags, chunks=tuple(chunks))
