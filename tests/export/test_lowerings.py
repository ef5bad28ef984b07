"""Each layer's lowering against Keras's own layer: output and gradients of input side and weights."""

import numpy as np
import pytest
import tensorflow as tf

from model_export.keras_graph import read_graph
from model_export.lowering.forward import LoweredModel
from model_export.lowering.fusion import fuse
from model_export.native_forward import native_logits
from model_export.operations import Conv2DMaxPool, MaxPool

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers
BATCH_SIZE = 3
IMAGE = (11, 10, 2)
WIDE = (11, 10, 9)

CASES = {
    "dense": ([layers.Dense(7)], (6,)),
    "dense without bias": ([layers.Dense(7, use_bias=False)], (6,)),
    "dense on the last of three axes": ([layers.Dense(7)], (4, 6)),
    "relu": ([layers.Dense(7, activation="relu")], (6,)),
    "relu layer": ([layers.ReLU()], (6,)),
    "tanh": ([layers.Activation("tanh")], (6,)),
    "sigmoid": ([layers.Activation("sigmoid")], (6,)),
    "softmax in the middle": ([layers.Softmax()], (6,)),
    "conv 3x3 valid": ([layers.Conv2D(5, 3)], IMAGE),
    "conv 3x3 same": ([layers.Conv2D(5, 3, padding="same")], IMAGE),
    "conv 3x3 stride 2 same": ([layers.Conv2D(5, 3, strides=2, padding="same")], IMAGE),
    "conv 3x3 stride 2 valid": ([layers.Conv2D(5, 3, strides=2)], IMAGE),
    "conv 3x2 strides 1 and 3": ([layers.Conv2D(5, (3, 2), strides=(1, 3), padding="same")], IMAGE),
    "conv 5x5 same": ([layers.Conv2D(5, 5, padding="same")], IMAGE),
    "conv 3x3 dilation 2": ([layers.Conv2D(5, 3, dilation_rate=2, padding="same")], IMAGE),
    "conv 1x1": ([layers.Conv2D(5, 1)], IMAGE),
    "conv 1x1 stride 2": ([layers.Conv2D(5, 1, strides=2, padding="same")], IMAGE),
    "winograd valid": ([layers.Conv2D(8, 3)], WIDE),
    "winograd same": ([layers.Conv2D(8, 3, padding="same")], WIDE),
    "winograd and pool": ([layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(2)], WIDE),
    "winograd same and pool": ([layers.Conv2D(8, 3, padding="same"), layers.ReLU(), layers.MaxPooling2D(2)], WIDE),
    "conv and pool": ([layers.Conv2D(5, 3, activation="relu"), layers.MaxPooling2D(2)], IMAGE),
    "conv and overlapping pool": ([layers.Conv2D(5, 3, activation="relu"), layers.MaxPooling2D(3, 2)], IMAGE),
    "max pool 2x2": ([layers.MaxPooling2D(2)], IMAGE),
    "max pool 3x3 stride 2 same": ([layers.MaxPooling2D(3, 2, padding="same")], IMAGE),
    "max pool 2x3": ([layers.MaxPooling2D((2, 3))], IMAGE),
    "average pool 2x2": ([layers.AveragePooling2D(2)], IMAGE),
    "average pool 3x3 stride 2 same": ([layers.AveragePooling2D(3, 2, padding="same")], IMAGE),
    "global average pool": ([layers.GlobalAveragePooling2D()], IMAGE),
    "global average pool keeping axes": ([layers.GlobalAveragePooling2D(keepdims=True)], IMAGE),
    "reshape": ([layers.Reshape((10, -1))], IMAGE),
}


def weigh_down(model, rng):
    model.set_weights([rng.standard_normal(weight.shape).astype("f") * 0.3 for weight in model.get_weights()])


def gradients_of(model, x, dlogits):
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model(x) * dlogits)
    return tape.gradient(total, model.trainable_weights)


def lowered_run(model, x, dlogits):
    graph = read_graph(model)
    stored = [
        tf.transpose(weight)[None] if index in graph.dense_kernels else tf.convert_to_tensor(weight)
        for index, weight in enumerate(model.trainable_weights)
    ]
    run = LoweredModel(graph, len(x)).forward(stored, x, None)
    gradients = run.weight_gradients(tf.constant(dlogits))
    return run.logits, [tf.transpose(g[0]) if index in graph.dense_kernels else g for index, g in enumerate(gradients)]


@pytest.mark.parametrize("ties", [False, True], ids=["random", "ties"])
@pytest.mark.parametrize("name", CASES)
def test_a_lowered_layer_gives_the_outputs_and_gradients_of_keras(name, ties, rng):
    tested, shape = CASES[name]
    # A trainable layer before the tested one: its gradient is the tested layer's input gradient.
    before = layers.Dense(shape[-1], use_bias=False) if len(shape) == 1 else layers.Dense(shape[-1])
    clones = [type(layer).from_config(layer.get_config()) for layer in tested]
    model = tf.keras.Sequential([layers.InputLayer(shape), before, *clones, layers.Flatten(), layers.Dense(3)])
    weigh_down(model, rng)
    x = rng.standard_normal((BATCH_SIZE, *shape)).astype("f")
    if ties:
        x = np.zeros_like(x)
        x[:, 2:5] = 0.5
    dlogits = rng.standard_normal((BATCH_SIZE, 3)).astype("f")
    logits, gradients = lowered_run(model, x, dlogits)
    np.testing.assert_allclose(logits, model(x), rtol=1e-5, atol=2e-5)
    for got, expected in zip(gradients, gradients_of(model, x, dlogits), strict=True):
        scale = max(float(np.abs(expected).max()), 1e-3)
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6 * scale)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_first_convolution_of_few_channels_has_the_kernel_gradient_of_keras(strides, padding, rng):
    model = tf.keras.Sequential(
        [
            layers.InputLayer(IMAGE),
            layers.Conv2D(5, 3, strides=strides, padding=padding),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    weigh_down(model, rng)
    x = rng.standard_normal((BATCH_SIZE, *IMAGE)).astype("f")
    dlogits = rng.standard_normal((BATCH_SIZE, 3)).astype("f")
    logits, gradients = lowered_run(model, x, dlogits)
    np.testing.assert_allclose(logits, model(x), rtol=1e-5, atol=1e-5)
    for got, expected in zip(gradients, gradients_of(model, x, dlogits), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6 * float(np.abs(expected).max()))


def test_values_that_branch_and_meet_again_get_the_sum_of_their_gradients(rng):
    inputs = tf.keras.Input((6,))
    shared = layers.Dense(6)
    first = shared(inputs)
    outputs = layers.Dense(3)(layers.Add()([shared(first), first, layers.Activation("tanh")(first)]))
    model = tf.keras.Model(inputs, outputs)
    weigh_down(model, rng)
    x, dlogits = rng.standard_normal((4, 6)).astype("f"), rng.standard_normal((4, 3)).astype("f")
    logits, gradients = lowered_run(model, x, dlogits)
    np.testing.assert_allclose(logits, model(x), atol=1e-5)
    for got, expected in zip(gradients, gradients_of(model, x, dlogits), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_max_pool_gradient_goes_to_the_first_of_tied_maxima():
    inputs = tf.keras.Input((2, 2, 1))
    outputs = layers.Dense(2)(layers.Flatten()(layers.MaxPooling2D(2)(layers.Conv2D(1, 1)(inputs))))
    graph = read_graph(tf.keras.Model(inputs, outputs))
    assert any(isinstance(node.operation, MaxPool) for node in graph.nodes)
    from model_export.lowering.pooling import max_pool
    from model_export.lowering.windows import plan_axis

    axis = plan_axis(size=2, window=2, stride=2)
    _, pullback = max_pool(tf.ones([1, 2, 2, 1]), axis, axis)
    np.testing.assert_array_equal(pullback(tf.ones([1, 1, 1, 1]))[0, :, :, 0], [[1, 0], [0, 0]])


def test_a_pool_that_is_not_alone_in_reading_its_convolution_is_not_joined_to_it():
    inputs = tf.keras.Input(WIDE)
    convolved = layers.Conv2D(8, 3)(inputs)
    pooled = layers.Flatten()(layers.MaxPooling2D(2)(convolved))
    also = layers.Flatten()(layers.AveragePooling2D(2)(convolved))
    model = tf.keras.Model(inputs, layers.Dense(3)(layers.Add()([pooled, also])))
    assert not any(isinstance(node.operation, Conv2DMaxPool) for node in fuse(read_graph(model)).nodes)


@pytest.mark.parametrize("name", CASES)
def test_the_native_forward_pass_gives_the_outputs_of_keras(name, rng):
    tested, shape = CASES[name]
    clones = [type(layer).from_config(layer.get_config()) for layer in tested]
    model = tf.keras.Sequential([layers.InputLayer(shape), *clones, layers.Flatten(), layers.Dense(3)])
    weigh_down(model, rng)
    x = rng.standard_normal((BATCH_SIZE, *shape)).astype("f")
    logits = native_logits(read_graph(model), model.trainable_weights, tf.constant(x), None)
    np.testing.assert_allclose(logits, model(x), rtol=1e-5, atol=1e-5)
