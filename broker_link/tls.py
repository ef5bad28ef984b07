"""What a connection over TLS needs besides the broker's address, and when a connection may do without TLS."""

import dataclasses
import ipaddress
import ssl

from broker_link.broker_url import BrokerUrl
from broker_link.errors import PlaintextRefused

__all__ = ["ClientCertificate", "client_context", "is_loopback", "proved_unix_s", "refuse_plaintext"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ClientCertificate:
    """PEM files by which we prove to the broker who we are."""

    cert_file: str
    key_file: str

    def __post_init__(self) -> None:
        """Checks that both are named.

        Raises:
            ValueError: One of them is missing.
        """
        if not self.cert_file or not self.key_file:
            raise ValueError("cert_file and key_file belong together: give both or neither")


def client_context(ca_file: str | None, certificate: ClientCertificate | None) -> ssl.SSLContext:
    """TLS 1.2 or later; the broker's certificate must lead to a trusted CA and bear the name that we connected to.

    Args:
        ca_file: PEM file with the only CA to trust; the system's CAs if None.
        certificate: Ours, if the broker asks for one.

    Raises:
        OSError: A file cannot be read, or is no certificate or key (``ssl.SSLError`` is an ``OSError``).
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        # Never ask at a terminal for a passphrase: a service has none, and would wait for ever.
        context.load_cert_chain(certificate.cert_file, certificate.key_file, password=lambda: "")
    return context


def proved_unix_s(connection: object) -> float | None:
    """When the peer's verified certificate began to be valid: no clock may be earlier. Never raises.

    Args:
        connection: A socket after its handshake; one without TLS, or none, proves nothing.
    """
    if not isinstance(connection, ssl.SSLSocket) or connection.context.verify_mode is not ssl.CERT_REQUIRED:
        return None
    try:
        certificate = connection.getpeercert() or {}
        return float(ssl.cert_time_to_seconds(str(certificate["notBefore"])))
    except (KeyError, ValueError, OSError):
        return None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name: no name service is asked, for its answer may be forged."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_plaintext(url: BrokerUrl, *, remedy: str) -> None:
    """Lets pass what is encrypted or never leaves this machine.

    Args:
        url: The broker's address.
        remedy: How whoever runs this can allow it all the same.

    Raises:
        PlaintextRefused: Anything else.
    """
    if not url.is_tls and not is_loopback(url.host):
        raise PlaintextRefused(
            f"{url} sends everything, passwords too, readable through the network: use mqtts://; {remedy}"
        )
