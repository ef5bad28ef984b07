"""Models inside a model: a fixed backbone under a trainable head, shared towers, and what is refused."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from model_export.errors import UnsupportedLayer, UnsupportedModel
from model_export.exporter import build_export
from model_export.keras_clone import FlatClone
from model_export.keras_graph import read_graph
from model_export.keras_weights import travelling_weights
from model_export.layer_operations import BatchNorm
from model_export.lite_model import LiteModel
from model_export.simulated_model import SimulatedModel
from wire_protocol.tensors import decode_tensors

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers
PLAN = {"batch_size": 4, "learning_rate": 0.05}
SHAPE = (12, 12, 3)


def backbone():
    """As the pretrained ones are: depthwise blocks, batch normalisation, a residual sum, an operator, dropout."""
    tf.keras.utils.set_random_seed(5)
    inputs = tf.keras.Input(SHAPE)
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(inputs / 127.5 - 1.0)
    x = tf.nn.relu6(layers.BatchNormalization()(x))
    y = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x + y))
    base = tf.keras.Model(inputs, x, name="backbone")
    rng = np.random.default_rng(5)
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.2, 1.5, weight.shape) for weight in layer.get_weights()])
    return base


def with_head(base, **call):
    inputs = tf.keras.Input(SHAPE)
    return tf.keras.Model(inputs, layers.Dense(5, name="head")(base(inputs, **call)))


@pytest.fixture(scope="module")
def exported():
    base = backbone()
    base.trainable = False
    model = with_head(base, training=False)
    return model, build_export(model, **PLAN)


def pixels(count):
    return np.random.default_rng(0).uniform(0, 255, (count, *SHAPE)).astype("f")


def test_only_the_head_travels_and_the_file_computes_with_the_backbone(exported):
    model, result = exported
    assert [spec.shape for spec in result.plan.weights] == [(8, 5), (5,)]
    assert max(result.certificate.max_gradient_error, result.certificate.max_output_error) <= 1e-5
    file = LiteModel(result.bundle.model)
    file.restore(decode_tensors(result.bundle.checkpoint, result.plan.weights))
    x = pixels(4)
    np.testing.assert_allclose(file.infer(x), model(x), atol=1e-5)


def test_the_backbone_runs_in_the_ops_of_inference_with_its_batch_normalisations_folded_in(exported):
    counts = exported[1].certificate.op_counts
    num_signatures = 3  # train, evaluate, infer
    assert counts["CONV_2D"] == counts["DEPTHWISE_CONV_2D"] == num_signatures
    assert counts.get("RSQRT", 0) == 0


def test_statistics_of_a_fixed_backbone_are_constants_in_training_too(exported):
    model, _ = exported
    graph = read_graph(model)
    norms = [node.operation for node in graph.nodes if isinstance(node.operation, BatchNorm)]
    assert [norm.is_training for norm in norms] == [False, False]
    assert graph.num_statistics == 0
    assert min(position for norm in norms for position in (norm.mean, norm.variance)) >= len(graph.weight_shapes)
    assert graph.dropouts == ()


def test_the_simulation_trains_the_same_head_on_the_same_backbone(exported):
    model, result = exported
    simulated = SimulatedModel(model, **PLAN)
    assert simulated.plan == result.plan
    x = pixels(3)
    np.testing.assert_allclose(
        simulated.predict(simulated.initial_weights(), tf.constant(x), None, training=True), model(x), atol=1e-5
    )


def test_a_dropout_of_a_fixed_backbone_drops_unless_training_is_false():
    base = backbone()
    base.trainable = False
    assert [dropout.rate for dropout in read_graph(with_head(base)).dropouts] == [0.5]


def test_a_backbone_that_is_tuned_without_training_mode_keeps_its_statistics_and_is_equal_to_keras():
    model = with_head(backbone(), training=False)
    names = [weight.name for weight in travelling_weights(model)]
    assert any("gamma" in name for name in names)
    assert not any("moving" in name for name in names)
    assert build_export(model, **PLAN).certificate.max_gradient_error <= 1e-5


def test_a_model_as_a_layer_reads_like_its_layers_one_by_one():
    base = backbone()
    flat = read_graph(tf.keras.Model(base.inputs, layers.Dense(5, name="head")(base.outputs[0])))
    assert read_graph(with_head(base)).nodes == flat.nodes


def test_two_levels_and_equal_names_are_told_apart():
    innermost = tf.keras.Sequential([layers.Dense(4, activation="tanh", name="same")])
    inner = tf.keras.Sequential([layers.Dense(4, name="same"), innermost, layers.Dropout(0.5, name="drop")])
    inputs = tf.keras.Input((6,))
    x = layers.Dropout(0.25, name="drop")(layers.Dense(4, name="same")(inputs))
    model = tf.keras.Model(inputs, layers.Dense(3)(inner(x)))
    assert [dropout.rate for dropout in read_graph(model).dropouts] == [0.25, 0.5]
    assert build_export(model, **PLAN).certificate.max_gradient_error <= 1e-5


def test_an_embedding_in_an_inner_model_reads_token_numbers():
    encoder = tf.keras.Sequential([layers.Embedding(9, 4), layers.GlobalAveragePooling1D()])
    inputs = tf.keras.Input((6,))
    result = build_export(tf.keras.Model(inputs, layers.Dense(3)(encoder(inputs))), **PLAN)
    assert result.plan.num_tokens == 9
    assert result.certificate.max_gradient_error <= 1e-5


def any_size():
    inputs = tf.keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same")(inputs) * 0.5
    x = layers.Add()(
        [layers.DepthwiseConv2D(3, padding="same")(x), layers.ZeroPadding2D(1)(layers.MaxPooling2D(3, 1)(x))]
    )
    return tf.keras.Model(inputs, layers.GlobalMaxPooling2D()(tf.nn.relu(x)))


def test_a_backbone_for_images_of_any_size_takes_that_of_the_model_around_it():
    model = with_head(any_size())
    shapes = [node.shape for node in read_graph(model).nodes]
    assert (6, 6, 4) in shapes
    assert build_export(model, **PLAN).certificate.max_gradient_error <= 1e-5


def test_a_flat_copy_in_float64_gives_what_the_model_gives():
    model = with_head(backbone(), training=False)
    x = pixels(2)
    np.testing.assert_allclose(FlatClone(model, "float64").model(x, training=True), model(x, training=True), atol=1e-5)


class Coded(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(5)

    def call(self, inputs):
        return self.dense(inputs) * 2


def how_to_code():
    """The indented Python of the how-to, with random weights: nothing is downloaded."""
    lines = (
        (pathlib.Path(__file__).parents[2] / "docs/how-to/train-a-head-on-a-fixed-backbone.md").read_text().splitlines()
    )
    code = "\n".join(line[4:] for line in lines if line.startswith("    ") or not line).partition("flockwise export")[0]
    assert 'weights="imagenet"' in code
    return code.replace('weights="imagenet"', "weights=None").partition("model.save")[0]


def test_of_the_model_of_the_how_to_the_head_alone_travels():
    built = {}
    exec(compile(how_to_code(), "how-to", "exec"), built)  # noqa: S102 - it is our own page
    graph = read_graph(built["model"])
    assert graph.weight_shapes == ((1280, 5), (5,))
    assert [dropout.rate for dropout in graph.dropouts] == [0.2]
    assert not any(node.operation.is_training for node in graph.nodes if isinstance(node.operation, BatchNorm))


def test_an_inner_model_is_read_from_a_file_as_it_was_written(exported, tmp_path):
    model, _ = exported
    model.save(tmp_path / "model.keras")
    assert read_graph(tf.keras.models.load_model(tmp_path / "model.keras")).nodes == read_graph(model).nodes


def two_outputs():
    inputs = tf.keras.Input((6,))
    return tf.keras.Model(inputs, [layers.Dense(4)(inputs), layers.Dense(4)(inputs)])


def on_features(build):
    inputs = tf.keras.Input((6,))
    return tf.keras.Model(inputs, layers.Dense(3)(build(inputs)))


def twice(layer):
    shared = tf.keras.Sequential([layers.Dense(6), layer])
    return on_features(lambda x: shared(shared(x)))


def dense():
    return tf.keras.Sequential([layers.Dense(6)])


REFUSED = {
    "a model with code": (lambda: on_features(Coded()), "'coded.*code of its own"),
    "training=True": (lambda: on_features(lambda x: dense()(x, training=True)), "is called with training"),
    "a mask": (lambda: on_features(lambda x: dense()(x, mask=x)), "is called with mask"),
    "training by position": (lambda: on_features(lambda x: dense()(x, None)), "more than a list of its inputs"),
    "an output that nothing reads": (lambda: on_features(lambda x: two_outputs()(x)[0]), "leave out what is not used"),
    "a dropout used twice": (lambda: twice(layers.Dropout(0.5)), "used more than once"),
    "a batch normalisation used twice": (lambda: twice(layers.BatchNormalization()), "used more than once"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_inner_model_that_cannot_be_exported_is_refused_with_what_to_use(name):
    build, said = REFUSED[name]
    with pytest.raises((UnsupportedLayer, UnsupportedModel), match=said):
        read_graph(build())
