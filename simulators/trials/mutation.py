"""Bad inputs from good ones: what a failing disk, a broken sender and an attacker do to bytes."""

import random
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["mutated"]

_INTERESTING: Final = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + bytes(7),
    b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xcb\x7f\xf8" + bytes(6),
    b"NaN", b"1e999", b"-1", b"9" * 400, b'"', b"{", b"\\u0000", b"\r\n", b"\xe2\x80\xae",
)  # fmt: skip
"""Lengths that lie (MessagePack, JSON, big-endian), numbers that are none, and characters with a meaning."""
_NESTED: Final = (b"\x91", b"\x81\xa1a", b"[", b'{"a":', b"(")


def mutated(rng: random.Random, corpus: Sequence[bytes], max_bytes: int) -> bytes:
    """One bad input: a member of the corpus, changed one to four times."""
    data = rng.choice(corpus)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        data = rng.choice(_CHANGES)(rng, data, corpus)
    return data[:max_bytes]


def _flip(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    del corpus
    if not data:
        return rng.randbytes(1)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    del corpus
    at, value = rng.randint(0, len(data)), rng.choice(_INTERESTING)
    return data[:at] + value + data[at + len(value) :]


def _insert(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    del corpus
    at = rng.randint(0, len(data))
    return data[:at] + rng.choice((rng.choice(_INTERESTING), rng.randbytes(rng.randint(1, 9)))) + data[at:]


def _truncate(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    del corpus
    at = rng.randint(0, len(data))
    return rng.choice((data[:at], data[at:], data[:at] + data[at + rng.randint(0, 8) :]))


def _splice(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    other = rng.choice(corpus)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _repeat(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    del corpus
    start = rng.randint(0, len(data))
    part = data[start : start + rng.randint(1, 32)]
    return data[:start] + part * rng.choice((2, 3, 50)) + data[start:]


def _nest(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    del corpus
    at = rng.choice((0, 3, rng.randint(0, len(data))))
    return data[:at] + rng.choice(_NESTED) * rng.choice((3, 200, 2000)) + data[at:]


_CHANGES: Final[tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...]] = (
    _flip, _flip, _overwrite, _overwrite, _insert, _truncate, _splice, _repeat, _nest,
)  # fmt: skip
