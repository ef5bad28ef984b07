"""Small real models, devices that train them, and a fleet of threads: shared by tests and by the program they crash."""

import asyncio
import dataclasses
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from coordinator.aggregation import ClientUpdate
from coordinator.aggregation_spec import AggregationSpec
from coordinator.round_ids import RoundIds
from coordinator.tff.contexts import Cohort, FleetContext
from coordinator.tff.data_source import FleetDataSource
from coordinator.tff.processes import build_fleet_process
from coordinator.tff.program import FleetProgramContext
from coordinator.tff.state_manager import DurableStateManager
from edge_client.numpy_optimizer import NumpyOptimizer
from wire_protocol.local_order import local_steps
from wire_protocol.messages import Metrics
from wire_protocol.plan import TensorSpec, TrainingPlan
from wire_protocol.tensors import decode_tensors, encode_tensors

Examples = tuple[np.ndarray, np.ndarray]


class TanhMlp:
    """Two layers, 6 -> 5 -> 3, with dropout if the plan has it. Smooth: no kink can turn 1e-8 into 1e-2."""

    def __init__(
        self, *, has_dropout: bool = False, batch_size: int = 4, num_epochs: int = 2, **optimizer: Any
    ) -> None:
        shapes = [(6, 5), (5,), (5, 3), (3,)]
        self.plan = TrainingPlan(
            batch_size=batch_size,
            num_epochs=num_epochs,
            learning_rate=0.1,
            input_shape=(6,),
            num_classes=3,
            has_dropout=has_dropout,
            weights=tuple(TensorSpec(shape=shape) for shape in shapes),
            seed=3,
            **(optimizer or {"momentum": 0.9}),
        )

    def initial_weights(self):
        rng = np.random.default_rng(0)
        return tuple((0.5 * rng.standard_normal(spec.shape)).astype(np.float32) for spec in self.plan.weights)

    def predict(self, weights, x, tickets, *, training):
        hidden = tf.tanh(x @ weights[0] + weights[1])
        if training and tickets is not None:
            # Keeps or drops each unit by one bit of the example's ticket.
            bits = tf.bitwise.right_shift(tickets[:, None], tf.range(5)[None, :])
            hidden *= 2.0 * tf.cast(tf.bitwise.bitwise_and(bits, 1), tf.float32)
        return hidden @ weights[2] + weights[3]

    def example_loss(self, output, y):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=output)


class SoftmaxRegression:
    """One layer, 6 -> 3, plain SGD."""

    def __init__(self) -> None:
        self.plan = TrainingPlan(
            batch_size=4,
            learning_rate=0.2,
            input_shape=(6,),
            num_classes=3,
            weights=(TensorSpec(shape=(6, 3)), TensorSpec(shape=(3,))),
        )

    def initial_weights(self):
        return (np.zeros((6, 3), np.float32), np.zeros(3, np.float32))

    def predict(self, weights, x, tickets, *, training):
        del tickets, training
        return x @ weights[0] + weights[1]

    def example_loss(self, output, y):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=output)


def examples_of(device_id: str, num_examples: int) -> Examples:
    """A device's own data: three classes around three points."""
    rng = np.random.default_rng(list(device_id.encode()))
    y = rng.integers(0, 3, num_examples).astype(np.int32)
    x = (np.eye(3, 6)[y] + 0.5 * rng.standard_normal((num_examples, 6))).astype(np.float32)
    return x, y


def train_on_device(model: Any, weights: Any, examples: Examples, *, round_id: int, device_id: str) -> ClientUpdate:
    """What a device does, written without TFF: the plan's optimizer, in numpy, over its local steps."""
    plan = model.plan
    x, y = examples
    current = [tf.constant(weight) for weight in weights]
    optimizer = NumpyOptimizer(plan, tuple(weights))
    sums = np.zeros(3)
    for step in local_steps(plan, num_examples=len(y), round_id=round_id, device_id=device_id):
        labels = y[step.indices]
        tickets = tf.constant(step.tickets) if plan.has_dropout else None
        with tf.GradientTape() as tape:
            tape.watch(current)
            output = model.predict(tuple(current), x[step.indices], tickets, training=True)
            losses = model.example_loss(output, labels)
            loss = tf.reduce_sum(losses) / len(labels)
        gradients = tape.gradient(loss, current)
        moved = optimizer.step(tuple(map(np.asarray, current)), list(map(np.asarray, gradients)))
        current = [tf.constant(weight) for weight in moved]
        hits = float(np.sum(np.argmax(output, axis=-1) == labels))
        sums += (float(tf.reduce_sum(losses)), hits, len(labels))
    return ClientUpdate(
        model_delta=tuple(after.numpy() - before for after, before in zip(current, weights, strict=True)),
        aggregation_weight=float(sums[2]),
        metrics=Metrics(loss_sum=sums[0], num_correct=sums[1], weight_sum=sums[2]),
    )


class DeviceThreads:
    """A round transport in memory: each device is a thread that gets and sends bytes, and every report comes twice.

    Args:
        model: What devices train.
        silent: Devices that never answer.
        before_publish: Called with the round's id before anything is sent.
        before_report: Called with (round_id, number of the report) before one is handed over.
    """

    def __init__(
        self,
        model: Any,
        *,
        silent: frozenset[str] = frozenset(),
        before_publish: Callable[[int], None] = lambda _: None,
        before_report: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self._model = model
        self._silent = silent
        self._before_publish = before_publish
        self._before_report = before_report
        self._inbox: queue.SimpleQueue[tuple[str, bytes, ClientUpdate]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.closed: list[int] = []

    def publish(self, round_id: int, cohort: Cohort, weights: Any) -> None:
        self._before_publish(round_id)
        checkpoint = encode_tensors(weights)
        self._inbox = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._device, args=(device_id, round_id, checkpoint, self._inbox))
            for device_id in cohort.device_ids
            if device_id not in self._silent
        ]
        for thread in self._threads:
            thread.start()

    def _device(self, device_id: str, round_id: int, checkpoint: bytes, inbox: Any) -> None:
        received = decode_tensors(checkpoint, self._model.plan.weights)
        examples = examples_of(device_id, 3 + len(device_id))
        update = train_on_device(self._model, received, examples, round_id=round_id, device_id=device_id)
        for _ in range(2):
            inbox.put((device_id, encode_tensors(update.model_delta), update))

    def reports(self, round_id: int) -> Iterator[tuple[str, ClientUpdate]]:
        # The deadline is the moment when every device that will answer has answered.
        for thread in self._threads:
            thread.join()
        number = 0
        while not self._inbox.empty():
            device_id, data, update = self._inbox.get()
            number += 1
            self._before_report(round_id, number)
            delta = decode_tensors(data, self._model.plan.weights)
            yield device_id, dataclasses.replace(update, model_delta=delta)

    def close_round(self, round_id: int) -> None:
        self.closed.append(round_id)


PROGRAM_SPEC = AggregationSpec(server_optimizer="adam", server_learning_rate=0.05, clipping="adaptive")
PROGRAM_DEVICES = [f"device-{'x' * index}" for index in range(6)]


def run_program(directory: Path, *, num_rounds: int, transport: DeviceThreads, model: Any) -> dict[str, Any]:
    """Runs TFF's own training program over a fleet; returns what it released, by key."""
    fleet = build_fleet_process(model.plan.weights, PROGRAM_SPEC)
    context = FleetContext(
        transport, get_model_weights=fleet.get_model_weights, round_ids=RoundIds(directory / "round_id")
    )
    released = tff.program.MemoryReleaseManager()
    metrics = tff.program.MemoryReleaseManager()
    source = FleetDataSource(PROGRAM_DEVICES, weights=model.plan.weights, quorum_fraction=0.5)

    async def train() -> None:
        weights = tff.learning.models.ModelWeights(model.initial_weights(), ())
        state = await tff.program.materialize_value(fleet.set_model_weights(fleet.initialize(), weights))
        await tff.learning.programs.train_model(
            train_process=fleet,
            initial_train_state=state,
            train_data_source=source,
            train_per_round_clients=4,
            train_total_rounds=num_rounds,
            program_state_manager=DurableStateManager(directory / "states"),
            model_output_manager=released,
            train_metrics_manager=metrics,
            evaluation_manager=None,
            evaluation_periodicity=1,
        )

    async def in_context() -> None:
        tff.framework.set_default_context(FleetProgramContext(context))
        await train()

    asyncio.run(in_context())
    return {**released.values(), "metrics": metrics.values()}


def full_batch_model() -> TanhMlp:
    """One batch holds all of a device's examples: the round's number, which a crash uses up, then hardly matters."""
    return TanhMlp(batch_size=16)


def main(directory: Path) -> None:
    """Dies in the third round, after the second report, as by a power cut."""

    def power_cut(round_id: int, number: int) -> None:
        if round_id == 3 and number == 2:
            os._exit(9)

    model = full_batch_model()
    run_program(directory, num_rounds=4, transport=DeviceThreads(model, before_report=power_cut), model=model)


if __name__ == "__main__":
    import sys

    main(Path(sys.argv[1]))
