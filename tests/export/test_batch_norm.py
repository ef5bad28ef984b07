"""Batch normalisation: statistics of the real examples, moving averages as Keras has them, in file and simulation."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from model_export.check_batches import draw_batch
from model_export.errors import ParityRefused, UnsupportedLayer
from model_export.exporter import build_export
from model_export.gradient_comparison import gradient_error
from model_export.keras_graph import read_graph
from model_export.keras_weights import travelling_weights
from model_export.lite_model import LiteModel
from model_export.lowering import layers as lowered_layers
from model_export.simulated_model import SimulatedModel
from wire_protocol.tensors import decode_tensors

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers
BATCH_SIZE = 6
PLAN = {"batch_size": BATCH_SIZE, "learning_rate": 0.1}


def normalized_model():
    """Two batch norms, on an image and on features; the first after a bias that it takes out again."""
    tf.keras.utils.set_random_seed(6)
    return tf.keras.Sequential(
        [
            layers.InputLayer((6, 5, 2)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(momentum=0.9, name="image"),
            layers.Activation("tanh"),
            layers.Flatten(),
            layers.Dense(5, activation="tanh"),
            layers.BatchNormalization(momentum=0.8, name="features"),
            layers.Dense(3),
        ]
    )


@pytest.fixture(scope="module")
def exported():
    model = normalized_model()
    return model, build_export(model, momentum=0.9, proximal_mu=0.1, **PLAN)


@pytest.fixture
def start(exported):
    """Weights away from the initial ones, variances above 0."""
    rng = np.random.default_rng(3)
    plan = exported[1].plan
    checkpoint = decode_tensors(exported[1].bundle.checkpoint, plan.weights)
    return tuple(np.abs(w + 0.2 * rng.standard_normal(w.shape)).astype(np.float32) for w in checkpoint)


def batch_of(model, num_examples, seed=1):
    batch = draw_batch("random", read_graph(model), BATCH_SIZE, np.random.default_rng(seed))
    return dataclasses.replace(batch, num_examples=num_examples)


def set_weights(model, weights):
    for variable, weight in zip(travelling_weights(model), weights, strict=True):
        variable.assign(weight)


def assert_close(got, expected, atol=1e-6):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def test_moving_statistics_travel_after_the_trainable_weights(exported):
    model, result = exported
    assert result.plan.num_statistics == 4
    shapes = [spec.shape for spec in result.plan.weights]
    assert shapes[-4:] == [(4,), (4,), (5,), (5,)]
    assert len(shapes) == len(model.weights)
    checkpoint = decode_tensors(result.bundle.checkpoint, result.plan.weights)
    assert_close(checkpoint[-4:], [np.zeros(4), np.ones(4), np.zeros(5), np.ones(5)], 0)


def test_the_certificate_covers_it_although_the_gradient_of_one_bias_is_zero(exported):
    certificate = exported[1].certificate
    assert certificate.max_gradient_error <= 1e-5
    assert certificate.max_weight_error <= 1e-5
    assert {"partial, blurred weights", "several steps, blurred weights"} <= {case.name for case in certificate.cases}


@pytest.mark.parametrize("num_examples", [BATCH_SIZE, 4, 1])
def test_a_step_moves_weights_and_statistics_as_keras_does_on_the_real_examples(start, num_examples):
    model = normalized_model()
    result = build_export(model, **PLAN)
    batch = batch_of(model, num_examples)
    file = LiteModel(result.bundle.model)
    file.restore(start)
    loss_sum, _, _ = file.train(batch, 0.1)
    set_weights(model, start)
    model.compile(tf.keras.optimizers.SGD(0.1), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    real = batch.real_examples()
    loss = model.train_on_batch(real.x, real.labels)
    assert loss_sum / num_examples == pytest.approx(loss, rel=1e-5)
    assert_close(file.save(), [variable.numpy() for variable in travelling_weights(model)], 2e-6)


def test_what_the_padding_holds_changes_no_bit(exported, start):
    model, result = exported
    batch = batch_of(model, 4)
    other = dataclasses.replace(batch, x=np.concatenate([batch.x[:4], 100 * batch.x[4:]]))
    file, outcomes = LiteModel(result.bundle.model), []
    for padded in (batch, other):
        file.restore(start)
        outcomes.append((file.train(padded, 0.1), file.save()))
    assert outcomes[0][0] == outcomes[1][0]
    assert_close(outcomes[0][1], outcomes[1][1], 0)


def test_a_batch_of_padding_alone_leaves_the_statistics(exported, start):
    file = LiteModel(exported[1].bundle.model)
    file.restore(start)
    file.train(batch_of(exported[0], 0), 0.1)
    assert_close(file.save()[-4:], start[-4:], 0)


def test_evaluation_and_inference_use_the_moving_statistics(exported, start):
    model, result = exported
    batch = batch_of(model, BATCH_SIZE)
    file = LiteModel(result.bundle.model)
    file.restore(start)
    set_weights(model, start)
    np.testing.assert_allclose(file.infer(batch.x), model(batch.x, training=False), atol=1e-5)
    file.evaluate(batch)
    assert_close(file.save(), start, 0)


def test_a_variance_that_noise_made_negative_gives_numbers(exported, start):
    file = LiteModel(exported[1].bundle.model)
    file.restore((*start[:-1], -start[-1]))
    assert np.isfinite(file.infer(batch_of(exported[0], BATCH_SIZE).x)).all()


def test_the_simulation_falls_by_the_same_amounts_and_gives_the_same_plan(exported, start):
    model, result = exported
    simulated = SimulatedModel(model, momentum=0.9, proximal_mu=0.1, **PLAN)
    assert simulated.plan == result.plan
    batch = batch_of(model, BATCH_SIZE)
    watched = [tf.constant(weight) for weight in start]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        output = simulated.predict(watched, batch.x, None, training=True)
        loss = tf.reduce_mean(simulated.example_loss(output, batch.labels))
    gradients = tape.gradient(loss, watched)
    file = LiteModel(result.bundle.model)
    file.restore(start)
    file.train(batch, 0.1)
    rates = [0.1] * (len(start) - 4) + [1.0] * 4
    expected = [w - rate * g.numpy() for w, g, rate in zip(start, gradients, rates, strict=True)]
    assert_close(file.save(), expected, 2e-6)


def test_a_frozen_batch_norm_is_a_constant_and_follows_nothing():
    model = normalized_model()
    model.get_layer("image").trainable = False
    model.get_layer("image").moving_variance.assign([0.5, 1.0, 2.0, 3.0])
    result = build_export(model, **PLAN)
    assert result.plan.num_statistics == 2
    assert result.certificate.max_gradient_error <= 1e-5


def test_a_batch_norm_used_twice_is_refused():
    inputs = tf.keras.Input((5,))
    norm = layers.BatchNormalization()
    model = tf.keras.Model(inputs, layers.Dense(3)(norm(layers.Dense(5)(norm(inputs)))))
    with pytest.raises(UnsupportedLayer, match="more than once"):
        read_graph(model)


# ---- seeded faults


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda s: dataclasses.replace(s, correction=s.correction * 0.0 + 1.0), "weights off by"),
        (lambda s: dataclasses.replace(s, mean=s.mean * 1.001), "weights off by"),
    ],
)
def test_a_wrong_moving_statistic_is_refused(monkeypatch, fault, words):
    right = lowered_layers.batch_normalize

    def wrong(x, mask, epsilon):
        h, pullback, statistics = right(x, mask, epsilon)
        return h, pullback, fault(statistics)

    monkeypatch.setattr(lowered_layers, "batch_normalize", wrong)
    with pytest.raises(ParityRefused, match=words):
        build_export(normalized_model(), **PLAN)


def test_statistics_that_see_the_padding_are_refused(monkeypatch):
    right = lowered_layers.batch_normalize
    monkeypatch.setattr(
        lowered_layers, "batch_normalize", lambda x, mask, epsilon: right(x, tf.ones_like(mask), epsilon)
    )
    with pytest.raises(ParityRefused, match="partial, blurred weights"):
        build_export(normalized_model(), **PLAN)


def test_a_gradient_through_the_mean_that_is_missing_is_refused_in_the_bias_whose_gradient_is_zero(monkeypatch):
    right = lowered_layers.batch_normalize

    def leaking(x, mask, epsilon):
        h, pullback, statistics = right(x, mask, epsilon)
        return h, lambda dy: pullback(dy) + 1e-4 * tf.reduce_mean(tf.abs(dy)), statistics

    monkeypatch.setattr(lowered_layers, "batch_normalize", leaking)
    with pytest.raises(ParityRefused, match="gradient off by"):
        build_export(normalized_model(), **PLAN)


def test_a_zero_gradient_is_judged_by_keras_own_rounding_and_a_small_one_is_not():
    big, rounding = np.ones(3), np.full(3, 1e-7)
    zero = np.zeros(3)
    assert gradient_error([big, rounding * 8], [big, rounding]) > 1e-5
    assert gradient_error([big, rounding * 8], [big, rounding], [big, zero]) <= 1e-5
    assert gradient_error([big, rounding * 800], [big, rounding], [big, zero]) > 1e-5
    assert gradient_error([big, rounding * 8], [big, rounding], [big, rounding]) > 1e-5
