"""Encrypted sums as their people run them: authority, key authority and banks by their commands, over Mosquitto."""

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
from coordinator.down_signing import load_signer, public_key_text
from coordinator.numpy_mean import NumpyMeanAggregator
from edge_client.config_loader import load_config
from edge_client.daemon import Daemon
from edge_client.example_store import write_examples
from flockwise.cli import main
from secure_sum import bfv
from simulators.offline_enrolment import enrol_offline
from simulators.virtual_run import linear_task
from wire_protocol.model_contract import BUNDLE_CHECKPOINT, BUNDLE_MODEL, BUNDLE_PLAN
from wire_protocol.tensors import encode_tensors

pytestmark = [
    pytest.mark.broker,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not os.environ.get("CI") and not bfv.is_available(), reason="TenSEAL is not installed here"),
]

ROOT = Path(__file__).resolve().parents[2]
FLOCKWISE = Path(sys.executable).parent / "flockwise"
POPULATION = "banks"
BANKS = ("bank-0", "bank-1", "bank-2")
AUTHORITY = "key-authority"


def _flockwise(*words, fails_with=0):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == fails_with, done.output
    return done


def _json(*words, **more):
    done = _flockwise(*words, "--json", **more)
    return json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))


@pytest.fixture
def population(tmp_path, mosquitto_url):
    """Keys, roster, key directory and released keys, and the banks' configurations; the authority's fingerprint."""
    authority = _json("directory", "init", "--population", POPULATION, "--dir", tmp_path / "authority")["authority"]
    homes = {name: tmp_path / name / "state" for name in (*BANKS, AUTHORITY)}
    for index, name in enumerate(BANKS):
        home = tmp_path / name
        home.mkdir()
        x = np.random.default_rng(index).normal(size=(12, 64)).astype(np.float32)
        write_examples(home / "data", x=x, y=(x[:, 0] > 0).astype(np.int32))
        (home / "client.toml").write_text(
            f'[device]\nid = "{name}"\npopulation = "{POPULATION}"\nstate_dir = "state"\n'
            f'[broker]\nurl = "{mosquitto_url}"\n[data]\npath = "data"\n'
            f'[privacy]\nepsilon = 300.0\nmin_contributors = 2\nauthority = "{authority}"\nconfidentiality = ["he"]\n'
            '[training]\ntrainer = "linear"\n[eligibility]\nenforce = false\n'
        )
    for home in homes.values():
        home.mkdir(parents=True, exist_ok=True)
    enrol_offline(tmp_path / "roster.sqlite", homes, population=POPULATION)
    requests = [
        _json("edge", "directory-request", "--config", tmp_path / name / "client.toml")["request"] for name in BANKS
    ]
    words = ("key-authority", "request", "--population", POPULATION, "--state-dir", homes[AUTHORITY])
    _flockwise("directory", "add", *requests, _json(*words)["request"], "--dir", tmp_path / "authority")
    directory, keys = tmp_path / "authority" / "directory.fwkd", tmp_path / "banks.fwkr"
    issued = ("--state-dir", homes[AUTHORITY], "--directory", directory, "--out", keys, "--authority", authority)
    assert _json("key-authority", "issue", *issued)["devices"] == list(BANKS)
    return homes[AUTHORITY], directory, keys


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


@pytest.mark.usefixtures("quiet_signals")
def test_a_key_authority_decrypts_the_sums_of_banks_that_take_part_in_nothing_else(
    tmp_path, mosquitto_url, population, bundle_dir, monkeypatch
):
    monkeypatch.setattr(
        "coordinator.server.tff_aggregator",
        lambda bundle, spec: NumpyMeanAggregator(bundle.plan.weights, AggregationSpec()),
    )
    home, directory, keys = population
    words = ("key-authority", "run", "--population", POPULATION, "--state-dir", home, "--broker", mosquitto_url)
    log = tmp_path / "key-authority.log"
    with log.open("wb") as stream:
        pinned = public_key_text(load_signer(tmp_path / "state").public_key)
        command = [str(FLOCKWISE), *map(str, words), "--min-contributors", "2", "--coordinator-key", pinned]
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ | {"PYTHONPATH": str(ROOT)})
    daemons = [Daemon(load_config(tmp_path / name / "client.toml", {})) for name in BANKS]
    threads = [threading.Thread(target=daemon.serve) for daemon in daemons]
    for thread in threads:
        thread.start()

    def serve(*more, fails_with=0):
        words = ("coordinator", "serve", "--task", bundle_dir, "--broker", mosquitto_url, "--population", POPULATION)
        goals = ("--state-dir", tmp_path / "state", "--roster", tmp_path / "roster.sqlite", "--report-goal", 3)
        least = ("--min-reports", 2, "--over-selection", "1.0", "--epsilon", 20, "--clipping-norm", "0.5", "--json")
        return _flockwise(*words, *goals, *least, "--rounds", 2, "--privacy-rounds", 4, *more, fails_with=fails_with)

    confidential = ("--confidentiality", "he", "--directory", directory, "--key-authority", AUTHORITY)
    try:
        assert "--encryption-keys" in serve(*confidential, fails_with=2).output
        confidential = (*confidential, "--encryption-keys", keys)
        refused = serve(*confidential, "--max-encrypted-mb", "0.01", fails_with=1).output
        assert "use helpers or masks" in refused
        told = json.loads(serve(*confidential, "--dry-run").output)
        assert told["forecast"]["update_bytes"] > 88_000
        assert "key-authority" in told["who_must_be_believed"]
        done = serve(*confidential)
    finally:
        for daemon in daemons:
            daemon.stop()
        for thread in threads:
            thread.join()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    rounds = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    assert [row["num_commits"] for row in rounds] == [1, 2]
    assert all(row["num_reports"] >= 2 for row in rounds)
    seen = _json("key-authority", "show", "--state-dir", home)
    assert (seen["rounds"], seen["wrong_totals"], seen["devices"]) == (2, 0, list(BANKS))


def test_keys_of_an_older_directory_are_refused_by_the_coordinator(tmp_path, population, bundle_dir):
    _, directory, keys = population
    (tmp_path / "late").mkdir()
    late = tmp_path / "late" / "client.toml"
    late.write_text(
        f'[device]\nid = "bank-9"\npopulation = "{POPULATION}"\nstate_dir = "state"\n'
        '[broker]\nurl = "mqtt://127.0.0.1:1"\n[data]\npath = "data"\n'
    )
    request = _json("edge", "directory-request", "--config", late)["request"]
    _flockwise("directory", "add", request, "--dir", tmp_path / "authority")
    words = ("coordinator", "serve", "--task", bundle_dir, "--broker", "mqtt://127.0.0.1:1", "--population", POPULATION)
    more = (
        "--state-dir",
        tmp_path / "s",
        "--report-goal",
        3,
        "--min-reports",
        2,
        "--over-selection",
        "1.0",
        "--epsilon",
        20,
    )
    he = ("--confidentiality", "he", "--directory", directory, "--key-authority", AUTHORITY, "--encryption-keys", keys)
    refused = _flockwise(*words, *more, *he, "--clipping-norm", "0.5", "--rounds", 1, fails_with=1)
    assert "released no keys for bank-9" in refused.output


def test_a_key_authority_that_cannot_be_one_says_why(tmp_path, mosquitto_url):
    words = (
        "key-authority",
        "run",
        "--population",
        POPULATION,
        "--state-dir",
        tmp_path / "ka",
        "--broker",
        mosquitto_url,
    )
    assert "there are no keys" in _flockwise(*words, fails_with=1).output
    assert _json(*words, "--dry-run")["would_run"]
    _json("key-authority", "request", "--population", POPULATION, "--state-dir", tmp_path / "ka")
    assert "issue" in _flockwise(*words, fails_with=1).output
    _flockwise("key-authority", "show", "--state-dir", tmp_path / "ka", fails_with=1)
