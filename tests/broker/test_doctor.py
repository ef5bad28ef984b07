"""What doctor learns by logging in to a real broker: open, closed, deaf, too narrow, or as it should be."""

import contextlib
import queue
import subprocess
from pathlib import Path

import pytest

from broker_link.broker_probe import BrokerProbe
from broker_link.errors import ProbeFailed
from broker_link.link import LinkUp
from broker_link.paho_link import PahoLink
from coordinator.broker_choice import _wait_until_listening, find_mosquitto
from coordinator.embedded_broker import free_port
from edge_client.checks.broker import BROKER_CHECKS
from edge_client.config import BrokerSection, DataSection, DeviceSection, EdgeConfig
from edge_client.doctor import CheckGroup, Subject, run_group
from edge_client.state_dir import StateDir
from wire_protocol.blobs import split_blob
from wire_protocol.messages import TaskAnnouncement, encode_message
from wire_protocol.topics import population_task

pytestmark = pytest.mark.broker

CHECKS = dict(BROKER_CHECKS)


@pytest.fixture
def examine(tmp_path):
    """Runs the checks of this group, or some of them; gives the findings by name."""

    def run(url, *names, population="doctored", **broker):
        config = EdgeConfig(
            device=DeviceSection(population=population, id="d1", state_dir=str(tmp_path / "state")),
            broker=BrokerSection(url=url, **broker),
            data=DataSection(path="none"),
        )
        checks = tuple((name, CHECKS[name]) for name in names or CHECKS)
        return {
            found.name: found for found in run_group(CheckGroup(name="broker", checks=checks), Subject(config=config))
        }

    return run


@pytest.fixture
def mosquitto(tmp_path, mosquitto_url):
    """Runs a Mosquitto with a configuration of the test's own; gives its address."""
    del mosquitto_url  # asks for Mosquitto

    @contextlib.contextmanager
    def run(*lines):
        port = free_port()
        path = tmp_path / "mosquitto.conf"
        path.write_text("\n".join([f"listener {port} 127.0.0.1", "user root", *lines]) + "\n")
        process = subprocess.Popen(
            [find_mosquitto(), "-c", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _wait_until_listening(process, port)
            yield f"mqtt://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()

    return run


def _secret(tmp_path, text):
    path = tmp_path / "password"
    path.write_text(text)
    return {"username": "d1", "password_file": str(path)}


def _passwords(tmp_path, **users):
    path = tmp_path / "passwd"
    path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
    subprocess.run(["mosquitto_passwd", "-U", str(path)], check=True)
    return f"password_file {path}"


def _acl(tmp_path, text):
    path = tmp_path / "acl"
    path.write_text(text)
    path.chmod(0o600)
    return f"acl_file {path}"


def _assert(finding, status, detail="", remedy=""):
    assert finding.status.value == status, finding
    assert detail in finding.detail, finding
    assert remedy in finding.remedy, finding


def test_an_open_broker_works_and_is_told_to_be_open(examine, mosquitto_url):
    found = examine(mosquitto_url)
    _assert(found["broker_login"], "ok", "MQTT 5")
    _assert(found["round_trip"], "ok", "ms")
    _assert(found["isolation"], "warn", "may read", "ACL by pattern")
    assert "may write" in found["isolation"].detail
    _assert(found["packet_size"], "ok", "was taken")
    _assert(found["task"], "warn", "no coordinator", "start the coordinator")


def test_a_broker_that_speaks_only_an_older_mqtt_is_understood(examine, embedded_url):
    found = examine(embedded_url)
    _assert(found["broker_login"], "ok", "MQTT 3.1.1")
    _assert(found["round_trip"], "ok")
    _assert(found["isolation"], "warn", "may read")
    _assert(found["packet_size"], "ok")


def test_the_deployed_acl_keeps_a_device_to_itself(examine, secure_mosquitto):
    login = secure_mosquitto.login("d1")
    files = {"cert_file": login.cert_file, "key_file": login.key_file, "ca_file": secure_mosquitto.ca_file}
    found = examine(secure_mosquitto.url, **files)
    for name in ("broker_login", "round_trip", "isolation", "packet_size"):
        _assert(found[name], "ok")
    _assert(found["isolation"], "ok", "out of reach")


def test_a_wrong_password_is_refused_and_the_rest_is_skipped(examine, mosquitto, tmp_path):
    with mosquitto("allow_anonymous false", _passwords(tmp_path, d1="right")) as url:
        found = examine(url, **_secret(tmp_path, "wrong"))
        _assert(found["broker_login"], "fail", "Not authorized", "password_file")
        for name in set(CHECKS) - {"broker_login"}:
            _assert(found[name], "skip", "broker_login")
        _assert(examine(url, "broker_login", **_secret(tmp_path, "right"))["broker_login"], "ok")


def test_a_password_file_that_is_not_there_is_told(examine, mosquitto_url, tmp_path):
    found = examine(mosquitto_url, "broker_login", username="d1", password_file=str(tmp_path / "none"))
    _assert(found["broker_login"], "fail", "cannot be read", "password_file")


def test_a_broker_that_does_not_let_us_publish(examine, mosquitto, tmp_path):
    with mosquitto("allow_anonymous true", _acl(tmp_path, "topic read fw/v1/#\n")) as url:
        _assert(examine(url, "round_trip")["round_trip"], "fail", "does not let us publish", "ACL")


def test_reading_what_is_others_is_found_even_if_writing_is_not_allowed(examine, mosquitto, tmp_path):
    acl = "topic read fw/v1/#\ntopic write fw/v1/+/d/d1/up/+\n"
    with mosquitto("allow_anonymous true", _acl(tmp_path, acl)) as url:
        found = examine(url, "isolation")["isolation"]
        _assert(found, "warn", "may read", "ACL by pattern")
        assert "may write" not in found.detail


def test_writing_what_is_others_is_found_even_if_reading_is_not_allowed(examine, mosquitto, tmp_path):
    with mosquitto("allow_anonymous true", _acl(tmp_path, "topic write fw/v1/#\n")) as url:
        found = examine(url, "isolation")["isolation"]
        _assert(found, "warn", "may write", "ACL by pattern")
        assert "may read" not in found.detail


@pytest.mark.parametrize(
    ("line", "detail"),
    [("max_packet_size 20000", "20,000 bytes at most"), ("message_size_limit 20000", "123,467 bytes")],
)
def test_a_broker_that_takes_no_piece(examine, mosquitto, line, detail):
    with mosquitto("allow_anonymous true", line) as url:
        _assert(examine(url, "packet_size")["packet_size"], "fail", detail, "max_packet_size")


def test_a_task_is_found_and_one_that_is_none_is_told(examine, mosquitto_url):
    ref = split_blob(b"plan", piece_bytes=1024).ref
    events = queue.SimpleQueue()
    link = PahoLink(url=mosquitto_url, client_id="announcer", subscriptions=(), sink=events.put)
    link.start()
    try:
        assert isinstance(events.get(timeout=20), LinkUp)
        task = encode_message(TaskAnnouncement(task_id="t1", plan=ref, model=ref))
        for population, payload in (("good", task), ("bad", b"nonsense")):
            link.publish(population_task(population), payload, retain=True)
    finally:
        link.stop()
    _assert(examine(mosquitto_url, "task", population="good")["task"], "ok", "task t1")
    _assert(examine(mosquitto_url, "task", population="bad")["task"], "fail", "", "another version")


def test_nothing_logs_in_while_the_daemon_does(examine, mosquitto_url, tmp_path):
    daemon = StateDir(tmp_path / "state")
    daemon.lock()
    try:
        for finding in examine(mosquitto_url).values():
            _assert(finding, "skip", "stop it to check more")
    finally:
        daemon.unlock()


def test_a_server_that_is_no_broker_is_no_traceback(examine, tmp_path):
    server = subprocess.Popen(
        ["python3", "-u", "-c", ("import socket,time\ns=socket.create_server(('127.0.0.1',0))\nprint(s.getsockname()[1])\n"
         "while True:\n    c,_=s.accept(); c.recv(10); c.close()\n")],
        stdout=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        url = f"mqtt://127.0.0.1:{server.stdout.readline().strip()}"
        _assert(examine(url, "broker_login")["broker_login"], "fail", "ended the connection", "broker's own log")
    finally:
        server.kill()
        server.communicate()


def test_a_probe_that_nobody_answers_says_so():
    with pytest.raises(ProbeFailed, match="refused"), BrokerProbe(url="mqtt://127.0.0.1:9", client_id="x"):
        pass


def test_every_check_of_this_group_is_broken_here():
    source = Path(__file__).read_text()
    for name in CHECKS:
        assert (
            f'"{name}"], "fail"' in source or f'"{name}"], "warn"' in source or f'examine(url, "{name}")' in source
        ), name
