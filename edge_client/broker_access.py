"""The broker's address with the login that the configuration names apart from it."""

from pathlib import Path

from broker_link.broker_url import parse_broker_url, url_with_login
from broker_link.tls import ClientCertificate
from edge_client.config import BrokerSection
from edge_client.errors import ConfigError

__all__ = ["broker_url_with_login", "client_certificate"]


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
    return url_with_login(parse_broker_url(section.url), username=section.username, password=password)


def client_certificate(section: BrokerSection) -> ClientCertificate | None:
    """The device's certificate for the broker; None if it has none."""
    if not section.cert_file:
        return None
    return ClientCertificate(cert_file=section.cert_file, key_file=section.key_file)
