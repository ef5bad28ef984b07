"""The registry of committed checkpoints: every one is kept, with where it comes from, in a log that cannot be rewritten unseen.

    registry/key.pem             Ed25519, made at the first commit; registry/key.pub is for whoever checks
    registry/log                 one JSON line per entry: {"entry": ..., "previous": ..., "signature": ...}
    registry/<sha256>.safetensors

Each line is signed and names the hash of the line before it: an entry that was changed, taken out or put in breaks the
chain from there on. Who holds the key can write a new log; compare its head (`head`) with one noted elsewhere.
"""

import base64
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from coordinator.durable_files import write_durably
from coordinator.errors import KeyFileUnusable, RegistryDamaged
from coordinator.key_files import load_or_make_key

__all__ = ["CommittedCheckpoint", "ModelRegistry", "read_registry"]

_LOG: Final = "log"
_KEY: Final = "key.pem"
_PUBLIC: Final = "key.pub"
_DOMAIN: Final = b"flockwise model registry 1\x00"
_FIRST: Final = "0" * 64
_MAX_LINE_BYTES: Final = 64 * 1024

_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class CommittedCheckpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One committed round's weights, or what an evaluation round measured of them."""

    kind: Literal["committed", "evaluated"]
    task_id: str
    plan_sha256: _Sha256
    round_id: int
    num_commits: int
    """Committed training rounds up to these weights."""
    checkpoint_sha256: _Sha256
    """Of the safetensors file."""
    parent_sha256: str = ""
    """Of the checkpoint that the round began with; empty for the first."""
    epsilon: float | None = None
    """What a device that took part in every round had been charged by then; None if the task is not private."""
    num_reports: int = 0
    metrics: dict[str, float] = {}
    """Of the round: of a training round the aggregator's, of an evaluation round accuracy, loss and weight_sum."""


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    entry: msgspec.Raw
    previous: _Sha256
    signature: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Chain:
    entries: tuple[CommittedCheckpoint, ...]
    head: str


class ModelRegistry:
    """A registry that is written to. One process at a time.

    Args:
        directory: Made if it is not there.

    Raises:
        RegistryDamaged: What is there is not whole; move it away, or back.
        OSError: It cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self._key = load_or_make_key(directory / _KEY)
        except KeyFileUnusable as error:
            raise RegistryDamaged(f"the registry cannot be signed: {error}") from error
        public = self._key.public_key().public_bytes_raw()
        if not (directory / _PUBLIC).exists():
            write_durably(directory / _PUBLIC, base64.b64encode(public) + b"\n")
        _cut_torn_line(directory / _LOG)
        self._chain = _read_chain(directory / _LOG, self._key.public_key())

    @property
    def entries(self) -> tuple[CommittedCheckpoint, ...]:
        """Everything so far, oldest first."""
        return self._chain.entries

    @property
    def head(self) -> str:
        """Hash of the last line: it stands for the whole log."""
        return self._chain.head

    def commit(self, entry: CommittedCheckpoint, checkpoint: bytes) -> None:
        """Keeps a checkpoint; when this returns file and entry are durable. What is there already is not entered twice.

        Args:
            entry: Of the kind ``committed``.
            checkpoint: The safetensors file.

        Raises:
            ValueError: The entry is about other bytes.
            OSError: It cannot be written; the log is as it was.
        """
        if hashlib.sha256(checkpoint).hexdigest() != entry.checkpoint_sha256:
            raise ValueError("the entry names another checkpoint")
        path = self._directory / f"{entry.checkpoint_sha256}.safetensors"
        if not path.exists():
            write_durably(path, checkpoint)
        self.note(entry)

    def note(self, entry: CommittedCheckpoint) -> None:
        """Adds an entry, unless it stands there already (a commit that was noted before a death and is noted again).

        Raises:
            OSError: It cannot be written; the log is as it was.
        """
        if entry in self._chain.entries:
            return
        line = _signed_line(entry, self._chain.head, self._key)
        descriptor = os.open(self._directory / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, line + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._chain = _Chain(entries=(*self._chain.entries, entry), head=hashlib.sha256(line).hexdigest())


def read_registry(directory: Path) -> tuple[tuple[CommittedCheckpoint, ...], str]:
    """Reads a registry and checks it from the first line to the last, and every checkpoint file by its hash.

    Returns:
        The entries, oldest first, and the head.

    Raises:
        RegistryDamaged: A line or a file is not what was written, or there is no registry.
    """
    try:
        public = Ed25519PublicKey.from_public_bytes(
            base64.b64decode((directory / _PUBLIC).read_bytes(), validate=False)
        )
    except (OSError, ValueError) as error:
        raise RegistryDamaged(f"{directory} holds no readable registry: {error}") from error
    chain = _read_chain(directory / _LOG, public)
    for sha256 in sorted({entry.checkpoint_sha256 for entry in chain.entries if entry.kind == "committed"}):
        try:
            is_whole = hashlib.sha256((directory / f"{sha256}.safetensors").read_bytes()).hexdigest() == sha256
        except OSError as error:
            raise RegistryDamaged(f"a checkpoint of {directory} is gone: {error}") from error
        if not is_whole:
            raise RegistryDamaged(f"the checkpoint {sha256} in {directory} is not what was committed")
    return chain.entries, chain.head


def _signed_line(entry: CommittedCheckpoint, previous: str, key: Ed25519PrivateKey) -> bytes:
    body = msgspec.json.encode(entry)
    signature = key.sign(_statement(body, previous))
    return msgspec.json.encode(
        _Line(entry=msgspec.Raw(body), previous=previous, signature=base64.b64encode(signature).decode())
    )


def _statement(body: bytes, previous: str) -> bytes:
    return _DOMAIN + bytes.fromhex(previous) + body


def _read_chain(path: Path, public: Ed25519PublicKey) -> _Chain:
    entries: list[CommittedCheckpoint] = []
    head = _FIRST
    if not path.exists():
        return _Chain(entries=(), head=head)
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            entry = _checked(line, head, public)
        except (msgspec.MsgspecError, ValueError, InvalidSignature, RecursionError) as error:
            raise RegistryDamaged(f"line {number} of {path} is not what was written there: {error!r}") from error
        entries.append(entry)
        head = hashlib.sha256(line).hexdigest()
    return _Chain(entries=tuple(entries), head=head)


def _checked(line: bytes, head: str, public: Ed25519PublicKey) -> CommittedCheckpoint:
    if len(line) > _MAX_LINE_BYTES:
        raise ValueError("the line is too long")
    parsed = msgspec.json.decode(line, type=_Line)
    if parsed.previous != head:
        raise ValueError("it does not follow the line before it")
    body = bytes(parsed.entry)
    public.verify(base64.b64decode(parsed.signature, validate=True), _statement(body, head))
    return msgspec.json.decode(body, type=CommittedCheckpoint)


def _cut_torn_line(path: Path) -> None:
    """A line without its end was being written when the machine stopped: nothing was promised for it."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        whole = data[: data.rfind(b"\n") + 1]
        write_durably(path, whole)
