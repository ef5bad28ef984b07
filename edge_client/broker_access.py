"""The broker's address with the login that the configuration names apart from it."""

import logging
from pathlib import Path

from broker_link.broker_url import parse_broker_url, url_with_login
from broker_link.secret_files import is_readable_by_everybody
from broker_link.tls import ClientCertificate
from edge_client.config import BrokerSection
from edge_client.errors import ConfigError

__all__ = ["broker_url_with_login", "client_certificate"]

_LOG = logging.getLogger(__name__)


def broker_url_with_login(section: BrokerSection) -> str:
    """The url that the link takes, with user and password from ``username`` and ``password_file``.

    Raises:
        ConfigError: The password file cannot be read.
    """
    if not section.username:
        return section.url
    try:
        password = Path(section.password_file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"broker.password_file {section.password_file} cannot be read: {error}") from error
    _warn_if_exposed("broker.password_file", section.password_file)
    return url_with_login(parse_broker_url(section.url), username=section.username, password=password)


def client_certificate(section: BrokerSection) -> ClientCertificate | None:
    """The device's certificate for the broker; None if it has none."""
    if not section.cert_file:
        return None
    _warn_if_exposed("broker.key_file", section.key_file)
    return ClientCertificate(cert_file=section.cert_file, key_file=section.key_file)


def _warn_if_exposed(key: str, path: str) -> None:
    """A warning, not a refusal: a device in the field must not fall silent because of a file's mode."""
    if is_readable_by_everybody(path):
        _LOG.warning("secret_exposed key=%s path=%s remedy='chmod 600'", key, path)
