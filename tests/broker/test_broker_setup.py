"""What `coordinator broker-config` makes, used as it says: its commands are run to the letter, on a real Mosquitto."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from broker_link.broker_probe import BrokerProbe
from broker_link.errors import ProbeFailed
from coordinator.aggregation_spec import AggregationSpec
from coordinator.broker_choice import _wait_until_listening, find_mosquitto
from coordinator.embedded_broker import free_port
from coordinator.numpy_mean import NumpyMeanAggregator
from edge_client.broker_access import broker_url_with_login, client_certificate
from edge_client.config import BrokerSection
from edge_client.config_loader import load_config
from edge_client.daemon import Daemon
from edge_client.enrolment import enrol
from edge_client.example_store import write_examples
from edge_client.linear_trainer import linear_weights
from flockwise.cli import main
from wire_protocol.enrolment import EnrolmentToken
from wire_protocol.plan import TrainingPlan, encode_plan
from wire_protocol.tensors import encode_tensors

pytestmark = pytest.mark.broker

WEIGHTS = linear_weights(input_shape=(30,), num_classes=3)
PLAN = TrainingPlan(batch_size=4, learning_rate=0.1, input_shape=(30,), num_classes=3, weights=WEIGHTS)
PATIENCE_S = 60.0
KINDS = ("certificates", "passwords")


def _flockwise(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def _json(*words, code=0):
    return json.loads(_flockwise(*words, "--json", code=code))


@pytest.fixture
def quiet_signals():
    """`serve` takes the signals of the process that it runs in."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def _running(command: str, port: int, log):
    """The printed command that starts the broker."""
    program, option, config = shlex.split(command)
    assert (program, option) == ("mosquitto", "-c")
    if os.geteuid() == 0:
        # Root's Mosquitto would become another user, who cannot read a test's directory.
        with Path(config).open("a") as stream:
            stream.write("\nuser root\n")
    with log.open("wb") as stream:
        process = subprocess.Popen([find_mosquitto(), option, config], stdout=stream, stderr=stream)
    try:
        _wait_until_listening(process, port)
        yield process
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def bundle(tmp_path):
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "plan.json").write_bytes(encode_plan(PLAN))
    (directory / "model.tflite").write_bytes(b"model")
    zeros = tuple(np.zeros(spec.shape, np.float32) for spec in WEIGHTS)
    (directory / "initial.safetensors").write_bytes(encode_tensors(zeros))
    return directory


def _device(tmp_path, login, port, population):
    """A device's directory: what broker-login made for it was moved there, and its settings name it."""
    home = tmp_path / "device"
    shutil.move(login["directory"], home)
    rng = np.random.default_rng(1)
    write_examples(home / "data", x=rng.normal(size=(12, 30)).astype(np.float32), y=np.arange(12, dtype=np.int32) % 3)
    broker = "".join(f"{key} = {json.dumps(value)}\n" for key, value in login["broker"].items())
    (home / "client.toml").write_text(
        f'[device]\nid = "d1"\npopulation = "{population}"\nstate_dir = "state"\n'
        f'[broker]\nurl = "mqtts://127.0.0.1:{port}"\n{broker}[data]\npath = "data"\n'
        '[training]\ntrainer = "linear"\n[eligibility]\nenforce = false\n'
    )
    return load_config(home / "client.toml", {})


def _make(tmp_path, kind, port):
    made = _json(
        *("coordinator", "broker-config", "--out", tmp_path / "fleet", "--host", "127.0.0.1"),
        *("--port", port, "--bind", "127.0.0.1", "--logins", kind),
    )
    assert made["made"]
    assert "authority/ca.key" in made["files"]
    return made["commands"]


@pytest.mark.usefixtures("quiet_signals", "mosquitto_url")
@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_commands_bring_broker_coordinator_and_device_together(kind, tmp_path, bundle, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "coordinator.server.tff_aggregator", lambda bundle, spec: NumpyMeanAggregator(PLAN.weights, AggregationSpec())
    )
    port, population = free_port(), f"setup-{os.urandom(4).hex()}"
    start, make_login, make_token, serve = _make(tmp_path, kind, port)
    values = {
        "DEVICE": "d1",
        "POPULATION": population,
        "BUNDLE": str(bundle),
        "goal 10": "goal 1",
        "rounds 50": "rounds 1",
    }

    def run(command, *more):
        for name, value in values.items():
            command = command.replace(name, value)
        return _flockwise(*shlex.split(command)[1:], *more)

    with _running(start, port, tmp_path / "mosquitto.log") as broker:
        login = json.loads(run(make_login, "--json"))
        if login["needs_reload"]:
            broker.send_signal(signal.SIGHUP)
        config = _device(tmp_path, login, port, population)
        token = EnrolmentToken.parse(run(make_token))
        told = {}

        def live() -> None:
            told["enrolled"] = enrol(config, token, timeout_s=PATIENCE_S)
            daemon = Daemon(config)
            daemon.serve(until=lambda agent: agent.last_outcome is not None, timeout_s=PATIENCE_S)
            told["outcome"] = daemon.agent.last_outcome

        device = threading.Thread(target=live)
        device.start()
        lines = run(serve, "--json", "--over-selection", "1.0").splitlines()
        device.join(PATIENCE_S)
    assert told["enrolled"] == "d1"
    assert told["outcome"].ending.value == "accepted"
    rounds = [json.loads(line) for line in lines if line.startswith("{")]
    assert rounds[-1]["num_reports"] == 1
    assert rounds[-1]["refusals"] == {}


@pytest.mark.usefixtures("mosquitto_url")
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_connects_without_a_login_or_with_anothers(kind, tmp_path, caplog):
    port = free_port()
    start, *_ = _make(tmp_path, kind, port)
    logins = {name: _json("coordinator", "broker-login", name, "--dir", tmp_path / "fleet") for name in ("d1", "d2")}
    ca_file = f"{logins['d1']['directory']}/ca.crt"

    def can_connect(files, *, username=""):
        values = {key: f"{files['directory']}/{value}" for key, value in files["broker"].items() if key != "username"}
        values |= {"username": username} if username else {}
        section = BrokerSection(url=f"mqtts://127.0.0.1:{port}", **values)
        return _connects(broker_url_with_login(section), section.ca_file, client_certificate(section))

    with _running(start, port, tmp_path / "mosquitto.log"):
        assert not _connects(f"mqtts://127.0.0.1:{port}", ca_file, None)
        if kind == "passwords":
            assert can_connect(logins["d1"], username="d1")
            assert not can_connect(logins["d1"], username="d2")
            assert not can_connect(logins["d1"], username="coordinator")
        else:
            assert can_connect(logins["d1"])


def _connects(url, ca_file, certificate) -> bool:
    try:
        with BrokerProbe(url=url, client_id="x", ca_file=ca_file, certificate=certificate, timeout_s=5.0):
            return True
    except ProbeFailed:
        return False


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_are_for_their_owner_alone_and_stay_where_they_belong(kind, tmp_path):
    _make(tmp_path, kind, 8883)
    fleet = tmp_path / "fleet"
    _flockwise("coordinator", "broker-login", "d1", "--dir", fleet)
    for path in fleet.rglob("*"):
        mode = path.stat().st_mode & 0o777
        is_secret = path.is_dir() or path.suffix == ".key" or path.name.startswith("password")
        assert mode == (0o700 if path.is_dir() else 0o600 if is_secret else 0o644), path
    assert fleet.stat().st_mode & 0o777 == 0o700
    secrets = [(fleet / name).read_bytes() for name in ("authority/ca.key", *_secret_names(kind))]
    for path in (fleet / "broker").iterdir():
        assert not any(secret.strip() in path.read_bytes() for secret in secrets), path


def _secret_names(kind):
    if kind == "passwords":
        return ["coordinator/password", "devices/d1/password"]
    return ["coordinator/coordinator.key", "devices/d1/device.key"]


def _contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_overwritten_and_a_dry_run_writes_nothing(kind, tmp_path):
    fleet = tmp_path / "fleet"
    make = ("coordinator", "broker-config", "--out", fleet, "--host", "b.example", "--logins", kind)
    login = ("coordinator", "broker-login", "d1", "--dir", fleet)
    assert not _json(*make, "--dry-run")["made"]
    assert list(tmp_path.iterdir()) == []
    _flockwise(*make)
    assert not _json(*login, "--dry-run")["made"]
    assert not (fleet / "devices").exists()
    _flockwise(*login)
    before = _contents(tmp_path)
    for command in (make, (*make, "--dry-run"), login, (*login, "--dry-run")):
        assert "is there already" in _flockwise(*command, code=1)
        assert _contents(tmp_path) == before
    (tmp_path / "taken").write_text("x")
    assert "is there already" in _flockwise("coordinator", "broker-config", "--out", tmp_path / "taken", code=1)
    # A login that was lost is made anew, and the old password is none any more.
    shutil.rmtree(fleet / "devices" / "d1")
    _flockwise(*login)
    if kind == "passwords":
        names = [line.split(":")[0] for line in (fleet / "broker" / "passwords").read_text().splitlines()]
        assert names == ["coordinator", "d1"]
        assert (fleet / "broker" / "passwords").read_bytes() != before[fleet / "broker" / "passwords"]


def test_what_an_operator_gets_wrong_is_one_line(tmp_path):
    out = ("coordinator", "broker-config", "--out", tmp_path / "fleet")
    for host in ("", "two words", "https://b", "b:8883", "*.example", "a\nb", "\u00e4.example"):
        assert "no host name" in _flockwise(*out, "--host", host, code=1), host
    assert "absolute" in _flockwise(*out, "--installed-at", "somewhere", code=1)
    _flockwise(*out, "--host", "2001:db8::1", "--host", "192.0.2.7", "--host", "b.example")
    login = ("coordinator", "broker-login")
    assert "no device may be called" in _flockwise(*login, "coordinator", "--dir", tmp_path / "fleet", code=1)
    assert "not allowed" in _flockwise(*login, "a/b", "--dir", tmp_path / "fleet", code=1)
    assert "holds no broker" in _flockwise(*login, "d1", "--dir", tmp_path, code=1)
    (tmp_path / "fleet" / "authority" / "ca.key").write_text("nonsense")
    assert "cannot be used" in _flockwise(*login, "d1", "--dir", tmp_path / "fleet", code=1)


@pytest.mark.parametrize(("option", "other"), [("--password-file", "--username"), ("--key-file", "--cert-file")])
def test_a_coordinators_secret_that_everybody_can_read_is_refused(option, other, tmp_path, bundle):
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    words = f"--task {bundle} --population p --state-dir {tmp_path} --rounds 1 --report-goal 1 --open --dry-run".split()
    login = (option, secret, other, secret)
    command = ("coordinator", "serve", *words, "--broker", "mqtts://b.example", *login)
    assert "chmod 600" in _flockwise(*command, code=2)
    secret.chmod(0o640)
    _flockwise(*command)


def test_a_device_warns_of_a_secret_that_everybody_can_read_and_goes_on(tmp_path, caplog):
    secret = tmp_path / "password"
    secret.write_text("x")
    section = BrokerSection(url="mqtts://b", username="d1", password_file=str(secret))
    for mode, is_warned in ((0o600, False), (0o640, False), (0o604, True)):
        caplog.clear()
        secret.chmod(mode)
        assert broker_url_with_login(section) == "mqtts://d1:x@b:8883"
        assert ("secret_exposed key=broker.password_file" in caplog.text) is is_warned
