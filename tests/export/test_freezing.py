"""Inference files: the float32 one equals Keras, the int8 one keeps its accuracy on real digits, and what cannot be is refused."""

import json
from typing import get_args

import msgspec
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from edge_client.litert_trainer import LiteRtTrainer
from edge_client.training import ArrayExamples, TrainingJob
from model_export import freezing
from model_export.errors import FreezingRefused, UnreadableGraph, UnusableExamples
from model_export.freezing import Examples, TrainedTask, freeze
from model_export.frozen_model import FrozenModel
from model_export.graph_file import decode_graph, encode_graph
from model_export.inference_card import Origin
from model_export.inference_run import infer_all
from model_export.keras_graph import read_graph
from model_export.keras_weights import travelling_weights
from model_export.layer_table import LAYER_ROWS, row_model
from model_export.operations import Conv2DMaxPool, Operation
from model_export.zoo import ZOO, digits_mlp
from simulators.datasets import load_digits
from wire_protocol.messages import RoundKind
from wire_protocol.tensors import decode_tensors

pytestmark = pytest.mark.tensorflow

ORIGIN = Origin(task_id="task-1", plan_sha256="", model_sha256="", graph_sha256="", checkpoint_sha256="", num_commits=3)


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def task_of(export, weights=None):
    initial = decode_tensors(export.bundle.checkpoint, export.plan.weights)
    return TrainedTask(
        plan=export.plan,
        model=export.bundle.model,
        graph=export.bundle.graph,
        weights=weights or initial,
        origin=ORIGIN,
    )


def trained(export, x, y):
    """The task after three passes by the device's own trainer."""
    plan = msgspec.structs.replace(export.plan, num_epochs=3)
    initial = decode_tensors(export.bundle.checkpoint, plan.weights)
    job = TrainingJob(
        kind=RoundKind.TRAIN, plan=plan, model=export.bundle.model, checkpoint=initial, round_id=1, device_id="d1"
    )
    result = LiteRtTrainer().train(job, ArrayExamples(x=x, y=y))
    return task_of(export, tuple(a + b for a, b in zip(initial, result.model_delta, strict=True)))


@pytest.fixture(scope="module")
def trained_mlp(mlp_export, digits):
    return trained(mlp_export, digits.x_train, digits.y_train)


@pytest.fixture(scope="module")
def trained_cnn(cnn_export, digits):
    return trained(cnn_export, digits.x_train.reshape(-1, 8, 8, 1), digits.y_train)


@pytest.fixture(scope="module")
def examples(digits):
    """Some 800 images that were not trained on, and a few that were."""
    return Examples(x=np.concatenate([digits.x_test, digits.x_train[:500]]),
                    y=np.concatenate([digits.y_test, digits.y_train[:500]]))  # fmt: skip


@pytest.fixture(scope="module")
def frozen(trained_mlp, examples):
    return freeze(trained_mlp, examples=examples, batch_size=4)


def relative_error(found, expected):
    return np.abs(found - expected).max() / max(1.0, np.abs(expected).max())


def test_the_float_file_answers_as_keras_with_the_trained_weights(trained_mlp, frozen, digits):
    keras = digits_mlp()
    keras.set_weights(trained_mlp.weights)
    found = infer_all(frozen.files[freezing.FLOAT_NAME], digits.x_test)
    assert found.shape == (len(digits.x_test), 10)  # 359 is no multiple of the batch of 4
    assert relative_error(found, keras.predict(digits.x_test, verbose=0)) <= 1e-5
    assert np.mean(found.argmax(1) == digits.y_test) > 0.85
    assert frozen.card.float_error <= 1e-5


@pytest.mark.parametrize("model", ["zoo mobile", "zoo head", "BatchNormalization", "GRU", "DepthwiseConv2D 3x3 stride 2", "Embedding", "MultiHeadAttention, no bias", "softsign"])  # fmt: skip
def test_the_float_file_equals_keras_also_where_layers_are_less_common(model, rng):
    name = model.removeprefix("zoo ")
    keras = (
        ZOO[name](0) if model.startswith("zoo") else row_model(next(row for row in LAYER_ROWS if row.startswith(name)))
    )
    graph = read_graph(keras)
    weights = [
        (weight.numpy() + 0.05 * rng.standard_normal(weight.shape)).astype(np.float32)
        for weight in travelling_weights(keras)
    ]
    for variable, value in zip(travelling_weights(keras), weights, strict=True):
        variable.assign(value)
    x = rng.random((6, *graph.input_shape)).astype(np.float32)
    if graph.num_tokens:
        x = np.floor(x * graph.num_tokens)
    model = FrozenModel(graph, weights, 2).as_float()
    assert relative_error(infer_all(model, x), np.asarray(keras(x, training=False)).reshape(6, -1)) <= 1e-5


@pytest.mark.parametrize("name", ["trained_mlp", "trained_cnn"])
def test_int8_keeps_its_accuracy_on_real_digits(name, request, examples):
    task = request.getfixturevalue(name)
    made = freeze(task, examples=Examples(x=examples.x.reshape(-1, *task.plan.input_shape), y=examples.y))
    card = made.card.int8
    assert (card.num_calibration, card.num_held_out) == (256, len(examples.x) - 256)
    assert card.float_accuracy > 0.85
    assert card.int8_accuracy >= card.float_accuracy - 0.01
    assert card.agreement >= 0.98
    if name == "trained_mlp":  # the CNN's program is as large as its weights
        assert card.file.num_bytes < made.card.float32.num_bytes / 2


def test_int8_weights_take_float_inputs_and_answer_almost_as_float32(trained_mlp, examples):
    made = freeze(trained_mlp, examples=Examples(x=examples.x, y=examples.y, kind="weights"))
    card, model = made.card.int8, made.files[freezing.INT8_NAME]
    assert (card.kind, card.num_calibration, card.num_held_out, card.input_scale) == ("weights", 0, len(examples.x), 0)
    assert card.agreement >= 0.99
    assert card.file.num_bytes < made.card.float32.num_bytes / 2
    x = examples.x[:1]
    assert Interpreter(model_content=model).get_signature_runner("infer")(x=x)["output"].dtype == np.float32


def test_the_int8_file_holds_int8_alone_and_the_card_tells_an_app_how_to_call_it(frozen, examples):
    model, card = frozen.files[freezing.INT8_NAME], json.loads(frozen.files[freezing.CARD_NAME])["int8"]
    interpreter = Interpreter(model_content=model)
    assert {detail["dtype"] for detail in interpreter.get_tensor_details()} <= {np.int8, np.int32}  # biases are int32
    [signature] = interpreter.get_signature_list()
    assert signature == "infer"
    x = np.clip(np.rint(examples.x[:4] / card["input_scale"]) + card["input_zero_point"], -128, 127).astype(np.int8)
    output = interpreter.get_signature_runner("infer")(x=x)["output"]
    numbers = card["output_scale"] * (output.astype(np.float32) - card["output_zero_point"])
    exact = infer_all(frozen.files[freezing.FLOAT_NAME], examples.x[:4])
    assert np.abs(numbers - exact).max() <= card["max_output_error"] + 8 * card["output_scale"]
    assert (numbers.argmax(1) == exact.argmax(1)).all()


def test_a_model_that_int8_ruins_is_refused_unless_that_is_allowed(trained_mlp, examples):
    """One loud unit that nothing reads takes all of int8's range."""
    first, bias, second, last = (weight.copy() for weight in trained_mlp.weights)
    first[:, 0], second[0] = 50.0, 0.0
    ruined = TrainedTask(
        plan=trained_mlp.plan, model=trained_mlp.model, graph=trained_mlp.graph, weights=(first, bias, second, last),
        origin=ORIGIN,
    )  # fmt: skip
    with pytest.raises(FreezingRefused, match=r"2\.0% may be lost"):
        freeze(ruined, examples=examples)
    allowed = freeze(ruined, examples=Examples(x=examples.x, y=examples.y, max_accuracy_loss=1.0)).card.int8
    assert allowed.int8_accuracy < allowed.float_accuracy - 0.02
    with pytest.raises(FreezingRefused, match="use the float32 file"):  # its values are rounded by the example
        freeze(ruined, examples=Examples(x=examples.x, y=examples.y, kind="weights"))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"x": np.zeros((200, 8, 8, 1), np.float32)}, r"inputs have the shape \[8, 8, 1\], the task's \[64\]"),
        ({"y": np.zeros((200, 10), np.float32)}, "labels have the shape"),
        ({"x": np.zeros((99, 64), np.float32), "y": np.zeros(99, np.int32)}, "99 examples cannot show"),
    ],
)
def test_examples_that_are_not_the_tasks_are_refused(mlp_export, changed, problem):
    arrays = {"x": np.zeros((200, 64), np.float32), "y": np.zeros(200, np.int32), **changed}
    with pytest.raises(UnusableExamples, match=problem):
        freeze(task_of(mlp_export), examples=Examples(**arrays))


def test_int8_of_token_numbers_is_refused():
    graph = read_graph(row_model("Embedding"))
    weights = [np.zeros(shape, np.float32) for shape in graph.weight_shapes]
    with pytest.raises(FreezingRefused, match="token numbers"):
        FrozenModel(graph, weights, 1).as_int8(np.zeros((4, *graph.input_shape), np.float32))
    assert FrozenModel(graph, weights, 1).with_int8_weights()


def test_another_models_graph_is_refused(mlp_export, cnn_export):
    task = task_of(mlp_export)
    relu_is_tanh = mlp_export.bundle.graph.replace(b'"relu"', b'"tanh"')
    assert relu_is_tanh != mlp_export.bundle.graph
    for graph, problem in ((cnn_export.bundle.graph, "another model's"), (relu_is_tanh, "off by")):
        with pytest.raises(FreezingRefused, match=problem):
            freeze(TrainedTask(plan=task.plan, model=task.model, graph=graph, weights=task.weights, origin=ORIGIN))


def test_every_kind_of_operation_survives_the_graphs_file(mixed_export):
    rows = (
        "BatchNormalization on images", "BatchNormalization, frozen", "Concatenate", "Conv2DTranspose 3x3 stride 2 same",
        "DepthwiseConv2D dilation 2", "Embedding, two tables", "LSTM, no bias", "GlobalMaxPooling1D",
        "GlobalAveragePooling2D keepdims", "GroupNormalization", "LayerNormalization, no scale", "LeakyReLU", "Multiply",
        "MultiHeadAttention, causal", "Normalization, adapted", "Permute", "Rescaling", "UpSampling2D", "ZeroPadding2D",
    )  # fmt: skip
    graphs = [decode_graph(mixed_export.bundle.graph), *(read_graph(row_model(name)) for name in rows)]
    for graph in graphs:
        encoded = encode_graph(graph)
        assert decode_graph(encoded).nodes == graph.nodes
        assert encode_graph(decode_graph(encoded)) == encoded
    seen = {type(node.operation) for graph in graphs for node in graph.nodes}
    assert seen == {*get_args(Operation)} - {Conv2DMaxPool}  # which the lowering makes for itself


def test_a_graph_with_loose_ends_is_refused(cnn_export):
    good = json.loads(cnn_export.bundle.graph)
    for change in (
        {"format": 2}, {"nodes": []}, {"logits": -1}, {"logits": 0}, {"loss": "hinge"}, {"unknown": 1},
        {"nodes": [{**good["nodes"][0], "inputs": [0]}, *good["nodes"][1:]]},
        {"nodes": [*good["nodes"][:-1], {**good["nodes"][-1], "inputs": [len(good["nodes"]) - 1]}]},
        {"nodes": [{**good["nodes"][0], "operation": "Lambda"}, *good["nodes"][1:]]},
        {"frozen_weights": [{"shape": [3], "data": "AAAA"}]},
    ):  # fmt: skip
        with pytest.raises(UnreadableGraph):
            decode_graph(json.dumps({**good, **change}).encode())


def test_a_graph_of_every_loss_and_of_frozen_weights_keeps_them():
    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential(
        [tf.keras.Input((3,)), tf.keras.layers.Dense(4, trainable=False), tf.keras.layers.Dense(1)]
    )
    model.compile(loss=tf.keras.losses.Huber(delta=0.25))
    graph = decode_graph(encode_graph(read_graph(model)))
    assert (graph.loss.name, graph.loss.huber_delta, graph.num_trainable) == ("huber", 0.25, 2)
    np.testing.assert_array_equal(graph.frozen_weights[0], model.layers[0].kernel.numpy())
