"""Private Ed25519 keys in PEM files: made once, for their owner alone; read, or refused with one clear error."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.durable_files import write_durably
from coordinator.errors import KeyFileUnusable

__all__ = ["load_or_make_key", "make_key_file", "read_key_file"]


def make_key_file(path: Path, *, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Makes a key; when this returns its file, readable by its owner alone, is durable.

    Args:
        path: The file; what is there is replaced.
        passphrase: Encrypts it; None leaves it plain.

    Raises:
        OSError: It cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    protection: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    write_durably(path, pem, mode=0o600)
    return key


def read_key_file(path: Path, *, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Reads a key.

    Raises:
        KeyFileUnusable: It cannot be read, is encrypted with another passphrase, or is a key of another kind.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=passphrase)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileUnusable(f"the key {path} cannot be read: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileUnusable(f"{path} is no Ed25519 key")
    return key


def load_or_make_key(path: Path) -> Ed25519PrivateKey:
    """The key of a file, which is made if it is not there.

    Raises:
        KeyFileUnusable: As `read_key_file`.
        OSError: It cannot be written.
    """
    return read_key_file(path) if path.exists() else make_key_file(path)
