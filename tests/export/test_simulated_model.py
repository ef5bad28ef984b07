"""The model a simulation trains, against Keras and against the exported file."""

import numpy as np
import pytest
import tensorflow as tf

from model_export.check_batches import CheckBatch
from model_export.keras_graph import read_graph
from model_export.keras_reference import KerasReference
from model_export.lite_model import LiteModel
from model_export.simulated_model import SimulatedModel
from model_export.zoo import digits_cnn, mnist_cnn

from .conftest import BATCH_SIZE, LEARNING_RATE, mixed_model

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def mnist_simulated():
    return SimulatedModel(mnist_cnn(), batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, num_epochs=2, seed=3)


def gradients(simulated, weights, x, y, tickets):
    variables = [tf.constant(weight) for weight in weights]
    with tf.GradientTape() as tape:
        tape.watch(variables)
        output = simulated.predict(variables, tf.constant(x), tickets, training=True)
        loss = tf.reduce_mean(simulated.example_loss(output, tf.constant(y)))
    return float(loss), tape.gradient(loss, variables)


def test_its_plan_is_the_exported_plan(mnist_simulated, mnist_export):
    assert mnist_simulated.plan == mnist_export.plan


def test_its_initial_weights_are_those_of_keras_in_order():
    simulated = SimulatedModel(digits_cnn(seed=4), batch_size=4, learning_rate=0.1)
    for got, expected in zip(simulated.initial_weights(), digits_cnn(seed=4).get_weights(), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("build", [digits_cnn, mnist_cnn, mixed_model])
def test_its_loss_and_gradients_are_those_of_keras_with_the_same_masks(build, rng):
    model = build()
    simulated = SimulatedModel(model, batch_size=4, learning_rate=0.1)
    plan = simulated.plan
    batch = CheckBatch(
        x=rng.random((4, *plan.input_shape)).astype("f"),
        labels=rng.integers(0, plan.num_classes, 4).astype("i"),
        tickets=rng.integers(0, 2**31, 4).astype("i"),
        num_examples=4,
    )
    reference = KerasReference(model, read_graph(model))
    reference.set_weights(simulated.initial_weights())
    keras_loss, keras_gradients = reference.gradients(batch)
    loss, got = gradients(simulated, simulated.initial_weights(), batch.x, batch.labels, batch.tickets)
    assert loss == pytest.approx(keras_loss / 4, rel=1e-6)
    for mine, theirs in zip(got, keras_gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-6)


def test_one_step_of_it_is_one_step_of_the_exported_file(mnist_simulated, mnist_export, rng):
    plan, weights = mnist_simulated.plan, mnist_simulated.initial_weights()
    batch = CheckBatch(
        x=rng.random((BATCH_SIZE, 28, 28, 1)).astype("f"),
        labels=rng.integers(0, 10, BATCH_SIZE).astype("i"),
        tickets=rng.integers(0, 2**31, BATCH_SIZE).astype("i"),
        num_examples=BATCH_SIZE,
    )
    file = LiteModel(mnist_export.bundle.model)
    file.restore(weights)
    loss_sum, _, _ = file.train(batch, plan.learning_rate)
    loss, steps = gradients(mnist_simulated, weights, batch.x, batch.labels, batch.tickets)
    assert loss_sum / BATCH_SIZE == pytest.approx(loss, rel=1e-6)
    for after, before, gradient in zip(file.save(), weights, steps, strict=True):
        np.testing.assert_allclose(after, before - plan.learning_rate * gradient, rtol=0, atol=1e-6)


def test_the_batch_dimension_may_be_unknown(mnist_simulated, rng):
    weights = [tf.constant(weight) for weight in mnist_simulated.initial_weights()]
    specs = [tf.TensorSpec([None, 28, 28, 1]), tf.TensorSpec([None], tf.int32)]
    predict = tf.function(lambda x, t: mnist_simulated.predict(weights, x, t, training=True), input_signature=specs)
    x, tickets = rng.random((5, 28, 28, 1)).astype("f"), np.arange(5, dtype="i")
    whole = predict(x, tickets).numpy()
    assert whole.shape == (5, 10)
    np.testing.assert_allclose(predict(x[:2], tickets[:2]), whole[:2], atol=1e-6)


def test_training_with_dropout_demands_tickets(mnist_simulated):
    with pytest.raises(ValueError, match="ticket"):
        mnist_simulated.predict(mnist_simulated.initial_weights(), tf.zeros([1, 28, 28, 1]), None, training=True)


def test_evaluation_has_no_dropout(mnist_simulated, rng):
    x = tf.constant(rng.random((3, 28, 28, 1)).astype("f"))
    weights = mnist_simulated.initial_weights()
    with_tickets = mnist_simulated.predict(weights, x, tf.range(3), training=False)
    np.testing.assert_array_equal(with_tickets, mnist_simulated.predict(weights, x, None, training=False))
    np.testing.assert_allclose(with_tickets, mnist_cnn()(x), atol=1e-5)


def test_the_loss_of_a_confident_wrong_softmax_is_not_clipped():
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.InputLayer((2,)), layers.Dense(2, activation="softmax")])
    simulated = SimulatedModel(model, batch_size=1, learning_rate=0.1)
    weights = [np.eye(2, dtype="f"), np.zeros(2, "f")]
    output = simulated.predict(weights, tf.constant([[40.0, 0.0]]), None, training=True)
    assert float(simulated.example_loss(output, tf.constant([1]))[0]) == pytest.approx(40)
    reference = KerasReference(model, read_graph(model))
    reference.set_weights(weights)
    wrong = CheckBatch(x=np.array([[40, 0]], "f"), labels=np.array([1], "i"), tickets=np.zeros(1, "i"), num_examples=1)
    assert reference.evaluate(wrong)[0] == pytest.approx(40)
