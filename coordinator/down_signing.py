"""The coordinator's signature under what it says to devices: tasks, assignments (and so plans and checkpoints), receipts.

The envelope is the devices' own (`wire_protocol.signed`), in a domain of its own. Pieces and piece lists go unsigned: their
hashes stand in a message that is signed. The key is made at the first start and stays in the state directory; devices
are given its public half by their owner (``broker.coordinator_key``).
"""

import base64
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.durable_files import write_durably
from coordinator.errors import InvalidConfig, KeyFileUnusable
from coordinator.key_files import load_or_make_key
from wire_protocol.messages import Piece, PieceList, message_kind
from wire_protocol.signed import COORDINATOR_DOMAIN, SignedMessage, bytes_to_sign, frame_signed

__all__ = ["DownSigner", "load_signer", "public_key_text"]

_KEY_FILE: Final = "coordinator.key"
_EPOCH_FILE: Final = "coordinator.epoch"
_PUBLIC_FILE: Final = "coordinator.pub"
_UNSIGNED: Final = frozenset({message_kind(Piece), message_kind(PieceList)})


class DownSigner:
    """Signs for one life of the coordinator.

    Args:
        key: The coordinator's.
        epoch: Higher than that of any earlier life.
    """

    def __init__(self, key: Ed25519PrivateKey, *, epoch: int) -> None:
        self._key = key
        self._epoch = epoch
        self._counter = 0

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def seal(self, topic: str, message: bytes) -> bytes:
        """The bytes to publish: in an envelope, unless it is a piece or a list of pieces, or nothing at all."""
        if not message or topic.rpartition("/")[2] in _UNSIGNED:
            return message
        self._counter += 1
        statement = bytes_to_sign(
            topic, epoch=self._epoch, counter=self._counter, message=message, domain=COORDINATOR_DOMAIN
        )
        return frame_signed(
            SignedMessage(
                epoch=self._epoch, counter=self._counter, signature=self._key.sign(statement), message=message
            )
        )


def load_signer(state_dir: Path) -> DownSigner:
    """The signer of a state directory, in a new epoch; its key is made if there is none.

    Raises:
        InvalidConfig: The key or the epoch cannot be read.
        OSError: They cannot be written.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    try:
        key = load_or_make_key(state_dir / _KEY_FILE)
    except KeyFileUnusable as error:
        raise InvalidConfig(f"the coordinator cannot sign: {error}") from error
    epoch_path = state_dir / _EPOCH_FILE
    try:
        epoch = int(epoch_path.read_text()) + 1 if epoch_path.exists() else 1
    except ValueError as error:
        raise InvalidConfig(
            f"{epoch_path} holds no number; write a higher one than it ever held, or devices refuse what is said"
        ) from error
    write_durably(epoch_path, b"%d\n" % epoch)
    write_durably(state_dir / _PUBLIC_FILE, public_key_text(key.public_key().public_bytes_raw()).encode() + b"\n")
    return DownSigner(key, epoch=epoch)


def public_key_text(key: bytes) -> str:
    """A public key as devices' configuration has it."""
    return base64.b64encode(key).decode()
