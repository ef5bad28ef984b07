"""What the exporter refuses, and what it says."""

import numpy as np
import pytest
import tensorflow as tf

from model_export import parity
from model_export.certificate import CheckedCase, Tolerances
from model_export.conversion import refuse_non_builtin_ops
from model_export.errors import ParityRefused, UnsupportedLayer, UnsupportedModel, UnsupportedOp
from model_export.exporter import build_export, export_model
from model_export.gradient_comparison import gradient_error
from model_export.keras_graph import read_graph
from model_export.lowering import activations, pooling, winograd
from model_export.zoo import digits_cnn, digits_mlp
from wire_protocol.errors import MalformedMessage

pytestmark = pytest.mark.tensorflow

layers = tf.keras.layers
PLAN = {"batch_size": 4, "learning_rate": 0.05}


def image_model(*tested):
    return tf.keras.Sequential([layers.InputLayer((8, 8, 2)), *tested, layers.Flatten(), layers.Dense(3)])


UNSUPPORTED = {
    "batch norm over rows": (lambda: layers.BatchNormalization(axis=1), "axis=-1"),
    "synchronized batch norm": (lambda: layers.BatchNormalization(synchronized=True), "trains alone"),
    "spatial dropout of channels first": (lambda: layers.SpatialDropout2D(0.5, "channels_first"), "channels_last"),
    "inverse normalization": (lambda: layers.Normalization(mean=1.0, variance=2.0, invert=True), "Use Rescaling"),
    "output padding": (lambda: layers.Conv2DTranspose(3, 3, strides=2, output_padding=1), "Leave output_padding out"),
    "thresholded ReLU": (lambda: layers.ReLU(threshold=1.0), "Use one of the latter"),
    "bilinear upsampling": (lambda: layers.UpSampling2D(2, interpolation="bilinear"), "nearest"),
    "layer norm over the first axis": (lambda: layers.LayerNormalization(axis=1), "last axes"),
    "softmax over another axis": (lambda: layers.Softmax(axis=1), "axis=-1"),
    "unknown activation": (lambda: layers.Conv2D(3, 3, activation=tf.sin), "Use one of"),
    "code as an activation": (lambda: layers.Dense(3, activation=lambda x: x), "gelu.x, approximate=True"),
    "a thresholded ReLU as an activation": (
        lambda: layers.Dense(3, activation=layers.ReLU(threshold=1.0)),
        "Use one of",
    ),
    "a function that is only named relu": (lambda: layers.Conv2D(3, 3, activation=fake_relu()), "Use one of"),
    "grouped convolution": (lambda: layers.Conv2D(4, 3, groups=2), "groups=1"),
    "channels first": (lambda: layers.MaxPooling2D(2, data_format="channels_first"), "channels_last"),
    "regularizer": (lambda: layers.Conv2D(3, 3, kernel_regularizer="l2"), "without kernel_regularizer"),
    "constraint": (lambda: layers.Conv2D(3, 3, kernel_constraint="non_neg"), "without kernel_constraint"),
    "dropout of whole channels": (lambda: layers.Dropout(0.5, noise_shape=(None, 1, 1, 2)), "Leave both out"),
    "half precision": (lambda: layers.Conv2D(3, 3, dtype="float16"), "float32"),
}


RECURRENT = {
    "a state that is given on": ({"stateful": True}, "on a sequence alone"),
    "dropout": ({"dropout": 0.5}, "Put a Dropout layer before it"),
    "another activation": ({"activation": "relu"}, "activation='tanh'"),
    "another gate activation": ({"recurrent_activation": "relu"}, "recurrent_activation='sigmoid'"),
    "the reset gate before the product": ({"reset_after": False}, "reset_after=True"),
    "a regularizer": ({"kernel_regularizer": "l2"}, "without"),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_an_option_that_a_recurrent_layer_cannot_have_is_refused_with_what_to_use(name):
    options, advice = RECURRENT[name]
    inputs = tf.keras.Input((4, 3), batch_size=2 if "stateful" in options else None)
    model = tf.keras.Model(inputs, layers.Dense(3)(layers.GRU(5, **options)(inputs)))
    with pytest.raises(UnsupportedLayer, match=advice):
        read_graph(model)


BIDIRECTIONAL = {
    "no merging": ({"merge_mode": None}, {}, "merge_mode"),
    "a dropout inside": ({}, {"dropout": 0.5}, "Put a Dropout layer before it"),
    "both ways the same": ({"backward_layer": layers.GRU(5, go_backwards=True)}, {"reset_after": False}, "reset_after"),
}


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_a_bidirectional_layer_that_cannot_be_exported_is_refused_with_what_to_use(name):
    options, of_part, said = BIDIRECTIONAL[name]
    inputs = tf.keras.Input((4, 3))
    x = layers.Bidirectional(layers.GRU(5, **of_part), **options)(inputs)
    with pytest.raises(UnsupportedLayer, match=said):
        read_graph(tf.keras.Model(inputs, layers.Dense(3)(x[0] if isinstance(x, list) else x)))


FUNCTIONS = {
    "a power": (lambda x: x**2, "math.pow"),
    "a number over a tensor": (lambda x: 1 / x, "math.truediv"),
    "division by zero": (lambda x: x / 0.0, "math.truediv"),
    "a tensor over a tensor": (lambda x: x / (x + 1.0), "math.truediv"),
    "a table of constants": (lambda x: x + tf.constant([1.0, 2.0, 3.0, 4.0, 5.0]), "add"),
    "the larger of a tensor and a number": (lambda x: tf.maximum(x, 0.0), "math.maximum"),
    "a piece": (lambda x: x[:, 1:], "Use Cropping1D"),
    "softmax of another axis": (lambda x: tf.nn.softmax(x, 0), "nn.softmax"),
    "a sum": (lambda x: tf.reduce_sum(x, 1, keepdims=True), "math.reduce_sum"),
    "concatenation of examples": (lambda x: tf.concat([x, x], 0), "concat"),
    "concatenation of examples by a layer": (lambda x: layers.Concatenate(axis=0)([x, x]), "joins examples"),
    "a second input by position": (lambda x: layers.Softmax()(x, x), "more than its input"),
    "concatenation with a constant": (lambda x: tf.concat([x, [[1.0, 2.0]]], 1), "concat"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_cannot_be_exported_is_refused_by_name(name):
    build, said = FUNCTIONS[name]
    inputs = tf.keras.Input((5,))
    with pytest.raises(UnsupportedLayer, match=said):
        read_graph(tf.keras.Model(inputs, layers.Dense(3)(build(inputs))))


def test_a_call_with_more_than_its_input_is_refused():
    inputs = tf.keras.Input((5,))
    model = tf.keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.5)(inputs, training=True)))
    with pytest.raises(UnsupportedLayer, match="is called with training"):
        read_graph(model)


def fake_relu():
    def relu(x):
        return tf.abs(x)

    return relu


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_layer_is_refused_by_name_and_with_what_to_use(name):
    build, advice = UNSUPPORTED[name]
    layer = build()
    with pytest.raises(UnsupportedLayer, match=advice) as refusal:
        read_graph(image_model(layer))
    assert layer.name in str(refusal.value)
    assert type(layer).__name__ in str(refusal.value)


def test_a_subclass_of_a_supported_layer_is_not_taken_for_it():
    class Doubling(layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    with pytest.raises(UnsupportedLayer, match="Doubling"):
        read_graph(image_model(Doubling(3)))


def test_a_dropout_layer_used_twice_is_refused():
    inputs = tf.keras.Input((5,))
    dropout = layers.Dropout(0.5)
    model = tf.keras.Model(inputs, layers.Dense(3)(dropout(layers.Dense(5)(dropout(inputs)))))
    with pytest.raises(UnsupportedLayer, match="more than once"):
        read_graph(model)


def frozen_model():
    model = image_model(layers.Conv2D(3, 3))
    model.trainable = False
    return model


def compiled(model, loss):
    model.compile("sgd", loss)
    return model


def softmax_model():
    return tf.keras.Sequential([layers.InputLayer((5,)), layers.Dense(3, activation="softmax")])


UNSUPPORTED_MODELS = {
    "no weights to train": frozen_model,
    "give it an InputLayer": lambda: tf.keras.Sequential([layers.Dense(3)]),
    "not a Keras model": lambda: layers.Dense(3),
    "shape is not fixed": lambda: tf.keras.Sequential([layers.InputLayer((None, 5)), layers.Dense(3)]),
    "num_classes": lambda: tf.keras.Sequential([layers.InputLayer((4, 5)), layers.Dense(3)]),
    "only float32": lambda: tf.keras.Sequential([layers.InputLayer((5,), dtype="int32"), layers.Dense(3)]),
    "does not end in softmax, but": lambda: compiled(digits_mlp(), "sparse_categorical_crossentropy"),
    "ends in softmax, but": lambda: compiled(
        softmax_model(), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ),
    "supported are: binary_crossentropy": lambda: compiled(digits_mlp(), "poisson"),
}


@pytest.mark.parametrize("sentence", UNSUPPORTED_MODELS)
def test_an_unsupported_model_is_refused_with_the_reason(sentence):
    with pytest.raises(UnsupportedModel, match=sentence):
        read_graph(UNSUPPORTED_MODELS[sentence]())


def test_a_loss_compiled_as_the_model_ends_is_accepted():
    read_graph(compiled(softmax_model(), "sparse_categorical_crossentropy"))
    read_graph(compiled(digits_mlp(), tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)))


@pytest.mark.parametrize("field", [{"learning_rate": -1.0}, {"momentum": 1.0}, {"batch_size": 0}, {"num_epochs": 0}])
def test_a_plan_that_no_device_could_read_is_not_made(field):
    with pytest.raises(MalformedMessage, match=next(iter(field))):
        build_export(digits_mlp(), **{**PLAN, **field})


# ---- seeded faults: the parity check must see each of them


def to_every_maximum(dy, y, values):
    """The wrong rule that looks right on random data."""
    return [dy * (1.0 - activations.positive_mask(y - value)) for value in values]


def test_a_wrong_rule_for_tied_maxima_is_refused_and_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(pooling, "first_maximum_gradients", to_every_maximum)
    with pytest.raises(ParityRefused, match="flat, blurred weights: gradient off") as refusal:
        export_model(digits_cnn(), out_dir=tmp_path / "bundle", **PLAN)
    assert not any("random" in violation for violation in refusal.value.violations)
    assert list(tmp_path.iterdir()) == []


def wrong_relu(x):
    y = tf.nn.relu(x)
    return y, lambda dy: -dy * activations.positive_mask(y)


def straight_through(x):
    return tf.nn.relu(x), lambda dy: dy


@pytest.mark.parametrize("wrong", [wrong_relu, straight_through])
def test_a_wrong_gradient_is_refused_and_nothing_is_written(monkeypatch, tmp_path, wrong):
    monkeypatch.setitem(activations.ACTIVATIONS, "relu", wrong)
    with pytest.raises(ParityRefused, match="gradient off by"):
        export_model(digits_mlp(), out_dir=tmp_path / "bundle", **PLAN)
    assert list(tmp_path.iterdir()) == []


def test_a_slightly_wrong_winograd_filter_is_refused(monkeypatch):
    bent = winograd._FILTER_TRANSFORM.copy()
    bent[0, 5, 4] *= 1.001
    monkeypatch.setattr(winograd, "_FILTER_TRANSFORM", bent)
    with pytest.raises(ParityRefused, match="output off by"):
        build_export(digits_cnn(), **PLAN)


def test_a_tolerance_tighter_than_the_error_is_a_refusal():
    with pytest.raises(ParityRefused, match="tolerance 0"):
        build_export(digits_mlp(), tolerances=Tolerances(gradient=0.0), **PLAN)


@pytest.mark.parametrize("quantity", ["loss_error", "gradient_error", "weight_error", "output_error"])
@pytest.mark.parametrize("error", [1.1e-5, float("nan"), float("inf")])
def test_any_error_beyond_its_tolerance_is_refused_also_nan(quantity, error):
    errors = dict.fromkeys(
        ("loss_error", "gradient_error", "weight_error", "output_error", "num_correct_difference"), 0.0
    )
    case = CheckedCase(name="one", num_examples=1, num_steps=1, **{**errors, quantity: error})
    report = parity.ParityReport(cases=(case,), num_redrawn_examples=0, num_kept_jumpy_examples=0)
    with pytest.raises(ParityRefused):
        parity.refuse_violations(report, Tolerances())


def test_a_gradient_that_is_not_a_number_is_not_averaged_away():
    good, bad = np.ones(3), np.array([1.0, np.nan, 1.0])
    expected = (np.ones(3, np.float32), np.ones(3, np.float32))
    assert np.isnan(gradient_error([good, bad], expected))
    assert np.isnan(gradient_error([bad, good], expected))


def test_a_flex_op_is_refused():
    with pytest.raises(UnsupportedOp, match="FlexReluGrad"):
        refuse_non_builtin_ops({"ADD": 3, "CUSTOM:FlexReluGrad": 1})


def test_an_op_without_a_builtin_is_refused_by_the_conversion(monkeypatch):
    def with_flex(x):
        y = tf.nn.relu(x)
        return y, lambda dy: tf.raw_ops.ReluGrad(gradients=dy, features=y)

    monkeypatch.setitem(activations.ACTIVATIONS, "relu", with_flex)
    with pytest.raises(UnsupportedOp, match="ReluGrad"):
        build_export(digits_mlp(), **PLAN)
