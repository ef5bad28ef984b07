"""The cornerstone: real device daemons, LiteRT, a real broker and our coordinator do what TFF's own simulation does."""

import queue
import random
import threading
import time

import numpy as np
import pytest

pytestmark = [pytest.mark.broker, pytest.mark.tensorflow]

SIZES = (40, 37, 33, 16)
PLAN_FIELDS = {"batch_size": 16, "learning_rate": 0.1, "momentum": 0.9, "num_epochs": 2, "seed": 3}


@pytest.fixture(scope="module")
def model():
    """A convolutional net with max-pooling and dropout, exported; and its native twin for the simulation."""
    import tensorflow as tf

    from model_export.simulated_model import SimulatedModel

    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    keras_model = tf.keras.Sequential(
        [
            layers.InputLayer((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10),
        ]
    )
    return keras_model, SimulatedModel(keras_model, **PLAN_FIELDS)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    """The exported task."""
    from coordinator.task_bundle import read_task_bundle
    from model_export.exporter import export_model

    directory = tmp_path_factory.mktemp("export") / "bundle"
    export_model(model[0], out_dir=directory, **PLAN_FIELDS)
    return read_task_bundle(directory)


@pytest.fixture(scope="module")
def aggregator(bundle):
    """FedAvg, compiled by TFF."""
    from coordinator.aggregation_spec import AggregationSpec
    from coordinator.server import tff_aggregator

    return tff_aggregator(bundle, AggregationSpec())


@pytest.fixture(scope="module")
def examples():
    """Real digits, a few per device."""
    from simulators.datasets import load_digits

    digits = load_digits()
    stops = np.cumsum(SIZES)
    return {
        f"device-{index}": (
            digits.x_train[stop - size : stop].reshape(-1, 8, 8, 1),
            digits.y_train[stop - size : stop],
        )
        for index, (size, stop) in enumerate(zip(SIZES, stops, strict=True))
    }


@pytest.fixture
def start_fleet(tmp_path, examples):
    """Starts real daemons in two processes; they are stopped at the end."""
    import contextlib

    from edge_client.example_store import write_examples
    from simulators.process_fleet import ProcessFleet, write_device_config

    with contextlib.ExitStack() as stack:

        def start(url: str, population: str) -> ProcessFleet:
            configs = []
            for device_id, (x, y) in examples.items():
                configs.append(
                    write_device_config(
                        tmp_path, device_id=device_id, population=population, broker_url=url, num_threads=1
                    )
                )
                write_examples(tmp_path / device_id / "data", x=x, y=y)
            return stack.enter_context(ProcessFleet(configs, num_processes=2, log_dir=tmp_path / "logs"))

        yield start


def _simulate(model, examples, num_rounds: int):
    """TFF's own rounds over simulated clients with the same data, order and dropout tickets."""
    import tensorflow_federated as tff

    from coordinator.aggregation_spec import AggregationSpec
    from coordinator.tff.contexts import InProcessContext
    from coordinator.tff.simulation import build_simulation_process
    from coordinator.tff.simulation_data import client_dataset

    tff.framework.set_default_context(InProcessContext())
    process = build_simulation_process(model, AggregationSpec())
    state, metrics = process.initialize(), []
    for round_id in range(1, num_rounds + 1):
        datasets = [
            client_dataset(model.plan, x, y, round_id=round_id, device_id=device_id)
            for device_id, (x, y) in examples.items()
        ]
        output = process.next(state, datasets)
        state = output.state
        metrics.append(output.metrics["client_work"]["train"])
    return process.get_model_weights(state).trainable, metrics


def _serve(url, population, bundle, aggregator, tmp_path, *, num_rounds, num_devices, evaluate_every=0, stop=None):
    from coordinator.admission import AdmissionPolicy
    from coordinator.round_loop import RoundSchedule
    from coordinator.round_policy import RoundPolicy
    from coordinator.server import ServerConfig, open_task_state, run_rounds

    config = ServerConfig(
        broker_url=url,
        population=population,
        policy=RoundPolicy(report_goal=num_devices, min_reports=num_devices, over_selection=1.0),
        schedule=RoundSchedule(num_commits=num_rounds, evaluate_every=evaluate_every),
        admission=AdmissionPolicy(),
    )
    summaries = []
    loop = run_rounds(
        config,
        bundle=bundle,
        aggregator=aggregator,
        task=open_task_state(tmp_path / "state", bundle),
        on_round=lambda summary, _: summaries.append(summary),
        stop=stop or threading.Event(),
    )
    return loop, summaries


def test_a_round_over_litert_and_mqtt_equals_tffs_simulated_round(
    model, bundle, aggregator, examples, start_fleet, broker_url, tmp_path
):
    population = f"parity-{random.getrandbits(32)}"
    start_fleet(broker_url, population)
    loop, summaries = _serve(
        broker_url, population, bundle, aggregator, tmp_path, num_rounds=1, num_devices=len(SIZES), evaluate_every=1
    )
    expected, metrics = _simulate(model[1], examples, 1)
    errors = [float(np.abs(ours - theirs).max()) for ours, theirs in zip(loop.state.weights, expected, strict=True)]
    moved = [
        float(np.abs(after - before).max()) for after, before in zip(expected, bundle.initial_weights, strict=True)
    ]
    assert max(errors) <= 1e-6
    assert min(moved) > 1e-3
    assert summaries[0].metrics["loss"] == pytest.approx(float(metrics[0]["loss"]), abs=1e-6)
    assert summaries[0].metrics["weight_sum"] == 2 * sum(SIZES)
    assert summaries[1].kind.value == "evaluate"
    assert summaries[1].metrics["weight_sum"] == sum(SIZES)


def test_hostile_neighbours_on_the_broker_change_nothing(bundle, aggregator, start_fleet, embedded_url, tmp_path):
    from broker_link.link import LinkUp
    from broker_link.paho_link import PahoLink
    from coordinator.round_table import RoundState
    from wire_protocol.topics import device_down_filter

    population = f"hostile-{random.getrandbits(32)}"
    stop = threading.Event()

    def attack() -> None:
        events: queue.Queue = queue.Queue()
        evil = PahoLink(
            url=embedded_url,
            client_id="evil",
            subscriptions=[device_down_filter(population, "evil")],
            sink=events.put,
        )
        evil.start()
        assert isinstance(events.get(timeout=30), LinkUp)
        rng = random.Random(0)
        while not stop.is_set():
            for kind in ("check-in", "report", "piece", "piece-request", "withdrawal", "nonsense"):
                payload = b"FW\x01" + rng.randbytes(rng.choice([0, 10, 5000, 200_000]))
                evil.publish(f"fw/v1/{population}/d/evil/up/{kind}", payload)
            time.sleep(0.05)
        evil.stop()

    attacker = threading.Thread(target=attack, daemon=True)
    attacker.start()
    start_fleet(embedded_url, population)
    try:
        loop, summaries = _serve(
            embedded_url, population, bundle, aggregator, tmp_path, num_rounds=2, num_devices=len(SIZES)
        )
    finally:
        stop.set()
        attacker.join(30)
    assert [summary.state for summary in summaries] == [RoundState.COMMITTED] * 2
    assert sum(loop.rejections.values()) > 0


def test_tffs_own_train_model_runs_unmodified_over_devices_on_mqtt(
    model, bundle, examples, start_fleet, embedded_url, tmp_path
):
    import asyncio
    import os

    import tensorflow_federated as tff

    from broker_link.paho_link import PahoLink
    from coordinator.aggregation_spec import AggregationSpec
    from coordinator.fleet import FleetCoordinator
    from coordinator.fleet_transport import FleetTransport
    from coordinator.round_ids import RoundIds
    from coordinator.round_policy import RoundPolicy
    from coordinator.tff.contexts import FleetContext
    from coordinator.tff.data_source import FleetDataSource
    from coordinator.tff.program import FleetProgramContext
    from coordinator.tff.simulation import build_learning_processes
    from coordinator.tff.state_manager import DurableStateManager

    population = f"program-{random.getrandbits(32)}"
    fleet = FleetCoordinator(
        population=population,
        bundle=bundle,
        policy=RoundPolicy(report_goal=len(SIZES), min_reports=len(SIZES), over_selection=1.0),
        rng=random.SystemRandom(),
        token=os.urandom,
    )
    transport = FleetTransport(
        fleet=fleet,
        connect=lambda sink: PahoLink(
            url=embedded_url, client_id=population, subscriptions=fleet.subscriptions, sink=sink
        ),
    )
    start_fleet(embedded_url, population)
    process = build_learning_processes(model[1], AggregationSpec()).fleet
    context = FleetContext(transport, get_model_weights=process.get_model_weights, round_ids=RoundIds())
    released, metrics = tff.program.MemoryReleaseManager(), tff.program.MemoryReleaseManager()

    async def program() -> None:
        tff.framework.set_default_context(FleetProgramContext(context))
        weights = tff.learning.models.ModelWeights(bundle.initial_weights, ())
        state = await tff.program.materialize_value(process.set_model_weights(process.initialize(), weights))
        await tff.learning.programs.train_model(
            train_process=process,
            initial_train_state=state,
            train_data_source=FleetDataSource(sorted(examples), weights=bundle.plan.weights),
            train_per_round_clients=len(SIZES),
            train_total_rounds=2,
            program_state_manager=DurableStateManager(tmp_path / "states"),
            model_output_manager=released,
            train_metrics_manager=metrics,
            evaluation_manager=None,
            evaluation_periodicity=1,
        )

    transport.start()
    try:
        asyncio.run(program())
    finally:
        transport.stop()
    expected, expected_metrics = _simulate(model[1], examples, 2)
    assert not fleet.intake.rejections
    first = metrics.values()[1]["model_metrics"]
    assert float(first["loss"]) == pytest.approx(float(expected_metrics[0]["loss"]), abs=1e-6)
    assert float(first["weight_sum"]) == 2 * sum(SIZES)
    # The second round starts from weights that differ in the last bit, which a ReLU's kink may blow up.
    trained = process.get_model_weights(released.values()["training_checkpoint_round_2"]).trainable
    assert max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(trained, expected, strict=True)) <= 1e-3
