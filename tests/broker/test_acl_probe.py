"""The operator's probe finds each hole in a real broker's rights, and none where there is none."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from coordinator.acl_probe import BrokerLogin, Fault, probe_acl
from coordinator.broker_choice import _wait_until_listening, find_mosquitto
from coordinator.embedded_broker import free_port
from flockwise.cli import main

pytestmark = pytest.mark.broker


class Broker:
    """A Mosquitto as broker-config makes it, whose ACL can be spoilt."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.files, self.port = directory / "fleet", free_port()
        made = _flockwise(
            *("broker-config", "--out", self.files, "--host", "127.0.0.1", "--port", self.port, "--bind", "127.0.0.1"),
            *("--logins", kind),
        )
        _, option, config = shlex.split(made["commands"][0])
        for name in ("d1", "d10") if kind == "passwords" else ():
            _flockwise("broker-login", name, "--dir", self.files)
        if os.geteuid() == 0:
            # Root's Mosquitto would become another user, who cannot read a test's directory.
            with Path(config).open("a") as stream:
                stream.write("\nuser root\n")
        self.acl = self.files / "broker" / "acl"
        self.good_acl = self.acl.read_text()
        self.process = subprocess.Popen(
            [find_mosquitto(), option, config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _wait_until_listening(self.process, self.port)

    def spoil(self, old: str, new: str) -> None:
        assert self.good_acl.count(old) == 1
        self.acl.write_text(self.good_acl.replace(old, new))
        self.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)

    def probe(self, *more, code=0):
        url = f"mqtts://127.0.0.1:{self.port}"
        return _flockwise("probe-acl", "--dir", self.files, "--broker", url, "--wait-s", 1, *more, code=code)


def _flockwise(*words, code=0):
    result = CliRunner().invoke(main, ["coordinator", *map(str, words), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.output) if result.output.startswith("{") else result.output


def _broker(directory, kind):
    broker = Broker(directory, kind)
    yield broker
    broker.process.terminate()
    broker.process.wait()


@pytest.fixture(scope="module")
def broker(tmp_path_factory, mosquitto_url):
    yield from _broker(tmp_path_factory.mktemp("certificates"), "certificates")


@pytest.fixture(scope="module")
def broker_with_passwords(tmp_path_factory, mosquitto_url):
    yield from _broker(tmp_path_factory.mktemp("passwords"), "passwords")


@pytest.mark.parametrize("name", ["broker", "broker_with_passwords"])
def test_the_rights_that_broker_config_makes_hold(name, request):
    report = request.getfixturevalue(name).probe()
    assert report["findings"] == []
    assert report["num_attempts"] >= 2 * (5 + 3)
    assert report["broker_says_what_it_refuses"]


def test_a_leak_is_found_with_passwords_too(broker_with_passwords):
    broker_with_passwords.spoil(UP, "pattern write fw/v1/+/d/+/up/+")
    found = broker_with_passwords.probe(code=3)["findings"]
    assert {item["topic"].split("/")[4] for item in found} == {"d1", "d10"}


UP, DOWN = "pattern write fw/v1/+/d/%u/up/+", "pattern read  fw/v1/+/d/%u/down/+"
TASK, STATUS = "pattern read  fw/v1/+/task", "pattern write fw/v1/+/d/%u/status"


@pytest.mark.parametrize(
    ("old", "new", "fault", "ending"),
    [
        (DOWN, "pattern read  fw/v1/+/d/+/down/+", "hears", "/down/acl-probe"),
        (DOWN, DOWN + "\npattern read fw/v1/+/d/+/status", "hears", "/status"),
        (DOWN, DOWN + "\npattern read fw/v1/+/d/+/up/+", "hears", "/up/acl-probe"),
        (UP, "pattern write fw/v1/+/d/+/up/+", "says", "/up/acl-probe"),
        (UP, UP + "\npattern write fw/v1/+/d/%u/down/+", "says", "/down/acl-probe"),
        (STATUS, "pattern write fw/v1/+/d/+/status", "says", "/status"),
        (TASK, "pattern readwrite fw/v1/+/task", "says", "/task"),
        (TASK, TASK + "\npattern write acl-probe/#", "says", "acl-probe/elsewhere"),
    ],
)
def test_each_leak_is_found_named_and_ends_in_code_3(broker, old, new, fault, ending):
    broker.spoil(old, new)
    found = broker.probe(code=3)["findings"]
    assert {(item["fault"], item["is_leak"]) for item in found} == {(fault, True)}
    assert all(item["topic"].endswith(ending) for item in found), found
    assert "coordinator" not in {item["login"] for item in found}


@pytest.mark.parametrize(("line", "fault"), [(DOWN, "cannot_hear"), (UP, "cannot_say"), (STATUS, "cannot_say")])
def test_a_right_that_is_missing_is_no_leak_and_ends_in_code_4(broker, line, fault):
    broker.spoil(line, "# left out")
    found = broker.probe(code=4)["findings"]
    assert (fault, False) in {(item["fault"], item["is_leak"]) for item in found}
    assert not any(item["is_leak"] for item in found)


def test_a_dry_run_connects_to_nothing_and_plaintext_is_refused(broker):
    assert not broker.probe("--dry-run")["probed"]
    words = ("probe-acl", "--dir", broker.files, "--broker")
    assert "would let" in CliRunner().invoke(main, ["coordinator", *map(str, words), "mqtts://b", "--dry-run"]).output
    assert "passwords" in _flockwise(*words, "mqtt://192.0.2.7", code=1)
    assert "error: " in _flockwise(*words, f"mqtts://127.0.0.1:{free_port()}", code=1)


def test_fewer_than_two_passwords_are_too_few(tmp_path):
    files = tmp_path / "fleet"
    _flockwise("broker-config", "--out", files, "--host", "b", "--logins", "passwords")
    _flockwise("broker-login", "d1", "--dir", files)
    assert "fewer than two" in _flockwise("probe-acl", "--dir", files, "--broker", "mqtts://b", code=1)


def test_an_open_broker_with_an_older_mqtt_leaks_by_what_is_heard(embedded_url):
    logins = {name: BrokerLogin(url=embedded_url) for name in ("coordinator", "d1", "d10")}
    report = probe_acl(logins, population="acl-probe")
    assert not report.is_version_5
    assert report.has_leak
    assert {Fault.HEARS, Fault.SAYS} == {found.fault for found in report.findings}
    said = {found.topic for found in report.findings if (found.login, found.fault) == ("d1", Fault.SAYS)}
    assert {"fw/v1/acl-probe/d/d10/up/acl-probe", "fw/v1/acl-probe/d/d10/status", "fw/v1/acl-probe/task"} <= said
