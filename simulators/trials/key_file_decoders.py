"""The decoders that read the keys of confidential sums from files."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edge_client.checked_file import seal
from edge_client.errors import IdentityError, StorageError
from edge_client.opener.encryption_key_file import EncryptionKeyFile, KeyMaterial
from edge_client.sealing_key import SealingKeyStore
from edge_client.state_writer import StateWriter
from simulators.trials.decoders import Decoder

__all__ = ["key_file_decoders"]

_SHARE: Final = 0.12


def key_file_decoders(scratch: Path) -> list[Decoder]:
    """The decoders, on an empty directory that is theirs."""
    return [_sealing_key_decoder(scratch), _encryption_key_decoder(scratch)]


def _sealing_key_decoder(scratch: Path) -> Decoder:
    directory = scratch / "sealing"
    directory.mkdir()
    store = SealingKeyStore(directory, writer=StateWriter())
    store.load_or_make()
    return Decoder(
        name="sealing key file",
        decode=_on_file(directory / "sealing.key", lambda path: store.load_or_make()),  # noqa: ARG005
        documented=(IdentityError, StorageError),
        seeds=[(directory / "sealing.key").read_bytes()],
        covers=("edge_client.sealing_key.SealingKeyStore.load_or_make",),
        share=_SHARE,
    )


def _encryption_key_decoder(scratch: Path) -> Decoder:
    """Read alone: what makes keys if there are none reads in the same way."""
    directory = scratch / "encryption"
    directory.mkdir()
    path, store = directory / "encryption.key", EncryptionKeyFile(directory, writer=StateWriter())
    material = KeyMaterial(secret_key=b"secret", public_key=b"public", tag_secret=bytes(32))
    path.touch(mode=0o600)
    return Decoder(
        name="encryption key file",
        decode=_on_file(path, lambda path: store.load()),  # noqa: ARG005
        documented=(IdentityError,),
        seeds=[seal(b"EK", msgspec.msgpack.encode(material))],
        covers=("edge_client.opener.encryption_key_file.EncryptionKeyFile.load_or_make",),
        share=_SHARE,
    )


def _on_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return decode
