"""Real brokers for tests: the embedded one always, Mosquitto where it is installed (and always in CI)."""

import contextlib
import datetime as dt
import os
import subprocess
from pathlib import Path

import pytest

from broker_link.tls import ClientCertificate
from coordinator.broker_choice import _wait_until_listening, broker_at, find_mosquitto
from coordinator.embedded_broker import free_port
from coordinator.private_ca import issue_client, issue_server, make_authority

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "mosquitto"
HOUR = dt.timedelta(hours=1)


def now():
    return dt.datetime.now(dt.UTC)


class SecureBroker:
    """A Mosquitto with the files of deploy/mosquitto, on loopback: its port, its CA, and certificates for whoever is to log in."""

    def __init__(self, directory: Path, *, hosts=("127.0.0.1",), began=None, valid=HOUR) -> None:
        self.directory = directory
        self.port = free_port()
        self.authority = make_authority("test fleet", now=began or now())
        self.ca_file = str(directory / "ca.crt")
        (directory / "ca.crt").write_bytes(self.authority.pem.certificate)
        server = issue_server(self.authority, hosts, now=began or now(), valid=valid)
        (directory / "server.crt").write_bytes(server.certificate)
        (directory / "server.key").write_bytes(server.key)
        (directory / "acl").write_bytes((DEPLOY / "acl").read_bytes())
        text = (DEPLOY / "mosquitto.conf").read_text()
        assert "\nlistener 8883\n" in text
        for name in ("ca.crt", "server.crt", "server.key", "acl"):
            text = text.replace(f"file {name}", f"file {directory / name}")
        text = text.replace("\nlistener 8883\n", f"\nlistener {self.port} 127.0.0.1\n")
        (directory / "mosquitto.conf").write_text(text)

    @property
    def url(self) -> str:
        return f"mqtts://127.0.0.1:{self.port}"

    def login(self, username: str, *, authority=None, began=None, valid=HOUR) -> ClientCertificate:
        issued = issue_client(authority or self.authority, username, now=began or now(), valid=valid)
        cert, key = self.directory / f"{username}.crt", self.directory / f"{username}.key"
        cert.write_bytes(issued.certificate)
        key.write_bytes(issued.key)
        return ClientCertificate(cert_file=str(cert), key_file=str(key))

    @contextlib.contextmanager
    def running(self):
        log = self.directory / "mosquitto.log"
        # As root, Mosquitto would become another user, who cannot read a test's directory.
        (self.directory / "mosquitto.conf").open("a").write("\nuser root\n")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [find_mosquitto(), "-c", str(self.directory / "mosquitto.conf")],
                stdout=stream, stderr=stream, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            _wait_until_listening(process, self.port)
            yield self
        finally:
            process.terminate()
            process.wait()


def require_mosquitto():
    """Skips without Mosquitto; fails in CI."""
    if find_mosquitto() is None:
        if os.environ.get("CI"):
            pytest.fail("Mosquitto must be installed in CI: .ci/run installs it")
        pytest.skip("Mosquitto is not installed; 'apt install mosquitto' brings it")


@pytest.fixture(scope="session", params=["embedded", "mosquitto"])
def broker_url(request):
    """Address of a running broker."""
    if request.param == "mosquitto":
        require_mosquitto()
    with broker_at(request.param) as url:
        yield url


@pytest.fixture(scope="session")
def embedded_url():
    """Address of the embedded broker alone, for tests in which the broker is not the point."""
    with broker_at("embedded") as url:
        yield url


@pytest.fixture(scope="session")
def secure_mosquitto(tmp_path_factory):
    """A running Mosquitto with TLS, client certificates and the deployed ACL."""
    require_mosquitto()
    with SecureBroker(tmp_path_factory.mktemp("mosquitto")).running() as broker:
        yield broker


@pytest.fixture
def make_secure_mosquitto(tmp_path):
    """Makes one that is not running yet, with a certificate to the test's taste."""
    require_mosquitto()
    return lambda **certificate: SecureBroker(tmp_path, **certificate)


@pytest.fixture(scope="session")
def mosquitto_url():
    """Address of a running Mosquitto, for tests of what only a real broker does."""
    require_mosquitto()
    with broker_at("mosquitto") as url:
        yield url
