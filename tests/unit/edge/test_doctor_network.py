"""What doctor says about names, ports and certificates, against local servers that are really broken."""

import contextlib
import datetime as dt
import socket
import ssl
import threading
from pathlib import Path

import pytest

from coordinator.private_ca import issue_client, issue_server, make_authority
from edge_client.checks.network import NETWORK_CHECKS
from edge_client.config import BrokerSection, DataSection, DeviceSection, EdgeConfig
from edge_client.doctor import CheckGroup, Subject, run_group

CHECKS = dict(NETWORK_CHECKS)
DAY = dt.timedelta(days=1)
NOW = dt.datetime.now(dt.UTC)


def _find(name, *, url, device_id="d1", wall_clock=None, **broker):
    config = EdgeConfig(
        device=DeviceSection(population="p", id=device_id, state_dir="none"),
        broker=BrokerSection(url=url, **broker),
        data=DataSection(path="none"),
    )
    clock = {} if wall_clock is None else {"wall_clock": wall_clock}
    [finding] = run_group(CheckGroup(name="broker", checks=((name, CHECKS[name]),)), Subject(config=config, **clock))
    return finding


def _assert(finding, status, detail, remedy=""):
    assert finding.status.value == status, finding
    assert detail in finding.detail, finding
    assert remedy in finding.remedy, finding


class Fleet:
    """A CA, and the files that it issued."""

    def __init__(self, directory):
        self.directory = directory
        self.authority = make_authority("fleet", now=NOW - 400 * DAY)
        self.ca_file = self.write("ca.crt", self.authority.pem.certificate)

    def write(self, name, data):
        (self.directory / name).write_bytes(data)
        return str(self.directory / name)

    def server(self, *, host="127.0.0.1", began=NOW - DAY, valid=100 * DAY):
        pem = issue_server(self.authority, [host], now=began, valid=valid)
        return self.write("server.crt", pem.certificate), self.write("server.key", pem.key)

    def client(self, name="d1", *, began=NOW - DAY, valid=100 * DAY):
        pem = issue_client(self.authority, name, now=began, valid=valid)
        return {
            "cert_file": self.write(f"{name}.crt", pem.certificate),
            "key_file": self.write(f"{name}.key", pem.key),
        }


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


@contextlib.contextmanager
def _server(certificate=None, *, client_ca=None, answer=None):
    """A server on loopback that takes connections; over TLS if it has a certificate. Gives its port."""
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), peer:
                peer.settimeout(5)
                if answer is not None:
                    peer.recv(100)
                    peer.sendall(answer)
                elif context is not None:
                    with context.wrap_socket(peer, server_side=True) as secure:
                        secure.recv(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        # Closing alone does not wake an accept.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def _closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_name_that_leads_nowhere():
    _assert(_find("broker_name", url=f"mqtts://{'x' * 70}.example"), "fail", "xxx", "resolvectl")
    _assert(_find("broker_name", url="mqtts://no-such-host.invalid"), "fail", "no-such-host.invalid", "broker.url")
    _assert(_find("broker_name", url="mqtt://localhost"), "ok", "localhost is")


def test_a_closed_port_skips_what_needs_it():
    url = f"mqtts://127.0.0.1:{_closed_port()}"
    _assert(_find("broker_port", url=url), "fail", "refused", "firewall")
    _assert(_find("tls", url=url), "skip", "no connections")
    _assert(_find("broker_certificate", url=url), "skip", "see the check 'tls'")


def test_a_trusted_broker(fleet):
    with _server(fleet.server()) as port:
        url = f"mqtts://127.0.0.1:{port}"
        _assert(_find("broker_port", url=url), "ok", "takes connections")
        _assert(_find("tls", url=url, ca_file=fleet.ca_file), "ok", "TLSv1.3")
        _assert(_find("broker_certificate", url=url, ca_file=fleet.ca_file), "ok", "valid until")


def test_a_broker_of_a_ca_that_nobody_named(fleet):
    with _server(fleet.server()) as port:
        _assert(_find("tls", url=f"mqtts://127.0.0.1:{port}"), "fail", "certificate", "set broker.ca_file")


def test_a_broker_under_another_name(fleet):
    with _server(fleet.server(host="broker.example")) as port:
        found = _find("tls", url=f"mqtts://127.0.0.1:{port}", ca_file=fleet.ca_file)
        _assert(found, "fail", "127.0.0.1", "use in broker.url the name that the certificate bears")
        found = _find("tls", url=f"mqtts://localhost:{port}", ca_file=fleet.ca_file)
        _assert(found, "fail", "localhost", "use in broker.url the name that the certificate bears")


def test_a_brokers_certificate_that_has_ended_or_not_begun(fleet):
    with _server(fleet.server(began=NOW - 20 * DAY, valid=10 * DAY)) as port:
        found = _find("tls", url=f"mqtts://127.0.0.1:{port}", ca_file=fleet.ca_file)
        _assert(found, "fail", "expired", "renew the broker's certificate")
    with _server(fleet.server(began=NOW + 20 * DAY)) as port:
        found = _find("tls", url=f"mqtts://127.0.0.1:{port}", ca_file=fleet.ca_file)
        _assert(found, "fail", "not yet valid", "timedatectl set-ntp true")


def test_a_brokers_certificate_that_ends_soon(fleet):
    with _server(fleet.server(valid=10 * DAY)) as port:
        found = _find("broker_certificate", url=f"mqtts://127.0.0.1:{port}", ca_file=fleet.ca_file)
        _assert(found, "warn", "8 days", "renew it")


def test_a_broker_that_asks_for_a_certificate_which_we_lack(fleet):
    with _server(fleet.server(), client_ca=fleet.ca_file) as port:
        url = f"mqtts://127.0.0.1:{port}"
        _assert(_find("tls", url=url, ca_file=fleet.ca_file), "fail", "TLS", "certificate")
        _assert(_find("tls", url=url, ca_file=fleet.ca_file, **fleet.client()), "ok", "trusted")


def test_a_port_that_speaks_no_tls(fleet):
    with _server(answer=b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        found = _find("tls", url=f"mqtts://127.0.0.1:{port}", ca_file=fleet.ca_file)
        _assert(found, "fail", "TLS", "does this port speak TLS")


def test_a_ca_file_that_is_not_there(fleet):
    with _server(fleet.server()) as port:
        found = _find("tls", url=f"mqtts://127.0.0.1:{port}", ca_file=str(fleet.directory / "none"))
        _assert(found, "fail", "not there", "set broker.ca_file")


def test_our_own_certificate(fleet):
    url = "mqtts://broker.example"
    _assert(_find("own_certificate", url=url), "skip", "no client certificate")
    _assert(_find("own_certificate", url=url, **fleet.client()), "ok", "valid until")
    old = fleet.client("old", began=NOW - 20 * DAY, valid=10 * DAY)
    _assert(_find("own_certificate", url=url, **old), "fail", "expired on", "operator")
    soon = fleet.client("soon", valid=5 * DAY)
    _assert(_find("own_certificate", url=url, **soon), "warn", "days", "operator")
    late = _find("own_certificate", url=url, wall_clock=(NOW + 200 * DAY).timestamp, **fleet.client())
    _assert(late, "fail", "expired on")


def test_a_certificate_that_is_none_or_anothers_and_no_key_is_ever_shown(fleet):
    url, one, two = "mqtts://broker.example", fleet.client("one"), fleet.client("two")
    crossed = {"cert_file": one["cert_file"], "key_file": two["key_file"]}
    swapped = {"cert_file": one["key_file"], "key_file": one["cert_file"]}
    absent = {"cert_file": one["cert_file"], "key_file": str(fleet.directory / "none")}
    for files in (crossed, swapped, absent):
        found = _find("own_certificate", url=url, **files)
        _assert(found, "fail", files["cert_file"], "PEM files")
        assert "PRIVATE KEY" not in found.detail


def test_the_login_must_be_the_devices_id(fleet, tmp_path):
    (tmp_path / "password").write_text("x")
    login = {"username": "d1", "password_file": str(tmp_path / "password")}
    _assert(_find("login_name", url="mqtts://b", **login), "ok", "d1")
    _assert(
        _find("login_name", url="mqtts://b", device_id="d2", **login), "warn", "device.id is d2", 'device.id = "d1"'
    )
    _assert(_find("login_name", url="mqtts://b", device_id="", **login), "warn", "made up", 'device.id = "d1"')
    _assert(_find("login_name", url="mqtts://b", **fleet.client("other")), "warn", "the login is other")
    _assert(_find("login_name", url="mqtts://b"), "warn", "tell devices apart", "broker.username")
    _assert(_find("login_name", url="mqtt://127.0.0.1"), "ok", "this machine")


def test_every_check_of_this_group_is_broken_here():
    source = Path(__file__).read_text()
    for name in CHECKS:
        assert f'_find("{name}"' in source, name
