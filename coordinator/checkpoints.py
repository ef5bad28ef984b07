"""Durable server states: numbered files that are either whole or absent, however the machine stops.

A file is ``FWSTATE1``, the header's length (4 bytes, little-endian), a JSON header that names every leaf with its
dtype and shape, the leaves' raw bytes, and the SHA-256 of all that. It is written beside its place, synced, renamed
into it, and the directory synced; `save` returns after that. No pickle, no npz: reading runs no code.
"""

import hashlib
import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec
import numpy as np

from coordinator.aggregation import ServerState
from coordinator.durable_files import write_durably
from coordinator.errors import CheckpointDamaged, CheckpointExists

__all__ = ["CheckpointFiles", "CheckpointStore", "StoredLeaf", "decode_leaves", "encode_leaves"]

_LOG = logging.getLogger(__name__)
_MAGIC: Final = b"FWSTATE1"
_DIGEST_BYTES: Final = 32
_FILE_NAME = re.compile(r"state_(\d{10})\.fwstate")

StoredLeaf: TypeAlias = "np.ndarray[Any, Any] | bytes | str | float | bool | None"
"""What a file can hold: arrays (numbers, bools, strings of bytes), bytes, and plain values (ints included).

A float or a numpy scalar comes back as a 0-d array."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One leaf in the header."""

    name: str
    kind: Literal["array", "strings", "bytes", "value"]
    num_bytes: int = 0
    dtype: str = ""
    """Of an array: numpy's, with its byte order."""
    shape: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    """Of strings: the length of each; numpy's own ``S`` arrays lose zero bytes at the end."""
    value: bool | int | str | None = None
    """Of a plain value. A float is an array: JSON has no infinity."""


def encode_leaves(leaves: Sequence[tuple[str, StoredLeaf]]) -> bytes:
    """Encodes named leaves, in order.

    Raises:
        TypeError: A leaf is none of the kinds that a file can hold.
    """
    entries: list[_Entry] = []
    payload: list[bytes] = []
    for name, leaf in leaves:
        entry, raw = _encode_leaf(name, leaf)
        entries.append(entry)
        payload.append(raw)
    header = msgspec.json.encode(entries)
    body = b"".join((_MAGIC, len(header).to_bytes(4, "little"), header, *payload))
    return body + hashlib.sha256(body).digest()


def _encode_leaf(name: str, leaf: StoredLeaf) -> tuple[_Entry, bytes]:
    if isinstance(leaf, bytes):
        return _Entry(name=name, kind="bytes", num_bytes=len(leaf)), leaf
    if leaf is None or isinstance(leaf, bool | int | str):
        return _Entry(name=name, kind="value", value=leaf), b""
    array = np.asarray(leaf)
    if array.dtype.kind in "biuf":
        dtype = array.dtype.newbyteorder("<")
        raw = np.ascontiguousarray(array, dtype=dtype).tobytes()
        return _Entry(name=name, kind="array", num_bytes=len(raw), dtype=dtype.str, shape=array.shape), raw
    strings = array.ravel().tolist()
    if array.dtype.kind in "SO" and all(isinstance(string, bytes) for string in strings):
        raw = b"".join(strings)
        lengths = tuple(map(len, strings))
        return _Entry(name=name, kind="strings", num_bytes=len(raw), shape=array.shape, lengths=lengths), raw
    raise TypeError(f"{name} cannot be stored: {type(leaf).__name__} of {array.dtype}")


def decode_leaves(data: bytes) -> list[tuple[str, StoredLeaf]]:
    """Decodes what `encode_leaves` made. Arrays are views into ``data``.

    Raises:
        CheckpointDamaged: Truncated, altered, or another kind of file.
    """
    start = len(_MAGIC) + 4
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start + _DIGEST_BYTES:
        raise CheckpointDamaged("not a state file, or cut off in its first bytes")
    view = memoryview(data)
    if hashlib.sha256(view[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise CheckpointDamaged("the content does not match its SHA-256: truncated or altered")
    stop = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    try:
        entries = msgspec.json.decode(view[start:stop], type=list[_Entry])
        return list(_decode_entries(entries, view[stop:-_DIGEST_BYTES]))
    except (msgspec.DecodeError, ValueError, TypeError, SyntaxError, OverflowError, RecursionError) as error:
        raise CheckpointDamaged(f"the header does not fit the content: {error}") from error


def _decode_entries(entries: list[_Entry], payload: memoryview) -> Iterator[tuple[str, StoredLeaf]]:
    offset = 0
    for entry in entries:
        raw = payload[offset : offset + entry.num_bytes]
        offset += entry.num_bytes
        match entry.kind:
            case "value":
                yield entry.name, entry.value
            case "bytes":
                yield entry.name, bytes(raw)
            case "array":
                yield entry.name, np.frombuffer(raw, dtype=entry.dtype).reshape(entry.shape)
            case "strings":
                yield entry.name, _decode_strings(raw, entry)
    if offset != len(payload):
        raise ValueError(f"{len(payload)} bytes of leaves instead of {offset}")


def _decode_strings(raw: memoryview, entry: _Entry) -> "np.ndarray[Any, Any]":
    if len(entry.lengths) != math.prod(entry.shape):
        raise ValueError(f"{len(entry.lengths)} strings for a shape of {entry.shape}")
    strings = np.empty(len(entry.lengths), dtype=object)
    offset = 0
    for index, length in enumerate(entry.lengths):
        strings[index] = bytes(raw[offset : offset + length])
        offset += length
    return strings.reshape(entry.shape)


class CheckpointFiles:
    """Numbered state files in a directory.

    Args:
        directory: Made if it does not exist. What a crash left half-written in it is removed.
        keep: How many of the latest versions stay.
    """

    def __init__(self, directory: Path, *, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError("at least one version must be kept")
        self._directory = directory
        self._keep = keep
        directory.mkdir(parents=True, exist_ok=True)
        for partial in directory.glob("*.part"):
            partial.unlink()

    def versions(self) -> list[int]:
        """Versions in store, oldest first; whether they are whole is known when they are read."""
        matches = [_FILE_NAME.fullmatch(path.name) for path in self._directory.iterdir()]
        return sorted(int(match[1]) for match in matches if match)

    def write(self, version: int, leaves: Sequence[tuple[str, StoredLeaf]]) -> None:
        """Stores a version; when this returns it is durable.

        Raises:
            CheckpointExists: The version is stored already.
        """
        path = self._path(version)
        if path.exists():
            raise CheckpointExists(f"{path} exists; states are never overwritten")
        write_durably(path, encode_leaves(leaves))
        for old in self.versions()[: -self._keep]:
            self._path(old).unlink(missing_ok=True)

    def read(self, version: int) -> list[tuple[str, StoredLeaf]]:
        """Reads a version.

        Raises:
            FileNotFoundError: There is no such version.
            CheckpointDamaged: It is truncated or altered.
        """
        path = self._path(version)
        try:
            return decode_leaves(path.read_bytes())
        except CheckpointDamaged as error:
            raise CheckpointDamaged(f"{path}: {error}") from error

    def read_latest(self) -> tuple[int, list[tuple[str, StoredLeaf]]] | None:
        """The latest version that is whole, or None if there is none.

        A damaged one is renamed to ``*.damaged`` and logged, so that its number can be used again.
        """
        for version in reversed(self.versions()):
            try:
                return version, self.read(version)
            except CheckpointDamaged as error:
                path = self._path(version)
                path.replace(path.with_suffix(".damaged"))
                _LOG.error("checkpoint_damaged version=%d using=the one before reason=%s", version, error)
        return None

    def remove_all(self) -> None:
        """Removes every version."""
        for version in self.versions():
            self._path(version).unlink()

    def _path(self, version: int) -> Path:
        return self._directory / f"state_{version:010d}.fwstate"


class CheckpointStore:
    """Committed server states, by their ``num_commits``.

    Args:
        directory: Made if it does not exist.
        keep: How many of the latest states stay.
    """

    def __init__(self, directory: Path, *, keep: int = 3) -> None:
        self._files = CheckpointFiles(directory, keep=keep)

    def save(self, state: ServerState) -> None:
        """Stores a state; when this returns it is durable.

        Raises:
            CheckpointExists: A state with as many commits is stored already.
        """
        leaves = [(f"leaf/{index}", leaf) for index, leaf in enumerate(state.leaves)]
        self._files.write(state.num_commits, [("num_weights", state.num_weights), *leaves])

    def load_latest(self) -> ServerState | None:
        """The latest state that is whole, or None if there is none; damaged ones are set aside and logged.

        Raises:
            CheckpointDamaged: The file is whole, but not a server state.
        """
        found = self._files.read_latest()
        if found is None:
            return None
        version, ((_, num_weights), *leaves) = found
        arrays = [leaf for _, leaf in leaves if isinstance(leaf, np.ndarray)]
        if not isinstance(num_weights, int) or len(arrays) != len(leaves):
            raise CheckpointDamaged(f"version {version} is no server state; was it stored by a program?")
        # Strings are `S` arrays in a state; the file keeps them as objects because it must not lose zero bytes.
        typed = (array.astype("S") if array.dtype == object else array for array in arrays)
        return ServerState(num_commits=version, num_weights=num_weights, leaves=tuple(typed))
