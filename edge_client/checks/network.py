"""What `doctor` checks of the way to the broker: its name, its port, its certificate and ours."""

import datetime as dt
import socket
import ssl
from pathlib import Path
from typing import Final

from cryptography import x509

from broker_link.broker_url import parse_broker_url
from broker_link.tls import client_context, is_loopback
from edge_client.broker_access import client_certificate
from edge_client.doctor import Check, Finding, Subject, fail, ok, skip, warn

__all__ = ["NETWORK_CHECKS", "port_problem"]

_CONNECT_S: Final = 5.0
_ALERT_S: Final = 0.3
"""With TLS 1.3 a broker that does not like our certificate says so after the handshake."""
_SOON: Final = dt.timedelta(days=21)
_EXPIRED, _NOT_YET, _WRONG_NAME, _WRONG_ADDRESS = 10, 9, 62, 64
_UNTRUSTED: Final = {18, 19, 20, 21}


def check_broker_name(subject: Subject) -> Finding:
    """Whether the broker's name leads to an address."""
    url = parse_broker_url(subject.config.broker.url)
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        remedy = "is broker.url right? is there a network? does 'resolvectl query NAME' (or ping) find it?"
        return fail(f"{url.host}: {error}", remedy)
    return ok(f"{url.host} is {', '.join(sorted({str(entry[4][0]) for entry in found})[:4])}")


def check_broker_port(subject: Subject) -> Finding:
    """Whether the broker's port takes a connection."""
    url = parse_broker_url(subject.config.broker.url)
    problem = port_problem(subject)
    if problem:
        remedy = "is the broker running, the port right, a firewall in between? set broker.url"
        return fail(f"{url}: {problem}", remedy)
    return ok(f"{url} takes connections")


def port_problem(subject: Subject) -> str:
    """Why the broker's port takes no connection; empty if it does."""
    try:
        _connect(subject).close()
    except (OSError, UnicodeError) as error:
        return str(error)
    return ""


def check_tls(subject: Subject) -> Finding:
    """Whether the broker's certificate leads to a CA that we trust, bears its name, is in date, and ours suits it."""
    url = parse_broker_url(subject.config.broker.url)
    if not url.is_tls:
        return skip(f"{url} is not encrypted")
    if port_problem(subject):
        return skip("the port takes no connections")
    try:
        version = _shake_hands(subject)[0]
    except ssl.SSLCertVerificationError as error:
        return fail(
            f"the broker's certificate: {error.verify_message}", _certificate_remedy(error.verify_code, url.host)
        )
    except FileNotFoundError as error:
        return fail(f"{error.filename or 'a file of [broker]'} is not there", "set broker.ca_file, cert_file, key_file")
    except PermissionError as error:
        return fail(f"{error.filename or 'a file of [broker]'} cannot be read", "run doctor with sudo")
    except ssl.SSLError as error:
        remedy = (
            "does this port speak TLS (8883 usually does)? does the broker ask for a certificate: broker.cert_file?"
        )
        return fail(f"TLS: {error.reason or error}", remedy)
    except OSError as error:
        remedy = "the broker ends the connection: does this port speak TLS? does it ask for a certificate?"
        return fail(f"TLS: {error}", remedy)
    return ok(f"{version}, the broker's certificate is trusted")


def _certificate_remedy(code: int, host: str) -> str:
    if code == _EXPIRED:
        return "renew the broker's certificate; if it is valid, this device's clock is ahead (check 'clock')"
    if code == _NOT_YET:
        return "this device's clock is behind (check 'clock'): timedatectl set-ntp true"
    if code in {_WRONG_NAME, _WRONG_ADDRESS}:
        return f"use in broker.url the name that the certificate bears, or issue one for {host}"
    if code in _UNTRUSTED:
        return "set broker.ca_file to the certificate of the CA that issued the broker's"
    return "ask whoever runs the broker for a valid certificate"


def check_broker_certificate(subject: Subject) -> Finding:
    """How long the broker's certificate is valid."""
    if not parse_broker_url(subject.config.broker.url).is_tls:
        return skip("no TLS")
    try:
        der = _shake_hands(subject)[1]
    except OSError:
        return skip("there is no TLS connection: see the check 'tls'")
    return _remaining(x509.load_der_x509_certificate(der), subject, "tell whoever runs the broker to renew it")


def check_own_certificate(subject: Subject) -> Finding:
    """How long this device's certificate is valid, and that its key belongs to it."""
    section = subject.config.broker
    if not section.cert_file:
        return skip("no client certificate is configured")
    try:
        certificate = x509.load_pem_x509_certificate(Path(section.cert_file).read_bytes())
        client_context(None, client_certificate(section))
    except (OSError, ValueError) as error:
        # Never the file's content: a key may have been named in the certificate's place.
        detail = f"{section.cert_file} with {section.key_file}: {type(error).__name__}: {getattr(error, 'strerror', None) or 'not a certificate and its key'}"
        return fail(detail, "set broker.cert_file and key_file to the PEM files that the fleet's operator issued")
    return _remaining(certificate, subject, "ask the fleet's operator for a new certificate")


def _remaining(certificate: x509.Certificate, subject: Subject, remedy: str) -> Finding:
    ends = certificate.not_valid_after_utc
    left = ends - dt.datetime.fromtimestamp(subject.wall_clock(), tz=dt.UTC)
    detail = f"valid until {ends:%Y-%m-%d}"
    if left < dt.timedelta():
        return fail(f"expired on {ends:%Y-%m-%d}", remedy)
    return warn(f"{detail}: {left.days} days", remedy) if left < _SOON else ok(detail)


def check_login_name(subject: Subject) -> Finding:
    """Whether the login is the device's id, which a broker's rights by pattern ask for."""
    section, device_id = subject.config.broker, subject.config.device.id
    name = section.username or parse_broker_url(section.url).username or _common_name(section.cert_file)
    if not name:
        if is_loopback(parse_broker_url(section.url).host):
            return ok("no login, on this machine")
        return warn("no login: the broker cannot tell devices apart", "set broker.username, or broker.cert_file")
    if not device_id:
        return warn(f"the login is {name}, device.id is made up", f'set device.id = "{name}": rights go by the login')
    if name != device_id:
        return warn(
            f"the login is {name}, device.id is {device_id}", f'set device.id = "{name}": rights go by the login'
        )
    return ok(f"{name} logs in under its own id")


def _common_name(cert_file: str) -> str:
    try:
        subject = x509.load_pem_x509_certificate(Path(cert_file).read_bytes()).subject if cert_file else None
    except (OSError, ValueError):
        return ""
    names = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME) if subject is not None else []
    return str(names[0].value) if names else ""


def _connect(subject: Subject) -> socket.socket:
    url = parse_broker_url(subject.config.broker.url)
    return socket.create_connection((url.host, url.port), timeout=_CONNECT_S)


def _shake_hands(subject: Subject) -> tuple[str, bytes]:
    """The TLS version and the broker's certificate (DER)."""
    section = subject.config.broker
    context = client_context(section.ca_file or None, client_certificate(section))
    host = parse_broker_url(section.url).host
    with _connect(subject) as plain, context.wrap_socket(plain, server_hostname=host) as secure:
        found = secure.version() or "TLS", secure.getpeercert(binary_form=True) or b""
        secure.settimeout(_ALERT_S)
        try:
            if secure.recv(1) == b"":
                raise ConnectionResetError("the broker ended the connection")
        except TimeoutError:
            pass  # it waits for our first words, as it should
        return found


NETWORK_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("broker_name", check_broker_name),
    ("broker_port", check_broker_port),
    ("tls", check_tls),
    ("broker_certificate", check_broker_certificate),
    ("own_certificate", check_own_certificate),
    ("login_name", check_login_name),
)
"""Name and function of each check, in the order in which they are made."""
