"""Transfer learning: frozen layers are constants of the file, only the rest trains and travels."""

import numpy as np
import pytest
import tensorflow as tf

from model_export.exporter import build_export
from model_export.keras_graph import read_graph
from model_export.lite_model import LiteModel
from model_export.simulated_model import SimulatedModel
from wire_protocol.tensors import decode_tensors

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers
PLAN = {"batch_size": 4, "learning_rate": 0.05}


def backbone_and_head(*, frozen=("stem", "deep", "middle")):
    tf.keras.utils.set_random_seed(4)
    model = tf.keras.Sequential(
        [
            layers.InputLayer((12, 12, 3)),
            layers.Conv2D(8, 3, activation="relu", name="stem"),
            layers.Conv2D(16, 3, activation="relu", name="deep"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(32, activation="relu", name="middle"),
            layers.Dropout(0.2),
            layers.Dense(5, name="head"),
        ]
    )
    for name in frozen:
        model.get_layer(name).trainable = False
    return model


@pytest.fixture(scope="module")
def exported():
    model = backbone_and_head()
    return model, build_export(model, **PLAN)


def test_only_the_head_is_in_the_plan_and_in_the_checkpoint(exported):
    model, result = exported
    assert [spec.shape for spec in result.plan.weights] == [(32, 5), (5,)]
    checkpoint = decode_tensors(result.bundle.checkpoint, result.plan.weights)
    for sent, kept in zip(checkpoint, model.get_layer("head").get_weights(), strict=True):
        np.testing.assert_array_equal(sent, kept)


def test_the_certificate_covers_the_frozen_layers_and_the_file_holds_them_once(exported):
    model, result = exported
    assert result.certificate.max_gradient_error <= 1e-5
    assert result.certificate.max_output_error <= 1e-5
    frozen_bytes = 4 * sum(weight.numpy().size for weight in model.non_trainable_weights)
    assert frozen_bytes < result.certificate.model_bytes < frozen_bytes + 100_000
    file = LiteModel(result.bundle.model)
    x = np.random.default_rng(0).random((4, 12, 12, 3)).astype("f")
    file.restore([weight.numpy() for weight in model.trainable_weights])
    np.testing.assert_allclose(file.infer(x), model(x), atol=1e-5)


def test_no_gradient_is_computed_below_the_lowest_trainable_layer():
    graph = read_graph(backbone_and_head(frozen=("stem",)))
    wanted = graph.reaches_weights()
    names = [type(node.operation).__name__ for node in graph.nodes]
    assert not any(wanted[: names.index("Conv2D", 2)])
    assert all(wanted[names.index("Conv2D", 2) :])


def test_a_frozen_layer_above_a_trainable_one_passes_its_gradient_on():
    result = build_export(backbone_and_head(frozen=("deep", "middle")), **PLAN)
    assert len(result.plan.weights) == 4
    assert result.certificate.max_gradient_error <= 1e-5


def test_the_simulation_computes_with_the_same_frozen_weights(exported):
    model, result = exported
    simulated = SimulatedModel(model, **PLAN)
    assert simulated.plan == result.plan
    x = np.random.default_rng(1).random((3, 12, 12, 3)).astype("f")
    output = simulated.predict(simulated.initial_weights(), tf.constant(x), None, training=False)
    np.testing.assert_allclose(output, model(x), atol=1e-5)


def test_frozen_convolutions_keep_their_strides_dilation_and_padding():
    tf.keras.utils.set_random_seed(6)
    frozen = [
        layers.DepthwiseConv2D(3, dilation_rate=2, depth_multiplier=2),
        layers.Conv2D(8, 3, dilation_rate=2, padding="same", activation="relu"),
        layers.DepthwiseConv2D((3, 2), strides=2, padding="same"),
        layers.Conv2D(8, (2, 3), strides=(1, 2)),
    ]
    for layer in frozen:
        layer.trainable = False
    head = [layers.Flatten(), layers.Dense(3)]
    model = tf.keras.Sequential([layers.InputLayer((12, 12, 3)), *frozen, *head])
    result = build_export(model, **PLAN)
    assert max(result.certificate.max_output_error, result.certificate.max_gradient_error) <= 1e-5
