"""Rounds with a pinned coordinator key over a real broker: forged tasks and assignments on the same topics change nothing."""

import base64
import threading
import uuid

import pytest

from broker_link.paho_link import PahoLink
from coordinator.admission import AdmissionPolicy
from coordinator.aggregation_spec import AggregationSpec
from coordinator.checkpoints import CheckpointStore
from coordinator.down_signing import load_signer
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.round_ids import RoundIds
from coordinator.round_journal import RoundJournal
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import RoundState
from coordinator.server import ServerConfig, TaskState, run_rounds
from edge_client.config_loader import load_config
from edge_client.daemon import Daemon
from edge_client.example_store import write_examples
from simulators.process_fleet import write_device_config
from simulators.scenario import load_scenario
from simulators.virtual_run import linear_task
from wire_protocol.blobs import split_blob
from wire_protocol.messages import TaskAnnouncement, encode_message
from wire_protocol.topics import population_task

pytestmark = pytest.mark.broker

NUM_DEVICES = 2
NUM_ROUNDS = 3
WAIT_S = 60


def _daemon(directory, url, population, index, key):
    scenario = load_scenario("digits", num_devices=35, partition="iid", alpha=1.0, seed=0)
    path = write_device_config(
        directory, device_id=scenario.device_id(index), population=population, broker_url=url, num_threads=1
    )
    text = path.read_text().replace("[training]\n", '[training]\ntrainer = "linear"\n')
    path.write_text(text.replace("[broker]\n", f'[broker]\ncoordinator_key = "{base64.b64encode(key).decode()}"\n'))
    x, y = scenario.examples(index)
    write_examples(path.parent / "data", x=x, y=y)
    return Daemon(load_config(path, {}))


def test_rounds_go_on_while_somebody_forges_tasks_on_the_same_broker(tmp_path, embedded_url):
    population = f"signed-{uuid.uuid4().hex[:8]}"
    signer = load_signer(tmp_path / "coordinator")
    bundle = linear_task(64, 10, batch_size=8, num_epochs=1, learning_rate=0.1)
    aggregator = NumpyMeanAggregator(bundle.plan.weights, AggregationSpec())
    daemons = [_daemon(tmp_path, embedded_url, population, index, signer.public_key) for index in range(NUM_DEVICES)]
    threads = [threading.Thread(target=daemon.serve, kwargs={"timeout_s": WAIT_S}) for daemon in daemons]
    summaries, stop = [], threading.Event()
    forger = PahoLink(url=embedded_url, client_id=uuid.uuid4().hex, subscriptions=[], sink=lambda _: None)
    forger.start()
    forged = split_blob(b"a plan of the forger's")
    task = TaskAnnouncement(task_id="task-forged", plan=forged.ref, model=forged.ref, check_in_after_s=(0.0, 0.0))
    for thread in threads:
        thread.start()

    def on_round(summary, state):
        del state
        summaries.append(summary)
        # Retained: every device that connects from now on hears this one, too.
        forger.publish(population_task(population), encode_message(task), retain=True)

    config = ServerConfig(
        broker_url=embedded_url,
        population=population,
        policy=RoundPolicy(
            report_goal=NUM_DEVICES,
            min_reports=NUM_DEVICES,
            over_selection=1.0,
            selection_timeout_s=20.0,
            report_timeout_s=30.0,
        ),
        schedule=RoundSchedule(num_commits=NUM_ROUNDS),
        admission=AdmissionPolicy(),
        signer=signer,
    )
    state = TaskState(
        store=CheckpointStore(tmp_path / "states"),
        journal=RoundJournal(tmp_path / "journal.sqlite"),
        round_ids=RoundIds(),
        state=aggregator.initialize(bundle.initial_weights),
        is_resumed=False,
    )
    watchdog = threading.Timer(WAIT_S, stop.set)
    watchdog.start()
    try:
        run_rounds(config, bundle=bundle, aggregator=aggregator, task=state, on_round=on_round, stop=stop)
    finally:
        watchdog.cancel()
        for daemon in daemons:
            daemon.stop()
        for thread in threads:
            thread.join()
        forger.stop()
    assert [summary.state for summary in summaries] == [RoundState.COMMITTED] * NUM_ROUNDS
    assert {daemon.agent.task_id for daemon in daemons} == {bundle.task_id}, "nobody took up the forged task"
