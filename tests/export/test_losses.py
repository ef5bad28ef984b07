"""Every loss in LiteRT against Keras: figures, gradients, the short batch, the model that a simulation trains."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from edge_client.litert_trainer import LiteRtTrainer
from edge_client.training import ArrayExamples, TrainingJob
from model_export.certificate import decode_certificate
from model_export.check_batches import draw_batch
from model_export.errors import ParityRefused, UnsupportedModel
from model_export.exporter import build_export
from model_export.keras_graph import read_graph
from model_export.keras_loss import keras_loss
from model_export.lite_model import LiteModel
from model_export.loss_spec import LossSpec
from model_export.lowering import losses as lowered_losses
from model_export.simulated_model import SimulatedModel
from wire_protocol.messages import RoundKind
from wire_protocol.tensors import decode_tensors

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers
BATCH_SIZE = 8
PLAN = {"batch_size": BATCH_SIZE, "learning_rate": 0.1}
TOLERANCE = 1e-5


def small_model(num_outputs, activation=None):
    tf.keras.utils.set_random_seed(3)
    return tf.keras.Sequential(
        [layers.InputLayer((5,)), layers.Dense(6, activation="tanh"), layers.Dense(num_outputs, activation=activation)]
    )


ROWS = {
    "sparse categorical": (LossSpec(), 4, None),
    "categorical": (LossSpec(name="categorical_crossentropy"), 4, None),
    "categorical of a softmax": (LossSpec(name="categorical_crossentropy"), 4, "softmax"),
    "binary": (LossSpec(name="binary_crossentropy"), 1, None),
    "binary of a sigmoid": (LossSpec(name="binary_crossentropy"), 1, "sigmoid"),
    "binary, three answers": (LossSpec(name="binary_crossentropy"), 3, None),
    "squared error": (LossSpec(name="mean_squared_error"), 1, None),
    "squared error of a sigmoid": (LossSpec(name="mean_squared_error"), 2, "sigmoid"),
    "squared error of a softmax": (LossSpec(name="mean_squared_error"), 3, "softmax"),
    "absolute error": (LossSpec(name="mean_absolute_error"), 3, None),
    "Huber 1": (LossSpec(name="huber"), 1, None),
    "Huber 0.3": (LossSpec(name="huber", huber_delta=0.3), 2, None),
}


@pytest.fixture(scope="module")
def exported():
    """Row -> (Keras model, export); each is converted once."""
    made = {}

    def get(name):
        if name not in made:
            loss, num_outputs, activation = ROWS[name]
            model = small_model(num_outputs, activation)
            made[name] = model, build_export(model, loss=loss, **PLAN)
        return made[name]

    return get


@pytest.mark.parametrize("num_examples", [BATCH_SIZE, 5])
@pytest.mark.parametrize("name", ROWS)
def test_a_step_and_its_figures_are_those_of_keras_on_the_examples_that_count(exported, name, num_examples):
    model, export = exported(name)
    graph = read_graph(model, ROWS[name][0])
    batch = draw_batch("random", graph, BATCH_SIZE, np.random.default_rng(1))
    batch = dataclasses.replace(batch, num_examples=num_examples)
    real = batch.real_examples()
    weights = decode_tensors(export.bundle.checkpoint, export.plan.weights)
    file = LiteModel(export.bundle.model)
    file.restore(weights)
    loss_sum, num_correct, weight_sum = file.train(batch, 0.1)
    with tf.GradientTape() as tape:
        output = model(real.x)
        loss = keras_loss(graph, "sum_over_batch_size")(real.labels, output)
    gradients = tape.gradient(loss, model.trainable_weights)
    assert weight_sum == num_examples
    assert loss_sum / num_examples == pytest.approx(float(loss), rel=TOLERANCE)
    for after, before, gradient in zip(file.save(), weights, gradients, strict=True):
        np.testing.assert_allclose(after, before - 0.1 * gradient.numpy(), rtol=0, atol=1e-6)
    if graph.loss.is_regression:
        metric = tf.keras.metrics.MeanAbsoluteError()
        metric.update_state(real.labels, output)
        assert num_correct == 0
        assert file.absolute_error_sum / num_examples == pytest.approx(float(metric.result()), rel=TOLERANCE)
    else:
        assert file.absolute_error_sum == 0


@pytest.mark.parametrize("name", ROWS)
def test_the_certificate_names_the_loss_and_is_within_its_tolerances(exported, name):
    _, export = exported(name)
    certificate = decode_certificate(export.bundle.certificate)
    assert certificate.loss == export.plan.loss == ROWS[name][0].name
    assert export.plan.huber_delta == ROWS[name][0].huber_delta
    assert certificate.max_loss_error <= TOLERANCE
    assert certificate.max_gradient_error <= TOLERANCE


@pytest.mark.parametrize("name", ROWS)
def test_a_simulation_minimises_the_same_loss(exported, name):
    model, export = exported(name)
    loss, _, _ = ROWS[name]
    simulated = SimulatedModel(model, loss=loss, **PLAN)
    assert simulated.plan == export.plan
    batch = draw_batch("random", read_graph(model, loss), BATCH_SIZE, np.random.default_rng(2))
    file = LiteModel(export.bundle.model)
    file.restore(simulated.initial_weights())
    output = simulated.predict(simulated.initial_weights(), batch.x, None, training=True)
    expected = float(tf.reduce_sum(simulated.example_loss(output, batch.labels)))
    assert file.evaluate(batch)[0] == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("name", ["sparse categorical", "categorical of a softmax", "binary of a sigmoid", "binary"])
def test_the_number_of_right_answers_is_that_of_keras_accuracy(exported, name):
    model, export = exported(name)
    loss, _, activation = ROWS[name]
    batch = draw_batch("random", read_graph(model, loss), BATCH_SIZE, np.random.default_rng(5))
    file = LiteModel(export.bundle.model)
    file.restore(decode_tensors(export.bundle.checkpoint, export.plan.weights))
    metric = {
        "sparse_categorical_crossentropy": tf.keras.metrics.SparseCategoricalAccuracy(),
        "categorical_crossentropy": tf.keras.metrics.CategoricalAccuracy(),
        "binary_crossentropy": tf.keras.metrics.BinaryAccuracy(threshold=0.5 if activation else 0.0),
    }[loss.name]
    metric.update_state(batch.labels, model(batch.x))
    assert file.evaluate(batch)[1] == pytest.approx(BATCH_SIZE * float(metric.result()))
    assert 0 < file.evaluate(batch)[1] < BATCH_SIZE


@pytest.mark.parametrize("logit", [100.0, -100.0, 3e4])
def test_binary_cross_entropy_of_a_confident_wrong_answer_is_neither_clipped_nor_infinite(logit):
    scores = lowered_losses.score(
        LossSpec(name="binary_crossentropy"), tf.constant([[logit]]), tf.constant([[float(logit < 0)]])
    )
    assert float(scores.losses[0, 0]) == pytest.approx(abs(logit))
    assert float(scores.pullback(tf.ones([1, 1]))[0, 0]) == pytest.approx(np.sign(logit))


def test_absolute_error_has_no_slope_where_it_is_zero_and_huber_has_that_of_the_square():
    zero, near = tf.zeros([1, 1]), tf.constant([[0.25]])
    absolute = lowered_losses.score(LossSpec(name="mean_absolute_error"), zero, zero)
    assert float(absolute.pullback(tf.ones([1, 1]))[0, 0]) == 0
    huber = lowered_losses.score(LossSpec(name="huber", huber_delta=0.25), near, zero)
    assert float(huber.losses[0, 0]) == pytest.approx(0.25**2 / 2)
    assert float(huber.pullback(tf.ones([1, 1]))[0, 0]) == pytest.approx(0.25)


def test_a_wrong_slope_of_a_loss_is_refused(monkeypatch):
    right = lowered_losses._regression

    def without_share(loss, output, labels):
        scores = right(loss, output, labels)
        return dataclasses.replace(scores, pullback=lambda dloss: scores.pullback(dloss) * 1.0001)

    monkeypatch.setattr(lowered_losses, "_regression", without_share)
    with pytest.raises(ParityRefused, match="gradient off by"):
        build_export(small_model(2), loss=LossSpec(name="huber"), **PLAN)


def test_a_wrong_absolute_error_is_refused(monkeypatch):
    right = lowered_losses._regression

    def doubled(loss, output, labels):
        scores = right(loss, output, labels)
        return dataclasses.replace(scores, absolute_errors=scores.absolute_errors * 2.0)

    monkeypatch.setattr(lowered_losses, "_regression", doubled)
    with pytest.raises(ParityRefused, match="loss off by"):
        build_export(small_model(2), loss=LossSpec(name="mean_squared_error"), **PLAN)


# ---- which loss


def compiled(model, loss):
    model.compile("sgd", loss)
    return model


COMPILED = {
    "a name": (lambda: compiled(small_model(2), "mse"), LossSpec(name="mean_squared_error")),
    "a function": (lambda: compiled(small_model(2), tf.keras.losses.mean_absolute_error), LossSpec(name="mean_absolute_error")),
    "a class with a delta": (
        lambda: compiled(small_model(1), tf.keras.losses.Huber(0.5)),
        LossSpec(name="huber", huber_delta=0.5),
    ),
    "from logits": (
        lambda: compiled(small_model(1), tf.keras.losses.BinaryCrossentropy(from_logits=True)),
        LossSpec(name="binary_crossentropy"),
    ),
    "of a sigmoid": (lambda: compiled(small_model(1, "sigmoid"), "binary_crossentropy"), LossSpec(name="binary_crossentropy")),
    "nothing": (lambda: small_model(3), LossSpec()),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_the_loss_is_what_the_model_was_compiled_with(name):
    build, loss = COMPILED[name]
    assert read_graph(build()).loss == loss


def test_a_loss_that_is_named_comes_before_the_compiled_one():
    assert read_graph(compiled(small_model(2), "mse"), LossSpec(name="huber")).loss.name == "huber"


REFUSED = {
    "does not end in sigmoid, but": lambda: read_graph(compiled(small_model(1), "binary_crossentropy")),
    "ends in softmax; for binary": lambda: read_graph(
        small_model(2, "softmax"), LossSpec(name="binary_crossentropy")
    ),
    "ends in sigmoid; for categorical": lambda: read_graph(
        small_model(2, "sigmoid"), LossSpec(name="categorical_crossentropy")
    ),
    "name its loss": lambda: read_graph(small_model(1)),
    "label_smoothing=0.1": lambda: read_graph(
        compiled(small_model(3), tf.keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1))
    ),
    "reduction='sum'": lambda: read_graph(
        compiled(small_model(3), tf.keras.losses.MeanSquaredError(reduction="sum"))
    ),
    "compiled with loss 'Poisson'": lambda: read_graph(compiled(small_model(3), tf.keras.losses.Poisson())),
    "compiled with loss 'mse'": lambda: read_graph(compiled(small_model(3), mse)),
    "must be a number above 0": lambda: LossSpec(name="huber", huber_delta=0.0),
    "belongs to huber": lambda: LossSpec(name="mean_squared_error", huber_delta=2.0),
}  # fmt: skip


def mse(labels, output):
    """A function of the user's own that only has Keras's name."""
    return tf.reduce_sum(labels - output)


@pytest.mark.parametrize("words", REFUSED)
def test_a_loss_that_does_not_fit_is_refused_with_the_reason(words):
    with pytest.raises(UnsupportedModel, match=words):
        REFUSED[words]()


# ---- on the device


def test_a_device_learns_a_line_from_the_exported_file():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3)).astype(np.float32)
    y = x @ np.array([[1.0, -2.0], [0.5, 0.0], [0.0, 3.0]], np.float32) + np.array([0.5, -1.0], np.float32)
    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential([layers.InputLayer((3,)), layers.Dense(2)])
    export = build_export(
        model, loss=LossSpec(name="mean_squared_error"), batch_size=16, learning_rate=0.2, num_epochs=40
    )
    job = TrainingJob(
        kind=RoundKind.TRAIN,
        plan=export.plan,
        model=export.bundle.model,
        checkpoint=decode_tensors(export.bundle.checkpoint, export.plan.weights),
        round_id=1,
        device_id="d",
    )
    trained = LiteRtTrainer().train(job, ArrayExamples(x=x, y=y))
    kernel, bias = (w + d for w, d in zip(job.checkpoint, trained.model_delta, strict=True))
    np.testing.assert_allclose(kernel, [[1, -2], [0.5, 0], [0, 3]], atol=1e-4)
    np.testing.assert_allclose(bias, [0.5, -1], atol=1e-4)
    evaluated = LiteRtTrainer().evaluate(
        dataclasses.replace(job, kind=RoundKind.EVALUATE, checkpoint=(kernel, bias)), ArrayExamples(x=x, y=y)
    )
    assert evaluated.metrics.loss_sum < 1e-6
    assert evaluated.metrics.num_correct == 0
