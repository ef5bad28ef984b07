"""`flockwise coordinator serve --epsilon` over Mosquitto, with daemons as their owners run them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from coordinator.aggregation_spec import AggregationSpec
from coordinator.numpy_mean import NumpyMeanAggregator
from edge_client.example_store import write_examples
from edge_client.privacy.ledger import PrivacyLedger
from flockwise.cli import main
from simulators.virtual_run import linear_task
from wire_protocol.model_contract import BUNDLE_CHECKPOINT, BUNDLE_MODEL, BUNDLE_PLAN
from wire_protocol.tensors import encode_tensors

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
FLOCKWISE = Path(sys.executable).parent / "flockwise"
MODES = ('["central"]', '["central", "distributed"]', '["local"]')
"""Of three owners; the last one does not trust the coordinator."""
POPULATION = "orchards"


@pytest.fixture
def orchards(tmp_path, mosquitto_url):
    """The homes of three daemons that are running."""
    homes, daemons = [], []
    for index, modes in enumerate(MODES):
        home = tmp_path / f"pi-{index}"
        home.mkdir()
        x = np.random.default_rng(index).normal(size=(12, 64)).astype(np.float32)
        write_examples(home / "data", x=x, y=(x[:, 0] > 0).astype(np.int32))
        (home / "client.toml").write_text(
            f'[device]\nid = "pi-{index}"\npopulation = "{POPULATION}"\nstate_dir = "state"\n'
            f'[broker]\nurl = "{mosquitto_url}"\n[data]\npath = "data"\n'
            f"[privacy]\nepsilon = 30.0\nmodes = {modes}\n"
            '[training]\ntrainer = "linear"\n[eligibility]\npower = "mains"\nnetwork = "unmetered"\n'
        )
        with (home / "daemon.log").open("wb") as log:
            daemons.append(
                subprocess.Popen(
                    [str(FLOCKWISE), "edge", "run", "--config", "client.toml"], cwd=home, stdout=log, stderr=log,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                )
            )  # fmt: skip
        homes.append(home)
    yield homes
    for daemon in daemons:
        daemon.send_signal(signal.SIGTERM)
    assert [daemon.wait(30) for daemon in daemons] == [0, 0, 0]


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
def test_served_in_central_mode_willing_devices_pay_what_is_printed_and_the_budget_ends_it(
    tmp_path, mosquitto_url, orchards, bundle_dir, monkeypatch
):
    monkeypatch.setattr(
        "coordinator.server.tff_aggregator",
        lambda bundle, spec: NumpyMeanAggregator(bundle.plan.weights, AggregationSpec()),
    )
    state = tmp_path / "state"

    def serve(*more):
        words = ("coordinator", "serve", "--task", bundle_dir, "--broker", mosquitto_url, "--population", POPULATION)
        goals = ("--state-dir", state, "--report-goal", "3", "--min-reports", "2", "--over-selection", "1.0", "--json")
        return CliRunner().invoke(main, [str(word) for word in (*words, *goals, *more)])

    private = ("--epsilon", "20", "--clipping-norm", "0.5", "--privacy-mode", "central", "--privacy-rounds", "2")
    done = serve("--rounds", "2", *private)
    assert done.exit_code == 0, done.output
    rounds = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    assert [row["num_commits"] for row in rounds] == [1, 2]
    assert [row["num_reports"] for row in rounds] == [2, 2]
    assert all(row["metrics"].keys().isdisjoint({"loss", "accuracy"}) for row in rounds)
    assert rounds[0]["epsilon_let_through"] < rounds[1]["epsilon_let_through"] <= rounds[1]["epsilon_allowed"] == 20

    for home, is_willing in zip(orchards, (True, True, False), strict=True):
        path = home / "state" / "privacy.sqlite"
        if not is_willing:
            if path.exists():
                with PrivacyLedger(path, budget=None) as ledger:
                    assert ledger.entries == ()
            assert "privacy mode 'central'" in (home / "daemon.log").read_text()
            continue
        with PrivacyLedger(path, budget=None) as ledger:
            assert [entry.release_id.split("/")[0] for entry in ledger.entries] == ["round", "round"]
            # A device's own accountant and dp-accounting agree on what was let through.
            assert ledger.spent_epsilon == pytest.approx(rounds[1]["epsilon_let_through"], rel=1e-3)

    spent = serve("--rounds", "3", *private)
    assert spent.exit_code == 5, spent.output
    report = json.loads(CliRunner().invoke(main, ["privacy", "report", str(state), "--json"]).output)
    assert report["spent"]["rounds_charged_at_most"] == 2
    assert report["audit"]["holds"]
