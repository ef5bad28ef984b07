"""`flockwise query` over a real broker with real daemons, as an operator runs it."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from broker_link.link import Incoming
from broker_link.paho_link import PahoLink
from coordinator.admission import AdmissionPolicy
from coordinator.aggregation_spec import AggregationSpec
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.private_sum import private_aggregator
from coordinator.question_files import read_questions
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.server import ServerConfig, open_task_state, run_rounds
from edge_client.example_store import write_examples
from edge_client.privacy.accountant import cost_of, epsilon_of, no_cost
from edge_client.privacy.ledger import PrivacyLedger
from flockwise.cli import main
from simulators.virtual_run import linear_task
from wire_protocol.messages import Report, decode_message
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.topics import parse_device_topic, up_filter

pytestmark = [pytest.mark.broker, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
FLOCKWISE = Path(sys.executable).parent / "flockwise"
VALUES = (10.0, 20.0, 30.0)
POPULATION = "greenhouses"
FLEET_OF_THREE = RoundPolicy(report_goal=3, min_reports=3, over_selection=1.0, selection_timeout_s=60.0)
MEAN = ("mean", "--name", "temperature", "--of", "input_mean", "--low", "0", "--high", "40", "--epsilon", "2",
        "--min-contributors", "2")  # fmt: skip


class _Greenhouse:
    """A daemon that holds four examples of one temperature."""

    def __init__(self, root, index, broker):
        self.home = root / f"pi-{index}"
        self.home.mkdir()
        self.write_value(VALUES[index])
        (self.home / "client.toml").write_text(
            f'[device]\nid = "pi-{index}"\npopulation = "{POPULATION}"\nstate_dir = "state"\n'
            f'[broker]\nurl = "{broker}"\n[data]\npath = "data"\n'
            "[privacy]\nmin_contributors = 2\nepsilon = 6.0\n"
            '[eligibility]\npower = "mains"\nnetwork = "unmetered"\n'
        )
        self.ledger_path = self.home / "state" / "privacy.sqlite"

    def write_value(self, value):
        write_examples(self.home / "data", x=np.full((4, 1), value, np.float32), y=np.zeros(4, np.int32))

    def start(self, failpoint=""):
        with (self.home / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(FLOCKWISE), "edge", "run", "--config", "client.toml"], cwd=self.home, stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT), "FLOCKWISE_FAILPOINTS": failpoint},
            )  # fmt: skip

    def use_linear_trainer(self):
        """For the model of `_train`; answers to questions come from the usual trainer's process as well."""
        with (self.home / "client.toml").open("a") as settings:
            settings.write('[training]\ntrainer = "linear"\n')

    def entries(self):
        with PrivacyLedger(self.ledger_path, budget=None) as ledger:
            return ledger.entries

    def charged_bytes(self):
        database = sqlite3.connect(self.ledger_path)
        try:
            rows = database.execute("SELECT payload_sha256 FROM entries WHERE kind = 'charge'").fetchall()
        finally:
            database.close()
        return [bytes(digest) for (digest,) in rows]

    def log(self):
        return (self.home / "daemon.log").read_text()


@pytest.fixture
def greenhouses(tmp_path, embedded_url):
    """Three daemons that are not running yet."""
    devices = [_Greenhouse(tmp_path, index, embedded_url) for index in range(len(VALUES))]
    yield devices
    for device in devices:
        device.process.send_signal(signal.SIGTERM)
    assert [device.process.wait(30) for device in devices] == [0, 0, 0]


def _start_query(*words, cwd, broker):
    fleet = ("--broker", broker, "--population", POPULATION, "--state-dir", "state", "--period", "2026-11", "--json")
    return subprocess.Popen(
        [str(FLOCKWISE), "query", *words, *fleet, "--selection-timeout-s", "60", "--max-devices", "3"],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def _query(*words, cwd, broker):
    process = _start_query(*words, cwd=cwd, broker=broker)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def _query_that_asks_nobody(*words, cwd, broker):
    fleet = ("--broker", broker, "--population", POPULATION, "--state-dir", str(cwd / "state"), "--period", "2026-11")
    result = CliRunner().invoke(main, ["query", *words, *fleet, "--json"])
    return result.exit_code, result.output


def _wait_until(condition):
    ends_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def _train(directory, broker):
    """One private round of a linear model, by the coordinator that `coordinator serve` runs."""
    bundle = linear_task(1, 2)
    spec = PrivacySpec(mode="distributed", clipping_norm=1.0, noise_multiplier=8.0, min_contributors=2, num_rounds=1,
                       target_epsilon=1.0, grid_bits=11)  # fmt: skip
    plan = msgspec.structs.replace(bundle.plan, privacy=spec)
    bundle = type(bundle)(plan=plan, model_bytes=bundle.model_bytes, initial_weights=bundle.initial_weights)
    aggregator = private_aggregator(NumpyMeanAggregator(plan.weights, AggregationSpec()), plan, FLEET_OF_THREE)
    config = ServerConfig(
        broker_url=broker, population=POPULATION, policy=FLEET_OF_THREE, schedule=RoundSchedule(num_commits=1),
        admission=AdmissionPolicy(),
    )  # fmt: skip
    task = open_task_state(directory, bundle)
    return run_rounds(
        config, bundle=bundle, aggregator=aggregator, task=task, on_round=lambda *_: None, stop=threading.Event()
    )


def test_a_fleet_trains_and_is_asked_on_one_budget_and_the_answers_are_kept(tmp_path, greenhouses, embedded_url):
    for device in greenhouses:
        device.use_linear_trainer()
        device.start()
    assert _train(tmp_path / "state", embedded_url).num_commits == 1

    code, out, err = _query(*MEAN, cwd=tmp_path, broker=embedded_url)
    assert code == 0, err + greenhouses[0].log()
    answer = json.loads(out)
    assert (answer["num_reports"], answer["origin"]) == (3, "answered")
    # 3 devices, noise of scale 1 device: e^-12 that it is more than 12 times the growth of 3 devices instead of 2.
    assert abs(answer["estimates"][1]["value"] - 3) < 12 * 1.3
    code, out = _query_that_asks_nobody(*MEAN, cwd=tmp_path, broker=embedded_url)
    assert (code, json.loads(out)) == (0, answer | {"origin": "answered before"})

    bins = ("histogram", "--name", "spread", "--of", "input_mean", "--edges", "0,15,25,40", "--epsilon", "1",
            "--min-contributors", "3")  # fmt: skip
    code, out, err = _query(*bins, cwd=tmp_path, broker=embedded_url)
    assert code == 0, err
    assert [bin_["value"] for bin_ in json.loads(out)["estimates"]] == pytest.approx([1, 1, 1], abs=15)

    other = ("count", "--name", "temperature", "--low", "1", "--high", "9", "--epsilon", "1", "--min-contributors", "2")
    code, out = _query_that_asks_nobody(*other, cwd=tmp_path, broker=embedded_url)
    assert code == 1
    assert "other settings" in out
    too_dear = ("count", "--name", "sizes", "--low", "1", "--high", "9", "--epsilon", "3", "--min-contributors", "3")
    code, _, err = _query(*too_dear, cwd=tmp_path, broker=embedded_url)
    assert code == 3
    assert "no answer" in err

    for device in greenhouses:
        kinds = [entry.release_id.split("/")[:2] for entry in device.entries()]
        assert [kind if kind == "round" else name for kind, name in kinds] == ["round", "temperature", "spread"]
        spent = sum((cost_of(entry.event) for entry in device.entries()), start=no_cost())
        with PrivacyLedger(device.ledger_path, budget=None) as ledger:
            assert ledger.spent_epsilon == epsilon_of(spent, 1e-5) < 6.0


def test_a_device_killed_between_charge_and_publication_answers_with_the_bytes_that_were_charged(
    tmp_path, greenhouses, embedded_url
):
    said = []

    def hear(event):
        if isinstance(event, Incoming) and (topic := parse_device_topic(event.topic)).kind == "report":
            said.append((topic.device_id, decode_message(event.payload, Report).update.sha256))

    spy = PahoLink(url=embedded_url, client_id="spy", subscriptions=[up_filter(POPULATION)], sink=hear)
    spy.start()
    try:
        killed, *others = greenhouses
        for device in others:
            device.start()
        # After the charge, before the report is in the outbox: the ledger alone has the bytes.
        killed.start("device.outbox.before_store=1")
        asking = _start_query(*MEAN, cwd=tmp_path, broker=embedded_url)
        assert killed.process.wait(60) == -signal.SIGKILL, killed.log()
        # Whoever has been charged, an auditor sees what for.
        assert [kept.answer for kept in read_questions(tmp_path / "state")] == [None]
        charged = killed.charged_bytes()
        assert len(charged) == 1
        assert killed.home.name not in dict(said)
        # The command is stopped, too: started again, it goes on with the same round.
        _wait_until(lambda: {device for device, _ in said} == {device.home.name for device in others})
        asking.send_signal(signal.SIGTERM)
        asking.communicate(timeout=30)
        assert asking.returncode == 4
        asking = _start_query(*MEAN, cwd=tmp_path, broker=embedded_url)
        killed.write_value(40.0)
        killed.start()
        out, err = asking.communicate(timeout=90)
        assert asking.returncode == 0, err + killed.log()
        assert json.loads(out)["num_reports"] == 3
    finally:
        time.sleep(0.2)
        spy.stop()
    assert [kept.answer.num_reports for kept in read_questions(tmp_path / "state")] == [3]
    assert {digest for device, digest in said if device == killed.home.name} == set(charged)
    assert killed.charged_bytes() == charged
    assert [len(device.entries()) for device in greenhouses] == [1, 1, 1]
