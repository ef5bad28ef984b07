"""Addresses of brokers: ``mqtt://[user[:password]@]host[:port]`` and ``mqtts://`` for TLS."""

import dataclasses
import urllib.parse

from broker_link.errors import InvalidBrokerUrl

__all__ = ["BrokerUrl", "parse_broker_url", "url_with_login"]

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BrokerUrl:
    """Where a broker is and how to log in."""

    host: str
    port: int
    is_tls: bool
    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)

    def __str__(self) -> str:
        """The address without the password."""
        scheme = "mqtts" if self.is_tls else "mqtt"
        user = f"{self.username}@" if self.username else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{user}{host}:{self.port}"


def parse_broker_url(url: str) -> BrokerUrl:
    """Parses a broker's address.

    Raises:
        InvalidBrokerUrl: Unknown scheme, no host, a port outside 1 to 65535, or a path.
    """
    expected = "use mqtt://host:port, or mqtts://host:port for TLS"
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise InvalidBrokerUrl(f"the broker's address cannot be read: {error}; {expected}") from error
    # What is shown may end in a log: never with the login in it.
    shown = url if "@" not in url else f"{parts.scheme}://...@{url.rpartition('@')[2]}"
    if parts.scheme not in _DEFAULT_PORTS:
        raise InvalidBrokerUrl(f"broker address {shown!r} has no mqtt:// or mqtts:// in front; {expected}")
    try:
        port = parts.port
    except ValueError as error:
        raise InvalidBrokerUrl(f"broker address {shown!r}: {error}; {expected}") from error
    if not parts.hostname or parts.path.strip("/") or port == 0:
        raise InvalidBrokerUrl(f"broker address {shown!r} is not a host and a port; {expected}")
    return BrokerUrl(
        host=parts.hostname,
        port=port or _DEFAULT_PORTS[parts.scheme],
        is_tls=parts.scheme == "mqtts",
        username=urllib.parse.unquote(parts.username) if parts.username else None,
        password=urllib.parse.unquote(parts.password) if parts.password else None,
    )


def url_with_login(url: BrokerUrl, *, username: str, password: str) -> str:
    """The same address with this login. It holds the password in the clear: for a link's ears alone."""
    scheme = "mqtts" if url.is_tls else "mqtt"
    host = f"[{url.host}]" if ":" in url.host else url.host
    login = f"{urllib.parse.quote(username, safe='')}:{urllib.parse.quote(password, safe='')}"
    return f"{scheme}://{login}@{host}:{url.port}"
