"""Everything a fleet's broker needs, made on the operator's machine: one directory for each machine that it goes to.

    broker/       to the broker: mosquitto.conf, acl, ca.crt, server.crt, server.key, and passwords if clients have them
    coordinator/  to the coordinator: ca.crt, and coordinator.crt with coordinator.key, or password
    devices/ID/   to that device: ca.crt, and device.crt with device.key, or password
    authority/    stays here, off the network: ca.key makes further logins

A login only opens the broker's door. Whose report counts is decided by the device's own key and the roster.
"""

import base64
import dataclasses
import datetime as dt
import ipaddress
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from coordinator.durable_files import write_durably
from coordinator.errors import BrokerFilesUnusable, InvalidConfig
from coordinator.mosquitto_files import (
    ACL_FILE,
    CONFIG_FILE,
    PASSWORDS_FILE,
    LoginKind,
    mosquitto_config,
    packaged_text,
    password_line,
)
from coordinator.private_ca import Authority, issue_client, issue_server, make_authority, read_authority
from wire_protocol.identifiers import checked_identifier

__all__ = [
    "BrokerSetup",
    "check_new_login",
    "issue_login",
    "login_kind",
    "make_broker_files",
    "open_authority",
    "write_directory",
]

_COORDINATOR: Final = "coordinator"
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_PASSWORD_BYTES: Final = 32
_SALT_BYTES: Final = 12
_PUBLIC: Final = 0o644
_SECRET: Final = 0o600
_PUBLIC_NAMES: Final = frozenset({"ca.crt", "server.crt", "coordinator.crt", "device.crt", ACL_FILE, CONFIG_FILE})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BrokerSetup:
    """What the operator wants."""

    hosts: tuple[str, ...]
    """Names and addresses by which clients reach the broker; its certificate has them."""
    place: PurePosixPath
    """Where ``broker/`` will be when Mosquitto reads it."""
    port: int = 8883
    bind: str = ""
    logins: LoginKind = LoginKind.CERTIFICATES
    valid: dt.timedelta = dt.timedelta(days=3650)

    def __post_init__(self) -> None:
        """Checks hosts and validity.

        Raises:
            InvalidConfig: No host, one that is no name or address, or no time.
        """
        if not self.hosts or not self.valid > dt.timedelta(0):
            raise InvalidConfig("a broker needs a host name or address, and certificates need some time")
        for host in self.hosts:
            if not _HOST.fullmatch(host) and not _is_address(host):
                raise InvalidConfig(f"{host!r} is no host name or address: use such as broker.example or 192.0.2.7")


def make_broker_files(
    setup: BrokerSetup, *, now: dt.datetime, random_bytes: Callable[[int], bytes]
) -> dict[str, bytes]:
    """Every file of a new broker, by path; nothing is written.

    Args:
        setup: What is wanted.
        now: With its time zone.
        random_bytes: ``os.urandom`` in production. Private keys come from the operating system in any case.

    Raises:
        InvalidConfig: What is wanted cannot be had.
    """
    authority = make_authority("flockwise fleet", now=now, valid_days=setup.valid.days + 1)
    server = issue_server(authority, setup.hosts, now=now, valid=setup.valid)
    files = {
        f"broker/{CONFIG_FILE}": mosquitto_config(
            setup.logins, place=setup.place, port=setup.port, bind=setup.bind
        ).encode(),
        f"broker/{ACL_FILE}": packaged_text(ACL_FILE).encode(),
        "broker/ca.crt": authority.pem.certificate,
        "broker/server.crt": server.certificate,
        "broker/server.key": server.key,
        "authority/ca.crt": authority.pem.certificate,
        "authority/ca.key": authority.pem.key,
    }
    if setup.logins is LoginKind.PASSWORDS:
        files[f"broker/{PASSWORDS_FILE}"] = b""
    login, line = _login(authority, setup.logins, _COORDINATOR, (now, setup.valid), random_bytes)
    if line:
        files[f"broker/{PASSWORDS_FILE}"] = line.encode()
    return files | {f"{_COORDINATOR}/{name}": data for name, data in login.items()}


def login_kind(directory: Path) -> LoginKind:
    """How clients log in at the broker whose files these are.

    Raises:
        BrokerFilesUnusable: They are none.
    """
    if not (directory / "broker" / CONFIG_FILE).is_file():
        raise BrokerFilesUnusable(
            f"{directory} holds no broker's files: flockwise coordinator broker-config makes them"
        )
    return LoginKind.PASSWORDS if (directory / "broker" / PASSWORDS_FILE).is_file() else LoginKind.CERTIFICATES


def open_authority(directory: Path) -> Authority:
    """The authority of a broker's files.

    Raises:
        BrokerFilesUnusable: It is not there, or damaged.
    """
    try:
        home = directory / "authority"
        return read_authority((home / "ca.crt").read_bytes(), (home / "ca.key").read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise BrokerFilesUnusable(f"the authority in {directory / 'authority'} cannot be used: {error}") from error


def issue_login(directory: Path, device_id: str, *, now: dt.datetime, random_bytes: Callable[[int], bytes]) -> Path:
    """Makes a device's login at the broker; returns the directory that goes to the device.

    Args:
        directory: Of the broker's files.
        device_id: Whose.
        now: With its time zone.
        random_bytes: ``os.urandom`` in production.

    Raises:
        InvalidIdentifier: An id that is not allowed.
        InvalidConfig: The coordinator's id.
        BrokerFilesUnusable: The broker's files are not usable, or the device has a login.
    """
    check_new_login(directory, device_id)
    kind, authority = login_kind(directory), open_authority(directory)
    valid = authority.certificate.not_valid_after_utc - now
    files, line = _login(authority, kind, device_id, (now, valid), random_bytes)
    home = directory / "devices" / device_id
    if line:
        # First: a password that the broker does not know would be a riddle, one that nobody has is none.
        passwords = directory / "broker" / PASSWORDS_FILE
        kept = [old for old in passwords.read_text().splitlines(keepends=True) if old.partition(":")[0] != device_id]
        write_durably(passwords, "".join([*kept, line]).encode(), mode=_SECRET)
    write_directory(home, files)
    return home


def check_new_login(directory: Path, device_id: str) -> None:
    """Whether a login can be made for a device; writes nothing.

    Raises:
        InvalidIdentifier: An id that is not allowed.
        InvalidConfig: The coordinator's id.
        BrokerFilesUnusable: The broker's files are not usable, or the device has a login.
    """
    checked_identifier(device_id, kind="device")
    if device_id == _COORDINATOR:
        raise InvalidConfig(f"no device may be called {_COORDINATOR}: the broker's rights go by the name")
    login_kind(directory)
    open_authority(directory)
    home = directory / "devices" / device_id
    if home.exists():
        raise BrokerFilesUnusable(f"{home} is there already: delete it to make that device a new login")


def write_directory(directory: Path, files: Mapping[str, bytes]) -> None:
    """Writes a new directory, whole or not at all; keys and passwords for their owner alone.

    Raises:
        BrokerFilesUnusable: It is there already, or cannot be written.
    """
    partial = directory.with_name(f".{directory.name}.part-{os.getpid()}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.mkdir(mode=0o700)
        for name, data in files.items():
            path = partial / name
            path.parent.mkdir(exist_ok=True, mode=0o700)
            mode = _PUBLIC if path.name in _PUBLIC_NAMES else _SECRET
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                os.fchmod(stream.fileno(), mode)  # whatever the umask says
                stream.write(data)
        # Onto an empty directory this works, onto any other not: nothing is ever overwritten.
        partial.rename(directory)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise BrokerFilesUnusable(f"{directory} cannot be made: {error.strerror}; nothing was changed") from error


def _login(
    authority: Authority,
    kind: LoginKind,
    username: str,
    validity: tuple[dt.datetime, dt.timedelta],
    random_bytes: Callable[[int], bytes],
) -> tuple[dict[str, bytes], str]:
    """The files of one login, and its line for the broker's password file (empty with certificates)."""
    now, valid = validity
    name = username if username == _COORDINATOR else "device"
    files = {"ca.crt": authority.pem.certificate}
    if kind is LoginKind.CERTIFICATES:
        issued = issue_client(authority, username, now=now, valid=valid)
        return files | {f"{name}.crt": issued.certificate, f"{name}.key": issued.key}, ""
    password = base64.urlsafe_b64encode(random_bytes(_PASSWORD_BYTES)).decode().rstrip("=")
    line = password_line(username, password, salt=random_bytes(_SALT_BYTES))
    return files | {"password": f"{password}\n".encode()}, line


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
