"""The texts of a Mosquitto broker for a fleet: its configuration, its ACL, and lines of its password file. Pure.

`deploy/mosquitto` in the source tree is the only place where configuration and ACL are kept; the wheel carries copies.
"""

import base64
import enum
import hashlib
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Final

from coordinator.errors import InvalidConfig

__all__ = [
    "ACL_FILE",
    "CONFIG_FILE",
    "PASSWORDS_FILE",
    "LoginKind",
    "mosquitto_config",
    "packaged_text",
    "password_line",
]

CONFIG_FILE: Final = "mosquitto.conf"
ACL_FILE: Final = "acl"
PASSWORDS_FILE: Final = "passwords"

_LISTENER: Final = "listener 8883\n"
_BY_CERTIFICATE: Final = "require_certificate true\nuse_identity_as_username true\n"
_FILES: Final = ("acl_file acl", "cafile ca.crt", "certfile server.crt", "keyfile server.key")
_ITERATIONS: Final = 101
"""Mosquitto's own number. More would slow the broker at each login and gain nothing: the passwords are 256 random bits."""


class LoginKind(enum.Enum):
    """How devices and coordinator log in at the broker."""

    CERTIFICATES = "certificates"
    PASSWORDS = "passwords"


def packaged_text(name: str) -> str:
    """A file of ``deploy/mosquitto``: `CONFIG_FILE` or `ACL_FILE`."""
    packaged = resources.files("coordinator") / "broker_files" / name
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    # Run from the source tree.
    return (Path(__file__).parent.parent / "deploy" / "mosquitto" / name).read_text(encoding="utf-8")


def mosquitto_config(logins: LoginKind, *, place: PurePosixPath, port: int, bind: str = "") -> str:
    """The broker's configuration.

    Args:
        logins: How clients log in.
        place: The absolute directory that its files will be read from.
        port: Where it listens.
        bind: The only address on which it listens; all if empty.

    Raises:
        InvalidConfig: A place or address that Mosquitto would misread, or no port.
    """
    if not place.is_absolute() or any(character in str(place) for character in "\r\n"):
        raise InvalidConfig(f"{str(place)!r} must be an absolute path on one line")
    if not 0 < port < 2**16 or any(character.isspace() for character in bind):
        raise InvalidConfig("a port is 1 to 65535, and an address to listen on has no spaces")
    text = packaged_text(CONFIG_FILE)
    changes = {_LISTENER: f"listener {port} {bind}".rstrip() + "\n"}
    for line in _FILES:
        key, _, name = line.partition(" ")
        changes[f"\n{line}\n"] = f"\n{key} {place / name}\n"
    if logins is LoginKind.PASSWORDS:
        changes[_BY_CERTIFICATE] = f"password_file {place / PASSWORDS_FILE}\n"
    for old, new in changes.items():
        if text.count(old) != 1:
            raise InvalidConfig(f"the packaged {CONFIG_FILE} has not the line {old.strip()!r}")
        text = text.replace(old, new)
    return text


def password_line(username: str, password: str, *, salt: bytes) -> str:
    """A line of Mosquitto's password file (PBKDF2 with SHA-512, its ``$7$``).

    Args:
        username: No colon in it.
        password: The password, which is not in the line.
        salt: 12 random bytes.
    """
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"{username}:$7${_ITERATIONS}${_base64(salt)}${_base64(digest)}\n"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
