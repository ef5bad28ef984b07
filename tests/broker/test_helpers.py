"""A confidential task as its people run it: authority, helpers and devices by their commands, over Mosquitto."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from coordinator.aggregation_spec import AggregationSpec
from coordinator.numpy_mean import NumpyMeanAggregator
from edge_client.config_loader import load_config
from edge_client.daemon import Daemon
from edge_client.example_store import write_examples
from flockwise.cli import main
from simulators.offline_enrolment import enrol_offline
from simulators.virtual_run import linear_task
from wire_protocol.model_contract import BUNDLE_CHECKPOINT, BUNDLE_MODEL, BUNDLE_PLAN
from wire_protocol.tensors import encode_tensors

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
FLOCKWISE = Path(sys.executable).parent / "flockwise"
POPULATION = "wards"
DEVICES = ("ward-0", "ward-1", "ward-2")
HELPERS = ("helper-1", "helper-2", "helper-3")


def _flockwise(*words, fails_with=0):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == fails_with, done.output
    return done


def _json(*words, **more):
    done = _flockwise(*words, "--json", **more)
    return json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))


@pytest.fixture
def population(tmp_path, mosquitto_url):
    """Keys, roster and key directory, and the devices' configurations."""
    authority = _json("directory", "init", "--population", POPULATION, "--dir", tmp_path / "authority")["authority"]
    homes = {name: tmp_path / name / "state" for name in (*DEVICES, *HELPERS)}
    for index, name in enumerate(DEVICES):
        home = tmp_path / name
        home.mkdir()
        x = np.random.default_rng(index).normal(size=(12, 64)).astype(np.float32)
        write_examples(home / "data", x=x, y=(x[:, 0] > 0).astype(np.int32))
        (home / "client.toml").write_text(
            f'[device]\nid = "{name}"\npopulation = "{POPULATION}"\nstate_dir = "state"\n'
            f'[broker]\nurl = "{mosquitto_url}"\n[data]\npath = "data"\n'
            f'[privacy]\nepsilon = 300.0\nmin_contributors = 2\nauthority = "{authority}"\nconfidentiality = ["helpers"]\n'
            '[training]\ntrainer = "linear"\n[eligibility]\nenforce = false\n'
        )
    for home in homes.values():
        home.mkdir(parents=True, exist_ok=True)
    enrol_offline(tmp_path / "roster.sqlite", homes, population=POPULATION)
    requests = [
        _json("edge", "directory-request", "--config", tmp_path / name / "client.toml")["request"] for name in DEVICES
    ] + [
        _json("helper", "request", "--population", POPULATION, "--id", name, "--state-dir", homes[name])["request"]
        for name in HELPERS
    ]
    _flockwise("directory", "add", *requests, "--dir", tmp_path / "authority")
    return homes, authority


@pytest.fixture
def quiet_signals():
    """`serve` takes the signals of the process that it runs in."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def bundle_dir(tmp_path):
    bundle = linear_task(64, 2)
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / BUNDLE_PLAN).write_bytes(bundle.plan_bytes)
    (directory / BUNDLE_MODEL).write_bytes(bundle.model_bytes)
    (directory / BUNDLE_CHECKPOINT).write_bytes(encode_tensors(bundle.initial_weights))
    return directory


def _helper(home, url, authority, log):
    words = (
        "helper",
        "run",
        "--population",
        POPULATION,
        "--id",
        home.parent.name,
        "--state-dir",
        home,
        "--broker",
        url,
    )
    command = [str(FLOCKWISE), *map(str, words), "--authority", authority, "--min-contributors", "2"]
    with log.open("wb") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.usefixtures("quiet_signals")
def test_two_helpers_open_the_sums_of_devices_that_take_part_in_nothing_else(
    tmp_path, mosquitto_url, population, bundle_dir, monkeypatch
):
    monkeypatch.setattr(
        "coordinator.server.tff_aggregator",
        lambda bundle, spec: NumpyMeanAggregator(bundle.plan.weights, AggregationSpec()),
    )
    homes, authority = population
    helpers = [_helper(homes[name], mosquitto_url, authority, tmp_path / f"{name}.log") for name in HELPERS[:2]]
    daemons = [Daemon(load_config(tmp_path / name / "client.toml", {})) for name in DEVICES]
    threads = [threading.Thread(target=daemon.serve) for daemon in daemons]
    for thread in threads:
        thread.start()

    def serve(*more, fails_with=0):
        words = ("coordinator", "serve", "--task", bundle_dir, "--broker", mosquitto_url, "--population", POPULATION)
        goals = ("--state-dir", tmp_path / "state", "--roster", tmp_path / "roster.sqlite", "--report-goal", 3)
        least = ("--min-reports", 2, "--over-selection", "1.0", "--epsilon", 20, "--clipping-norm", "0.5", "--json")
        return _flockwise(*words, *goals, *least, "--rounds", 2, "--privacy-rounds", 4, *more, fails_with=fails_with)

    openers = [word for name in HELPERS for word in ("--helper", f"{name}=the-{name}")]
    confidential = ("--confidentiality", "helpers", "--directory", tmp_path / "authority" / "directory.fwkd", *openers)
    try:
        assert "--directory" in serve("--confidentiality", "helpers", fails_with=2).output
        assert "3 helpers" in serve(*confidential[:-2], fails_with=1).output
        dry = serve(*confidential, "--dry-run").output
        assert not json.loads(dry)["is_promise_of_one_operator"]
        done = serve(*confidential)
        asked = _json(
            *("query", "count", "--name", "rows", "--period", "1", "--low", 1, "--high", 100, "--epsilon", 3),
            *("--min-contributors", 2, "--max-devices", 3, "--broker", mosquitto_url, "--population", POPULATION),
            *("--state-dir", tmp_path / "state", "--roster", tmp_path / "roster.sqlite", *confidential),
        )
    finally:
        for daemon in daemons:
            daemon.stop()
        for thread in threads:
            thread.join()
        for process in helpers:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(30) for process in helpers] == [0, 0]
    rounds = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    assert [row["num_commits"] for row in rounds] == [1, 2]
    assert all(row["num_reports"] >= 2 for row in rounds)
    # The helpers opened the answer's sum as well, and nobody saw a single one.
    assert 2 <= asked["num_reports"] <= 3
    assert abs(asked["estimates"][0]["value"] - asked["num_reports"]) < 6
    for name in HELPERS[:2]:
        seen = _json("helper", "show", "--state-dir", homes[name])
        assert (seen["rounds_opened"], seen["authority"]) == (3, authority)
    _flockwise("helper", "show", "--state-dir", homes[HELPERS[2]], fails_with=1)
    assert "a promise, not a proof" in (tmp_path / "helper-1.log").read_text()


def test_a_helper_that_cannot_be_one_says_why(tmp_path, mosquitto_url):
    words = ("helper", "run", "--population", POPULATION, "--id", "h", "--state-dir", tmp_path / "h")
    done = _flockwise(*words, "--broker", mosquitto_url, fails_with=1)
    assert "there are no keys" in done.output
    done = _flockwise(*words, "--broker", "mqtt://broker.example", fails_with=2)
    assert "allow_plaintext" in done.output
    assert _json(*words, "--broker", mosquitto_url, "--dry-run")["would_run"]


def test_a_helper_enrols_with_a_token_as_a_device_does(tmp_path, mosquitto_url):
    made = _json("coordinator", "enrol-token", "--roster", tmp_path / "roster.sqlite", "--population", POPULATION)
    words = ("helper", "enrol", "--population", POPULATION, "--id", "h", "--state-dir", tmp_path / "h")
    words = (*words, "--broker", mosquitto_url)
    assert "a token is needed" in _flockwise(*words, fails_with=2).output
    assert _json(*words, "--token", made["token"], "--dry-run")["would_enrol"]
    assert not (tmp_path / "h").exists()
    unanswered = _flockwise(*words, "--token", made["token"], "--timeout-s", "1", fails_with=1)
    assert "no coordinator answered" in unanswered.output
