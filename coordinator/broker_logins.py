"""The logins in a broker's files, as the ACL probe uses them: those that are there, or ones made for an hour."""

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from broker_link.broker_url import parse_broker_url, url_with_login
from broker_link.tls import ClientCertificate
from coordinator.acl_probe import BrokerLogin
from coordinator.broker_setup import login_kind, open_authority
from coordinator.errors import BrokerFilesUnusable
from coordinator.mosquitto_files import LoginKind
from coordinator.private_ca import issue_client

__all__ = ["logins_to_probe"]

_COORDINATOR: Final = "coordinator"
_NAMES: Final = ("acl-probe", "acl-probe-1", "acl-probe-10")
"""Each begins with the one before: rights that go by the beginning of a name give themselves away."""
_LIFE: Final = dt.timedelta(hours=1)


def logins_to_probe(directory: Path, *, url: str, scratch: Path, now: dt.datetime) -> Mapping[str, BrokerLogin]:
    """The coordinator's login, and those of at least two devices that disturb nobody if that can be.

    Args:
        directory: Of the broker's files. With certificates, device names that nobody has get one for an hour; a broker
            with passwords would have to be told of new ones, so the devices' own are used.
        url: The broker's address, without a login.
        scratch: An empty directory, for its owner alone, that is deleted afterwards.
        now: With its time zone.

    Raises:
        BrokerFilesUnusable: A file is missing, or there are passwords for fewer than two devices.
        InvalidBrokerUrl: The address cannot be understood.
    """
    found = {_COORDINATOR: _stored(directory / _COORDINATOR, _COORDINATOR, url)}
    if login_kind(directory) is LoginKind.PASSWORDS:
        homes = sorted(path for path in (directory / "devices").glob("*") if not path.name.startswith("."))
        if len(homes) < 2:  # noqa: PLR2004 - one has no other to disturb
            raise BrokerFilesUnusable(f"{directory} has passwords for fewer than two devices: broker-login makes them")
        return found | {home.name: _stored(home, home.name, url) for home in homes}
    authority = open_authority(directory)
    for name in _NAMES:
        issued = issue_client(authority, name, now=now, valid=_LIFE)
        paths = scratch / f"{name}.crt", scratch / f"{name}.key"
        for path, data in zip(paths, (issued.certificate, issued.key), strict=True):
            path.write_bytes(data)
        certificate = ClientCertificate(cert_file=str(paths[0]), key_file=str(paths[1]))
        found[name] = BrokerLogin(url=url, ca_file=str(directory / "authority" / "ca.crt"), certificate=certificate)
    return found


def _stored(home: Path, name: str, url: str) -> BrokerLogin:
    ca_file, password = str(home / "ca.crt"), home / "password"
    stem = name if name == _COORDINATOR else "device"
    certificate = home / f"{stem}.crt", home / f"{stem}.key"
    try:
        if password.is_file():
            secret = password.read_text(encoding="utf-8").rstrip("\r\n")
            return BrokerLogin(
                url=url_with_login(parse_broker_url(url), username=name, password=secret), ca_file=ca_file
            )
        for path in certificate:
            path.open("rb").close()
    except (OSError, UnicodeDecodeError) as error:
        raise BrokerFilesUnusable(f"{home} holds no login: {error}") from error
    own = ClientCertificate(cert_file=str(certificate[0]), key_file=str(certificate[1]))
    return BrokerLogin(url=url, ca_file=ca_file, certificate=own)
