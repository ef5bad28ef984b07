"""The decoders of keys and signed logs on the coordinator's side."""

import datetime as dt
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from coordinator.down_signing import load_signer
from coordinator.errors import CoordinatorError
from coordinator.model_registry import CommittedCheckpoint, ModelRegistry, read_registry
from coordinator.private_ca import make_authority, read_authority
from coordinator.releases.signing_keys import make_key, read_key
from simulators.trials.decoders import Decoder

__all__ = ["SEPARATOR", "coordinator_key_decoders", "on_file"]

SEPARATOR: Final = b"\n--cut--\n"
"""Between the files of an input that stands for several."""
_FEW: Final = 0.12
_VERY_FEW: Final = 0.006


def coordinator_key_decoders(scratch: Path) -> list[Decoder]:
    """Each with files of its own in ``scratch``."""
    return [_authority_decoder(), _signing_key_decoder(scratch), _registry_decoder(scratch), _signer_decoder(scratch)]


def on_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A decoder of a file's path as one of bytes."""

    def decode(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return decode


def _authority_decoder() -> Decoder:
    """The certificate and the key of a fleet's own authority."""
    made = make_authority("fuzz", now=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)).pem
    return Decoder(
        name="authority's files",
        decode=lambda data: read_authority(*_two_parts(data)),
        documented=(ValueError,),
        seeds=[made.certificate + SEPARATOR + made.key],
        covers=("coordinator.private_ca.read_authority",),
        share=_FEW,
    )


def _signing_key_decoder(scratch: Path) -> Decoder:
    """A key file of the release channel."""
    path = scratch / "signing.pem"
    make_key(path)
    return Decoder(
        name="signing key",
        decode=on_file(path, read_key),
        documented=(CoordinatorError,),
        seeds=[path.read_bytes()],
        covers=("coordinator.releases.signing_keys.read_key", "coordinator.key_files.read_key_file"),
        share=_FEW,
    )


def _registry_decoder(scratch: Path) -> Decoder:
    """The signed log of committed checkpoints."""
    directory = scratch / "registry"
    checkpoint = b"weights"
    entry = CommittedCheckpoint(
        kind="committed", task_id="task-1", plan_sha256="0" * 64, round_id=1, num_commits=1,
        checkpoint_sha256=hashlib.sha256(checkpoint).hexdigest(),
    )  # fmt: skip
    ModelRegistry(directory).commit(entry, checkpoint)
    log = directory / "log"
    return Decoder(
        name="model registry",
        decode=on_file(log, lambda path: read_registry(path.parent)),
        documented=(CoordinatorError,),
        seeds=[log.read_bytes()],
        covers=("coordinator.model_registry.read_registry",),
        share=_FEW,
    )


def _two_parts(data: bytes) -> tuple[bytes, bytes]:
    certificate, _, key = data.partition(SEPARATOR)
    return certificate, key


def _signer_decoder(scratch: Path) -> Decoder:
    """The key by which the coordinator signs. Each try makes three files durable."""
    directory = scratch / "signer"
    load_signer(directory)
    path = directory / "coordinator.key"
    return Decoder(
        name="coordinator key",
        decode=on_file(path, lambda file: load_signer(file.parent)),
        documented=(CoordinatorError,),
        seeds=[path.read_bytes()],
        covers=("coordinator.down_signing.load_signer", "coordinator.key_files.load_or_make_key"),
        share=_VERY_FEW,
    )
