"""Moving statistics in TFF's simulation, in the file on a device, and in the aggregation: the same numbers."""

import numpy as np
import pytest

from coordinator.aggregation_spec import AggregationSpec
from edge_client.litert_trainer import LiteRtTrainer
from edge_client.training import ArrayExamples, TrainingJob
from wire_protocol.messages import RoundKind

pytestmark = pytest.mark.tensorflow

PLAN = {"batch_size": 4, "learning_rate": 0.1, "momentum": 0.9, "num_epochs": 2, "seed": 2}


def normalized_model():
    import tensorflow as tf

    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(1)
    return tf.keras.Sequential(
        [
            layers.InputLayer((6,)),
            layers.Dense(5, activation="tanh"),
            layers.BatchNormalization(momentum=0.8),
            layers.Dense(3),
        ]
    )


def examples_of(device_id):
    rng = np.random.default_rng(list(device_id.encode()))
    num_examples = int(rng.integers(5, 11))  # batches of 4: most end an epoch with a short one
    x = rng.standard_normal((num_examples, 6)).astype(np.float32)
    return x, rng.integers(0, 3, num_examples).astype(np.int32)


def test_a_round_of_devices_and_a_round_of_tffs_simulation_give_the_same_weights_and_statistics(tiny_fleet):
    from coordinator.tff.simulation import build_simulation_process
    from coordinator.tff.simulation_data import client_dataset
    from model_export.exporter import build_export
    from model_export.simulated_model import SimulatedModel

    del tiny_fleet  # it sets TFF's context
    model = SimulatedModel(normalized_model(), **PLAN)
    export = build_export(normalized_model(), **PLAN)
    assert export.plan == model.plan
    process = build_simulation_process(model, AggregationSpec())
    datasets, results = [], []
    for device_id in ("a", "b"):
        x, y = examples_of(device_id)
        datasets.append(client_dataset(model.plan, x, y, round_id=1, device_id=device_id))
        job = TrainingJob(
            kind=RoundKind.TRAIN,
            plan=export.plan,
            model=export.bundle.model,
            checkpoint=model.initial_weights(),
            round_id=1,
            device_id=device_id,
        )
        results.append(LiteRtTrainer().train(job, ArrayExamples(x=x, y=y)))
    state = process.next(process.initialize(), datasets).state
    visits = sum(result.aggregation_weight for result in results)
    for index, (start, simulated) in enumerate(
        zip(model.initial_weights(), state.global_model_weights.trainable, strict=True)
    ):
        mean_delta = sum(result.aggregation_weight * result.model_delta[index] for result in results) / visits
        assert np.abs(mean_delta).max() > 1e-3
        np.testing.assert_allclose(start + mean_delta, simulated, rtol=0, atol=2e-6)
