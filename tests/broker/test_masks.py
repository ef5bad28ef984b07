"""Masks as people run them: authority, devices and coordinator by their commands, over Mosquitto; one member is away."""

import json
import signal
import sqlite3
import threading

import numpy as np
import pytest
from click.testing import CliRunner

from coordinator.aggregation_spec import AggregationSpec
from coordinator.numpy_mean import NumpyMeanAggregator
from edge_client.confidential_sums import BOOK_FILE
from edge_client.config_loader import load_config
from edge_client.daemon import Daemon
from edge_client.example_store import write_examples
from flockwise.cli import main
from simulators.offline_enrolment import enrol_offline
from simulators.virtual_run import linear_task
from wire_protocol.model_contract import BUNDLE_CHECKPOINT, BUNDLE_MODEL, BUNDLE_PLAN
from wire_protocol.tensors import encode_tensors

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

POPULATION = "wards"
DEVICES = ("ward-0", "ward-1", "ward-2", "ward-3")
AWAY = "ward-3"


def _flockwise(*words, fails_with=0):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == fails_with, done.output
    return done


def _json(*words):
    done = _flockwise(*words, "--json")
    return json.loads(next(line for line in done.output.splitlines() if line.startswith("{")))


@pytest.fixture
def quiet_signals():
    """`serve` takes the signals of the process that it runs in."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def population(tmp_path, mosquitto_url):
    """Keys, roster, key directory and configurations; returns the bundle's directory."""
    authority = _json("directory", "init", "--population", POPULATION, "--dir", tmp_path / "authority")["authority"]
    for index, name in enumerate(DEVICES):
        home = tmp_path / name
        (home / "state").mkdir(parents=True)
        x = np.random.default_rng(index).normal(size=(12, 64)).astype(np.float32)
        write_examples(home / "data", x=x, y=(x[:, 0] > 0).astype(np.int32))
        (home / "client.toml").write_text(
            f'[device]\nid = "{name}"\npopulation = "{POPULATION}"\nstate_dir = "state"\n'
            f'[broker]\nurl = "{mosquitto_url}"\n[data]\npath = "data"\n'
            f'[privacy]\nepsilon = 300.0\nmin_contributors = 2\nauthority = "{authority}"\nconfidentiality = ["masks"]\n'
            '[committee]\nserve = true\n[training]\ntrainer = "linear"\n[eligibility]\nenforce = false\n'
        )
    homes = {name: tmp_path / name / "state" for name in DEVICES}
    enrol_offline(tmp_path / "roster.sqlite", homes, population=POPULATION)
    requests = [
        _json("edge", "directory-request", "--config", tmp_path / name / "client.toml")["request"] for name in DEVICES
    ]
    _flockwise("directory", "add", *requests, "--dir", tmp_path / "authority")
    bundle, directory = linear_task(64, 2), tmp_path / "bundle"
    directory.mkdir()
    (directory / BUNDLE_PLAN).write_bytes(bundle.plan_bytes)
    (directory / BUNDLE_MODEL).write_bytes(bundle.model_bytes)
    (directory / BUNDLE_CHECKPOINT).write_bytes(encode_tensors(bundle.initial_weights))
    return directory


@pytest.mark.usefixtures("quiet_signals")
def test_three_of_four_members_open_the_sums_of_rounds_that_they_train_in_themselves(
    tmp_path, mosquitto_url, population, monkeypatch
):
    monkeypatch.setattr(
        "coordinator.server.tff_aggregator",
        lambda bundle, spec: NumpyMeanAggregator(bundle.plan.weights, AggregationSpec()),
    )
    daemons = [Daemon(load_config(tmp_path / name / "client.toml", {})) for name in DEVICES if name != AWAY]
    threads = [threading.Thread(target=daemon.serve) for daemon in daemons]
    for thread in threads:
        thread.start()

    def serve(*more, fails_with=0):
        words = ("coordinator", "serve", "--task", population, "--broker", mosquitto_url, "--population", POPULATION)
        goals = ("--state-dir", tmp_path / "state", "--roster", tmp_path / "roster.sqlite", "--report-goal", 3)
        least = ("--min-reports", 2, "--over-selection", "1.0", "--epsilon", 20, "--clipping-norm", "0.5", "--json")
        return _flockwise(*words, *goals, *least, "--rounds", 2, "--privacy-rounds", 4, *more, fails_with=fails_with)

    members = [word for name in DEVICES for word in ("--committee", name)]
    masks = ("--confidentiality", "masks", "--directory", tmp_path / "authority" / "directory.fwkd", *members)
    try:
        assert "belongs to" in serve("--committee", "ward-0", fails_with=2).output
        assert "at least 3" in serve(*masks[:-4], fails_with=1).output
        assert "threshold of 3 to 4" in serve(*masks, "--committee-threshold", 2, fails_with=1).output
        told = json.loads(serve(*masks, "--dry-run").output)
        done = serve(*masks)
    finally:
        for daemon in daemons:
            daemon.stop()
        for thread in threads:
            thread.join()
    assert told["openers"] == list(DEVICES)
    assert "at most 1 of the 4 devices" in told["who_must_be_believed"]
    rounds = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    assert [row["num_commits"] for row in rounds] == [1, 2]
    assert all(row["num_reports"] == 3 for row in rounds)
    for name in DEVICES:
        book = tmp_path / name / "state" / BOOK_FILE
        # Written down before the answer: one set for each of the two rounds.
        assert not book.exists() if name == AWAY else _num_sets(book) == 2


def _num_sets(book):
    database = sqlite3.connect(book)
    (count,) = database.execute("SELECT COUNT(*) FROM sets").fetchone()
    database.close()
    return count
