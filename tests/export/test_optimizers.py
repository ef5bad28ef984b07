"""Optimizers in the model file, step for step against ``tf.keras.optimizers`` and against numpy."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from edge_client.linear_trainer import LinearTrainer
from edge_client.litert_trainer import LiteRtTrainer
from edge_client.training import ArrayExamples, TrainingJob
from model_export.check_batches import CheckBatch
from model_export.conversion import convert
from model_export.exporter import build_export
from model_export.keras_graph import read_graph
from model_export.keras_reference import keras_optimizer
from model_export.lite_model import LiteModel
from model_export.optimizer_table import MAX_ERROR, OPTIMIZERS, measure_optimizer
from model_export.plans import plan_for_graph
from model_export.train_step import TrainStep
from model_export.zoo import digits_mlp
from wire_protocol.messages import RoundKind
from wire_protocol.model_contract import PROXIMAL_MU, TRAIN

pytestmark = pytest.mark.tensorflow

TABLE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "reference" / "optimizers.md"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_steps_are_those_of_keras_and_the_documented_row_is_true(name):
    row = measure_optimizer(name)
    assert row.max_weight_error <= MAX_ERROR
    assert row.max_moved > 1e-3
    [line] = [line for line in TABLE.read_text().splitlines() if line.startswith(f"| {name} |")]
    _, _, error, moved, slots, _ = (cell.strip() for cell in line.split("|"))
    assert float(error) <= MAX_ERROR
    assert float(moved) == pytest.approx(row.max_moved, rel=0.5)
    assert int(slots) == row.num_slots


def test_the_documented_table_has_no_row_that_is_not_measured():
    rows = [line.split("|")[1].strip() for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    assert rows[1:] == list(OPTIMIZERS)


def linear_model():
    model = tf.keras.Sequential([tf.keras.layers.InputLayer((6,)), tf.keras.layers.Dense(4)])
    rng = np.random.default_rng(3)
    model.set_weights([rng.standard_normal(weight.shape).astype("f") for weight in model.get_weights()])
    return model


def linear_file(**fields):
    model = linear_model()
    graph = read_graph(model)
    plan = plan_for_graph(graph, batch_size=4, **fields)
    return model, plan, convert(TrainStep(graph, plan))


@pytest.mark.parametrize("name", ["Nesterov + FedProx 0.1", "AdamW + FedProx 1"])
def test_the_device_trains_a_file_as_the_numpy_trainer_does_and_again_in_the_next_round(name):
    model, plan, file = linear_file(**OPTIMIZERS[name], num_epochs=2)
    rng = np.random.default_rng(0)
    examples = ArrayExamples(x=rng.random((10, 6)).astype("f"), y=rng.integers(0, 4, 10).astype("i"))
    device = LiteRtTrainer()
    for round_id in (1, 2):  # the second finds used slots and an old anchor in the loaded file
        checkpoint = tuple(weight + np.float32(round_id) for weight in model.get_weights())
        job = TrainingJob(kind=RoundKind.TRAIN, plan=plan, model=file, checkpoint=checkpoint, round_id=round_id,
                          device_id="d")  # fmt: skip
        found, expected = device.train(job, examples), LinearTrainer().train(job, examples)
        for delta, wanted in zip(found.model_delta, expected.model_delta, strict=True):
            assert np.abs(wanted).max() > 1e-3
            np.testing.assert_allclose(delta, wanted, rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", ["SGD", "momentum 0.9", "AdamW + FedProx 1"])
def test_a_batch_of_padding_alone_is_a_keras_step_with_gradient_zero(name):
    model, plan, file = linear_file(**OPTIMIZERS[name])
    lite, rng = LiteModel(file), np.random.default_rng(0)
    batch = CheckBatch(x=rng.random((4, 6)).astype("f"), labels=np.arange(4, dtype="i"), tickets=np.zeros(4, "i"),
                       num_examples=4)  # fmt: skip
    padding = CheckBatch(x=batch.x, labels=batch.labels, tickets=batch.tickets, num_examples=0)
    lite.restore(model.get_weights())
    lite.train(batch, plan.learning_rate, proximal_mu=0.0)
    variables = [tf.Variable(weight) for weight in lite.save()]
    optimizer = keras_optimizer(plan)
    # Keras catches up with the slots through the same first gradient.
    first = [tf.Variable(weight) for weight in model.get_weights()]
    with tf.GradientTape() as tape:
        logits = batch.x @ first[0] + first[1]
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch.labels, logits))
    optimizer.apply_gradients(zip(tape.gradient(loss, first), first, strict=True))
    for mine, keras in zip(variables, first, strict=True):
        np.testing.assert_allclose(mine, keras, rtol=0, atol=1e-6)
    assert lite.train(padding, plan.learning_rate, proximal_mu=0.0) == (0.0, 0.0, 0.0)
    optimizer.apply_gradients(zip([tf.zeros_like(variable) for variable in first], first, strict=True))
    for mine, keras in zip(lite.save(), first, strict=True):
        np.testing.assert_allclose(mine, keras, rtol=0, atol=1e-6)


def test_mu_is_an_input_only_of_a_file_exported_with_it_and_zero_turns_it_off():
    model, plan, file = linear_file(learning_rate=0.1, proximal_mu=0.5)
    plain = linear_file(learning_rate=0.1)[2]
    lite, other = LiteModel(file), LiteModel(plain)
    assert PROXIMAL_MU in lite.input_ranks()[TRAIN]
    assert PROXIMAL_MU not in other.input_ranks()[TRAIN]
    batch = CheckBatch(x=np.eye(4, 6, dtype="f"), labels=np.arange(4, dtype="i"), tickets=np.zeros(4, "i"),
                       num_examples=4)  # fmt: skip
    for each in (lite, other):
        each.restore(model.get_weights())
        for _ in range(3):
            each.train(batch, plan.learning_rate, proximal_mu=0.0)
    for mine, wanted in zip(lite.save(), other.save(), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-6)


def test_an_adaptive_optimizer_is_certified_with_gradients_of_its_plain_sgd_twin():
    certificate = build_export(digits_mlp(), batch_size=4, **OPTIMIZERS["AdamW + FedProx 1"]).certificate
    assert certificate.gradients_read_from == "the same step with plain SGD"
    assert certificate.cases[0].name.startswith("several steps")
    assert certificate.max_gradient_error < certificate.tolerances.gradient
