"""Each example's gradient clipped inside the step, against Keras one example at a time."""

import numpy as np
import pytest
import tensorflow as tf

from model_export.check_batches import CheckBatch
from model_export.errors import UnsupportedLayer
from model_export.exporter import build_export
from model_export.keras_graph import read_graph
from model_export.lite_model import LiteModel
from model_export.lowering import parts, weight_gradients, winograd
from model_export.lowering.forward import LoweredModel
from model_export.plans import plan_for_graph

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers
BATCH = 4
CLIP = 0.7


def sequential(shape, *inner):
    tail = [] if isinstance(inner[-1], layers.Dense) else [layers.Flatten(), layers.Dense(3)]
    return tf.keras.Sequential([layers.InputLayer(shape), *inner, *tail])


def residual():
    x = inputs = layers.Input((7, 7, 4))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = layers.Concatenate()([layers.Add()([x, inputs]), layers.Conv2D(3, 1)(inputs)])
    return tf.keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


MODELS = {
    "Dense": lambda: sequential((6,), layers.Dense(8, activation="tanh"), layers.Dense(3)),
    "Dense without bias": lambda: sequential((6,), layers.Dense(8, use_bias=False), layers.ReLU(), layers.Dense(3)),
    "Dense on sequences": lambda: sequential((5, 6), layers.Dense(4, activation="tanh"), layers.Dense(3), layers.Flatten()),
    "Conv2D, few channels, pool": lambda: sequential((9, 9, 1), layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D()),
    "Conv2D 3x3, Winograd": lambda: sequential((7, 8, 8), layers.Conv2D(9, 3, padding="same")),
    "Conv2D 3x3, Winograd and pool": lambda: sequential((8, 8, 8), layers.Conv2D(8, 3), layers.MaxPooling2D()),
    "two Conv2D": lambda: sequential((8, 8, 1), layers.Conv2D(8, 3, activation="relu"), layers.Conv2D(8, 3)),
    "Conv2D 5x5 of stride 2": lambda: sequential((9, 9, 5), layers.Conv2D(4, 5, strides=2, padding="same")),
    "Conv2D 1x1": lambda: sequential((5, 5, 5), layers.Conv2D(4, 1, activation="tanh")),
    "Conv1D": lambda: sequential((12, 5), layers.Conv1D(4, 3, activation="relu"), layers.GlobalAveragePooling1D()),
    "Conv2DTranspose": lambda: sequential((4, 4, 5), layers.Conv2DTranspose(3, 3, strides=2)),
    "SeparableConv2D": lambda: sequential((7, 7, 6), layers.SeparableConv2D(4, 3, depth_multiplier=2)),
    "LayerNormalization": lambda: sequential((6,), layers.Dense(8), layers.LayerNormalization()),
    "GroupNormalization": lambda: sequential((6, 6, 5), layers.Conv2D(8, 3), layers.GroupNormalization(4)),
    "residual": residual,
}  # fmt: skip


def one_at_a_time(model, x, dlogits):
    """Keras's gradient of each example, and its norm over all weights."""
    result = []
    for place in range(len(x)):
        with tf.GradientTape() as tape:
            logits = model(x[place : place + 1], training=True)
        gradients = tape.gradient(logits, model.trainable_weights, output_gradients=dlogits[place : place + 1])
        values = [gradient.numpy().astype(np.float64) for gradient in gradients]
        result.append((values, np.sqrt(sum((value**2).sum() for value in values))))
    return result


def lowered_gradients(model, x, dlogits, clip, factors):
    graph = read_graph(model)
    weights = [tf.constant(w.numpy()) for w in model.trainable_weights]
    stored = [tf.transpose(w)[None] if i in graph.dense_kernels else w for i, w in enumerate(weights)]
    run = LoweredModel(graph, len(x)).forward(stored, tf.constant(x), None, tf.ones(len(x)))
    gradients = run.clipped_gradients(tf.constant(dlogits), clip, tf.constant(factors[:, None]))
    return [g.numpy()[0].T if i in graph.dense_kernels else g.numpy() for i, g in enumerate(gradients)]


def check(model, rng):
    for weight in model.trainable_weights:
        weight.assign_add(0.1 * rng.standard_normal(weight.shape))
    x = rng.standard_normal((BATCH, *model.input_shape[1:])).astype(np.float32)
    # Gradients on both sides of the clip, and one that is 0.
    dlogits = rng.standard_normal((BATCH, model.output_shape[-1])).astype(np.float32)
    dlogits *= np.array([[0.0], [1e-3], [1.0], [30.0]], np.float32)
    examples = one_at_a_time(model, x, dlogits)
    clip = float(np.median([norm for _, norm in examples]))
    factors = np.array([0.5, 0.25, 1.0, 0.125], np.float32)
    expected = [
        sum(f * values[i] * min(1, clip / norm if norm else 1) for f, (values, norm) in zip(factors, examples, strict=True))
        for i in range(len(model.trainable_weights))
    ]  # fmt: skip
    largest = max(float(np.abs(value).max()) for value in expected)
    for one, other in zip(lowered_gradients(model, x, dlogits, clip, factors), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("name", MODELS)
def test_the_sum_of_clipped_gradients_is_that_of_kerass_examples(name, rng):
    tf.keras.utils.set_random_seed(1)
    check(MODELS[name](), rng)


def test_a_batch_in_parts_is_clipped_over_all_weights_too(monkeypatch, rng):
    monkeypatch.setattr(parts, "_MAX_PART_BYTES", 1)
    model = MODELS["two Conv2D"]()
    assert parts.count_parts(read_graph(model), BATCH) == 4
    check(model, rng)


@pytest.mark.parametrize("fault", ["a factor of a weighted sum", "a norm by the transform's own values"])
def test_a_rule_that_is_wrong_does_not_pass_this_comparison(monkeypatch, rng, fault):
    if fault == "a factor of a weighted sum":
        right = weight_gradients.OuterProducts.weighted
        monkeypatch.setattr(
            weight_gradients.OuterProducts, "weighted", lambda self, factors: right(self, tf.reverse(factors, [0]))
        )
    else:
        monkeypatch.setattr(winograd, "_transpose_filter", lambda products: products)
    with pytest.raises(AssertionError):
        check(MODELS["Conv2D 3x3, Winograd"](), rng)


def test_the_exported_file_is_held_to_keras_with_dropout_padding_and_momentum():
    model = sequential(
        (8, 8, 1), layers.Conv2D(8, 3, activation="relu"), layers.Conv2D(8, 3), layers.MaxPooling2D(),
        layers.Dropout(0.3), layers.Flatten(), layers.Dense(6, activation="tanh"), layers.Dense(3),
    )  # fmt: skip
    result = build_export(
        model, batch_size=BATCH, learning_rate=0.1, momentum=0.9, per_example_clipping_norm=CLIP, proximal_mu=0.01
    )
    assert result.plan.per_example_clipping_norm == CLIP
    assert result.certificate.max_gradient_error < 1e-5
    assert result.certificate.num_steps_compared >= 7


def step_of(file, weights, batch):
    file.restore(weights)
    file.train(batch, 1.0)
    after = file.save()
    return np.sqrt(sum(((a.astype(np.float64) - b) ** 2).sum() for a, b in zip(after, weights, strict=True)))


@pytest.fixture(scope="module")
def small_file():
    tf.keras.utils.set_random_seed(2)
    model = sequential((6,), layers.Dense(8, activation="tanh"), layers.Dense(3))
    result = build_export(model, batch_size=BATCH, learning_rate=0.1, per_example_clipping_norm=CLIP)
    return LiteModel(result.bundle.model), tuple(weight.numpy() for weight in model.trainable_weights)


def batch_of(x, num_examples):
    return CheckBatch(
        x=x, labels=np.zeros(len(x), np.int32), tickets=np.zeros(len(x), np.int32), num_examples=num_examples
    )


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e12])
def test_one_example_moves_the_weights_by_the_clip_over_the_batch_at_most(small_file, rng, size):
    file, weights = small_file
    x = (size * rng.standard_normal((BATCH, 6))).astype(np.float32)
    assert step_of(file, weights, batch_of(x, 1)) <= CLIP * (1 + 1e-5)
    assert step_of(file, weights, batch_of(x, BATCH)) <= CLIP * (1 + 1e-5)


def test_an_example_whose_norm_is_infinite_counts_nothing_or_voids_the_step(small_file, rng):
    file, weights = small_file
    for size in (1e19, 1e22, 1e30, 1e38):
        x = (size * rng.standard_normal((BATCH, 6))).astype(np.float32)
        step = step_of(file, weights, batch_of(x, 1))
        assert step <= CLIP * (1 + 1e-5) or np.isnan(step)


def test_an_example_that_is_no_number_voids_the_step(small_file, rng):
    file, weights = small_file
    x = rng.standard_normal((BATCH, 6)).astype(np.float32)
    x[1, 0] = np.nan
    assert np.isnan(step_of(file, weights, batch_of(x, BATCH)))


def shared_layer():
    twice = layers.Dense(6)
    return sequential((6,), twice, layers.ReLU(), twice, layers.Dense(3))


REFUSED = {
    "batch_normalization": (lambda: sequential((6,), layers.BatchNormalization(), layers.Dense(3)), "LayerNormalization"),
    "gru": (lambda: sequential((5, 4), layers.GRU(3), layers.Dense(3)), "no rule yet"),
    "embedding": (lambda: sequential((5,), layers.Embedding(9, 4), layers.Flatten(), layers.Dense(3)), "no rule yet"),
    "dense": (shared_layer, "used more than once"),
}  # fmt: skip


@pytest.mark.parametrize("layer", REFUSED)
def test_a_layer_without_gradients_of_single_examples_is_refused_by_name(layer):
    tf.keras.backend.clear_session()
    build, reason = REFUSED[layer]
    graph = read_graph(build())
    with pytest.raises(UnsupportedLayer, match=rf"'{layer}.*{reason}.*without --per-example-clip"):
        plan_for_graph(graph, batch_size=4, learning_rate=0.1, per_example_clipping_norm=1.0)
    plan_for_graph(graph, batch_size=4, learning_rate=0.1)


def test_what_is_frozen_is_not_clipped_and_not_refused(rng):
    model = sequential((6,), layers.BatchNormalization(), layers.Dense(5), layers.ReLU(), layers.Dense(3))
    for layer in model.layers[:2]:
        layer.trainable = False
    check(model, rng)
