"""A private certificate authority for one fleet's broker: X.509, P-256, made on this machine.

It is for TLS between broker and clients alone. Who sends a report is proved by the device's own key
(`wire_protocol.signed`), which no certificate here replaces.
"""

import dataclasses
import datetime as dt
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Authority", "Issued", "issue_client", "issue_server", "make_authority", "read_authority"]

_CLOCK_SKEW = dt.timedelta(minutes=5)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Issued:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Authority:
    """A certificate that signs others."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = dataclasses.field(repr=False)

    @property
    def pem(self) -> Issued:
        """As files hold it."""
        return _pem(self.certificate, self.key)


def make_authority(name: str, *, now: dt.datetime, valid_days: int = 3650) -> Authority:
    """Makes a root that may sign end certificates and no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = (
        _builder(subject, subject, key.public_key(), now, dt.timedelta(days=valid_days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(certificate=builder.sign(key, hashes.SHA256()), key=key)


def read_authority(certificate: bytes, key: bytes) -> Authority:
    """An authority from its PEM files.

    Raises:
        ValueError: They are no certificate and key, or not of the kind that `make_authority` makes, or not a pair.
    """
    try:
        found = serialization.load_pem_private_key(key, password=None)
        parsed = x509.load_pem_x509_certificate(certificate)
        is_pair = found.public_key() == parsed.public_key()
    except (TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ValueError(f"a key with a password, or a key or certificate of an unknown kind: {error}") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey) or not is_pair:
        raise ValueError("certificate and key of the authority do not belong together")
    return Authority(certificate=parsed, key=found)


def issue_server(authority: Authority, hosts: Sequence[str], *, now: dt.datetime, valid: dt.timedelta) -> Issued:
    """A certificate for a broker.

    Args:
        authority: Signs it.
        hosts: Names and addresses by which clients connect.
        now: Start of its validity (less five minutes, for clocks that are behind).
        valid: How long from ``now``.

    Raises:
        ValueError: No host.
    """
    if not hosts:
        raise ValueError("a broker's certificate needs at least one host name or address")
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    return _issue(authority, hosts[0], ExtendedKeyUsageOID.SERVER_AUTH, names, (now, valid))


def issue_client(authority: Authority, username: str, *, now: dt.datetime, valid: dt.timedelta) -> Issued:
    """A certificate by which a client logs in at the broker under ``username`` (its common name)."""
    return _issue(authority, username, ExtendedKeyUsageOID.CLIENT_AUTH, None, (now, valid))


def _issue(
    authority: Authority,
    name: str,
    usage: x509.ObjectIdentifier,
    alternative: x509.SubjectAlternativeName | None,
    validity: tuple[dt.datetime, dt.timedelta],
) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(name), authority.certificate.subject, key.public_key(), *validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if alternative is not None:
        builder = builder.add_extension(alternative, critical=False)
    return _pem(builder.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    valid: dt.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + valid)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    return Issued(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
