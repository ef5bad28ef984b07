"""The broker's address with the login that the configuration names apart from it."""

import urllib.parse
from pathlib import Path

from broker_link.broker_url import parse_broker_url
from edge_client.config import BrokerSection
from edge_client.errors import ConfigError

__all__ = ["broker_url_with_login"]


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
    url = parse_broker_url(section.url)
    scheme = "mqtts" if url.is_tls else "mqtt"
    host = f"[{url.host}]" if ":" in url.host else url.host
    login = f"{urllib.parse.quote(section.username, safe='')}:{urllib.parse.quote(password, safe='')}"
    return f"{scheme}://{login}@{host}:{url.port}"
