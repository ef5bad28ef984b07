"""The oldest LiteRT that is named as proved runs exported files, in an environment of its own, like the newest."""

import importlib.metadata
import os
import socket
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model_export.conversion import convert
from model_export.file_ops import PROVED_RUNTIMES
from model_export.keras_graph import read_graph
from model_export.keras_weights import travelling_weights
from model_export.layer_table import row_model
from model_export.plans import plan_for_graph
from model_export.train_step import TrainStep
from model_export.zoo import digits_cnn
from wire_protocol import model_contract as contract

pytestmark = [pytest.mark.tensorflow, pytest.mark.install]

OLDEST, NEWEST = PROVED_RUNTIMES
SCRIPT = Path(__file__).with_name("run_in_runtime.py")
BATCH = 4


MODELS = {
    "image": (digits_cnn, {"optimizer": "adamw", "weight_decay": 0.01, "proximal_mu": 0.1, "epsilon": 0.1}),
    "text": (lambda: row_model("Embedding"), {"momentum": 0.9}),
    "attention": (lambda: row_model("Transformer block"), {}),
    "recurrent": (lambda: row_model("GRU"), {"optimizer": "adam", "epsilon": 0.1}),
    "statistics": (lambda: row_model("BatchNormalization on images"), {}),
}
"""Between them they hold every kind of op that exports are made of. With a small epsilon Adam's first steps are signs of
gradients, and show every rounding of one that is zero."""


def with_dropout(model):
    return tf.keras.Model(model.inputs, tf.keras.layers.Dropout(0.25)(model.outputs[0]))


def inputs_of(name):
    """A file, and what its signatures are called on."""
    build, fields = MODELS[name]
    model = with_dropout(build())
    graph = read_graph(model)
    plan = plan_for_graph(graph, batch_size=BATCH, learning_rate=0.05, **fields)
    rng = np.random.default_rng(1)
    x = rng.integers(0, 7, (BATCH, *graph.input_shape)).astype("f") / (1 if graph.num_tokens else 7)
    y = (
        np.eye(graph.num_classes, dtype="f")[:BATCH]
        if plan.label_shape
        else np.arange(BATCH, dtype="i") % graph.num_classes
    )
    scored = {contract.X: x, contract.LABEL: y, contract.EXAMPLE_WEIGHT: np.array([1, 1, 1, 0], "f")}
    trained = {
        **scored,
        contract.LEARNING_RATE: np.array([0.05], "f"),
        contract.PROXIMAL_MU: np.array([plan.proximal_mu], "f"),
        contract.DROPOUT_TICKET: np.arange(BATCH, dtype="i"),
    }
    weights = {contract.weight_name(i): weight.numpy() for i, weight in enumerate(travelling_weights(model))}
    of_signatures = {"restore": weights, "train": trained, "evaluate": scored, "infer": {contract.X: x}}
    values = {f"{name}/{s}/{key}": value for s, given in of_signatures.items() for key, value in given.items()}
    return {f"{name}/file": np.frombuffer(convert(TrainStep(graph, plan)), np.uint8), **values}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runtimes") / "inputs.npz"
    np.savez(path, **{key: value for name in MODELS for key, value in inputs_of(name).items()})
    return path


def results_in(python, inputs, target):
    done = subprocess.run(
        [str(python), str(SCRIPT), str(inputs), str(target)], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(target))


@pytest.fixture(scope="module")
def oldest(tmp_path_factory):
    """The python of an environment with the oldest runtime."""
    directory = tmp_path_factory.mktemp("oldest-runtime")
    venv.create(directory / "env", with_pip=True)
    python = directory / "env/bin/python"
    pip = [str(python), "-m", "pip", "install", "--quiet", f"ai-edge-litert=={OLDEST}", f"numpy=={np.__version__}"]
    done = subprocess.run(pip, check=False, capture_output=True, text=True, timeout=600)
    if done.returncode != 0 and not os.environ.get("CI") and not reaches_network():
        pytest.skip("no package index can be reached from here")
    assert done.returncode == 0, done.stderr[-2000:]
    return python


def reaches_network():
    try:
        return bool(socket.getaddrinfo("example.org", 443))
    except OSError:
        return False


@pytest.mark.timeout(900)
def test_the_oldest_runtime_gives_what_the_newest_gives(inputs, oldest, tmp_path):
    assert importlib.metadata.version("ai-edge-litert") == NEWEST
    new = results_in(sys.executable, inputs, tmp_path / "new.npz")
    old = results_in(oldest, inputs, tmp_path / "old.npz")
    assert {key.split("/")[0] for key in new} == set(MODELS)
    assert set(old) == set(new)
    for key, value in new.items():
        np.testing.assert_allclose(old[key], value, rtol=1e-5, atol=2e-6, err_msg=key)
    restored = np.load(inputs)
    for name in MODELS:
        assert np.abs(new[f"{name}/5/save/w0"] - restored[f"{name}/restore/w0"]).max() > 1e-4
