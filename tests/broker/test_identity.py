"""Enrolment and signed rounds end to end: real daemons, TLS, a real Mosquitto with the deployed rights, a roster."""

import os
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner

from coordinator.admission import AdmissionPolicy
from coordinator.aggregation_spec import AggregationSpec
from coordinator.enrolment_tokens import make_token
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.roster import DeviceState, Roster
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.server import ServerConfig, open_task_state, run_rounds
from coordinator.task_bundle import TaskBundle
from edge_client.config import BrokerSection, DataSection, DeviceSection, EdgeConfig, TrainingSection
from edge_client.daemon import Daemon
from edge_client.enrolment import enrol
from edge_client.errors import EnrolmentRefused
from edge_client.example_store import write_examples
from edge_client.linear_trainer import linear_weights
from flockwise.cli import main
from wire_protocol.enrolment import EnrolmentToken
from wire_protocol.plan import TrainingPlan

pytestmark = pytest.mark.broker

WEIGHTS = linear_weights(input_shape=(30,), num_classes=3)
PLAN = TrainingPlan(batch_size=4, learning_rate=0.1, input_shape=(30,), num_classes=3, weights=WEIGHTS)
BUNDLE = TaskBundle(
    plan=PLAN, model_bytes=b"m", initial_weights=tuple(np.zeros(spec.shape, np.float32) for spec in WEIGHTS)
)
PATIENCE_S = 60.0


@pytest.fixture
def fleet(secure_mosquitto, tmp_path):
    """A coordinator with a roster, and the means to make devices; ends with the test."""
    fleet = Fleet(secure_mosquitto, tmp_path)
    fleet.start()
    yield fleet
    fleet.stop()


class Fleet:
    def __init__(self, broker, directory) -> None:
        self.broker, self.directory = broker, directory
        self.population = f"id-{os.urandom(4).hex()}"
        self.roster_file = directory / "roster.sqlite"
        Roster(self.roster_file).close()
        self.summaries, self.errors = [], []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(PATIENCE_S)
        assert self.errors == []

    def _run(self) -> None:
        aggregator = NumpyMeanAggregator(PLAN.weights, AggregationSpec())
        config = ServerConfig(
            broker_url=self.broker.url, population=self.population,
            policy=RoundPolicy(report_goal=1, min_reports=1, over_selection=1.0, selection_timeout_s=1.0),
            schedule=RoundSchedule(num_commits=100, max_abandoned_in_a_row=10_000), admission=AdmissionPolicy(),
            ca_file=self.broker.ca_file, certificate=self.broker.login("coordinator"), roster_file=self.roster_file,
        )  # fmt: skip
        try:
            run_rounds(
                config, bundle=BUNDLE, aggregator=aggregator,
                task=open_task_state(self.directory / "state", BUNDLE),
                on_round=lambda summary, _: self.summaries.append(summary), stop=self.stopping,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - told to the test
            self.errors.append(error)

    def token(self, **changes) -> EnrolmentToken:
        values = {"device_id": None, "valid_s": 60.0, "num_uses": 1} | changes
        token, record = make_token(population=self.population, now=time.time(), random_bytes=os.urandom, **values)
        roster = Roster(self.roster_file)
        roster.add_token(record)
        roster.close()
        return token

    def config(self, device_id: str) -> EdgeConfig:
        login, home = self.broker.login(device_id), self.directory / device_id
        rng = np.random.default_rng(1)
        if not (home / "data").exists():
            home.mkdir()
            x = rng.normal(size=(12, 30)).astype(np.float32)
            write_examples(home / "data", x=x, y=np.arange(12, dtype=np.int32) % 3)
        return EdgeConfig(
            device=DeviceSection(id=device_id, population=self.population, state_dir=str(home / "state")),
            broker=BrokerSection(
                url=self.broker.url, ca_file=self.broker.ca_file, cert_file=login.cert_file, key_file=login.key_file
            ),
            data=DataSection(path=str(home / "data")),
            training=TrainingSection(trainer="linear"),
        )


def test_a_device_enrols_takes_part_and_is_shut_out_when_revoked(fleet):
    config, token = fleet.config("dev-1"), fleet.token()
    assert enrol(config, token, timeout_s=PATIENCE_S) == "dev-1"
    daemon = Daemon(config)
    daemon.serve(until=lambda agent: agent.last_outcome is not None, timeout_s=PATIENCE_S)
    assert daemon.agent.last_outcome.ending.value == "accepted"

    with pytest.raises(EnrolmentRefused, match="token_used"):
        enrol(fleet.config("dev-2"), token, timeout_s=PATIENCE_S)

    words = ("--roster", str(fleet.roster_file), "--population", fleet.population, "--json")
    result = CliRunner().invoke(main, ["coordinator", "devices", "revoke", "dev-1", *words])
    assert result.exit_code == 0, result.output
    time.sleep(3.5)  # a refresh is every 2 s, and the coordinator's step takes up to 1 s
    before = len([summary for summary in fleet.summaries if summary.num_reports])
    daemon = Daemon(config)
    daemon.serve(until=lambda agent: agent.last_outcome is not None, timeout_s=4.0)
    assert daemon.agent.last_outcome is None
    assert len([summary for summary in fleet.summaries if summary.num_reports]) == before


def test_a_device_that_never_enrolled_is_not_heard(fleet):
    daemon = Daemon(fleet.config("dev-9"))
    daemon.serve(until=lambda agent: agent.last_outcome is not None, timeout_s=4.0)
    assert daemon.agent.last_outcome is None
    assert not any(summary.num_assigned for summary in fleet.summaries)


def test_the_operators_commands_make_a_token_and_show_the_device(fleet):
    words = ("--roster", str(fleet.roster_file), "--population", fleet.population)
    made = CliRunner().invoke(main, ["coordinator", "enrol-token", *words, "--device", "dev-3"])
    assert made.exit_code == 0, made.output
    enrol(fleet.config("dev-3"), EnrolmentToken.parse(made.output), timeout_s=PATIENCE_S)
    shown = CliRunner().invoke(main, ["coordinator", "devices", "list", *words])
    assert "dev-3" in shown.output
    assert DeviceState.ACTIVE.value in shown.output
    dry = CliRunner().invoke(main, ["coordinator", "devices", "revoke", "dev-3", *words, "--dry-run"])
    assert "would become revoked" in dry.output
    assert CliRunner().invoke(main, ["coordinator", "devices", "show", "dev-4", *words]).exit_code == 1
    nowhere = ("--roster", str(fleet.directory / "none"), "--population", "p")
    assert CliRunner().invoke(main, ["coordinator", "devices", "list", *nowhere]).exit_code == 1
    assert not (fleet.directory / "none").exists()
