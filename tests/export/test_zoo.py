"""The models that come with Flockwise, and the plans they bring."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from coordinator.task_bundle import read_task_bundle
from edge_client.litert_trainer import LiteRtTrainer
from edge_client.training import ArrayExamples, TrainingJob
from flockwise.export_command import export
from model_export.gradient_features import NUM_FEATURES, gradient_features
from model_export.keras_graph import read_graph
from model_export.plans import plan_for_graph
from model_export.zoo import ZOO
from model_export.zoo_presets import DEFAULT_FIELDS, ZOO_ENTRIES, fields_for
from model_export.zoo_table import ZOO_ROWS
from simulators.datasets import load_digits
from simulators.gradient_features import gradient_features as frontier_features
from simulators.trials.privacy_frontier import model_deltas
from wire_protocol.messages import RoundKind

pytestmark = pytest.mark.tensorflow


def dry_run(*arguments):
    result = CliRunner().invoke(export, [*arguments, "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_listing_names_exactly_the_models_that_can_be_built():
    assert set(ZOO) == set(ZOO_ENTRIES)
    assert {"mlp", "cnn", "mobile", "har", "head", "gru", "digits_mlp", "digits_cnn", "mnist_cnn"} <= set(ZOO)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_zoo_model_is_what_its_entry_says_and_its_preset_is_a_plan(name):
    entry = ZOO_ENTRIES[name]
    graph = read_graph(ZOO[name](0))
    plan = plan_for_graph(graph, **entry.preset)
    assert (plan.input_shape, plan.num_classes) == (entry.input_shape, entry.num_classes)
    assert plan.num_parameters == entry.num_parameters
    assert {"batch_size", "learning_rate", "optimizer", "num_epochs"} <= set(entry.preset)


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"cnn"}))
def test_zoo_weights_depend_on_the_seed_alone_and_start_at_a_useful_scale(name):
    first, again, other = (ZOO[name](seed).get_weights() for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    model = ZOO[name](1)
    x = np.random.default_rng(0).random((64, *model.input_shape[1:])).astype(np.float32)
    outputs = model(x).numpy()
    assert 1e-3 < outputs.std(axis=0).mean() < 10  # neither dead nor exploding


def test_the_list_needs_no_tensorflow_and_is_one_json_object():
    code = (
        "import sys; from click.testing import CliRunner; from flockwise.export_command import export; "
        "print(CliRunner().invoke(export, ['--list-zoo', '--json']).stdout); sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    models = json.loads(done.stdout)["models"]
    assert models["head"]["num_parameters"] == 3930
    assert models["har"]["preset"]["optimizer"] == "adam"
    assert "head" in CliRunner().invoke(export, ["--list-zoo"]).output


def test_a_zoo_model_brings_its_plan_and_the_command_line_overrides_any_part():
    assert dry_run("zoo:mlp")["plan"]["learning_rate"] == 0.1
    plan = dry_run("zoo:mlp", "--learning-rate", "0.2", "--batch-size", "4", "--epochs", "3")["plan"]
    assert (plan["learning_rate"], plan["batch_size"], plan["num_epochs"]) == (0.2, 4, 3)


def test_another_optimizer_leaves_the_presets_learning_rate_and_momentum_behind():
    assert fields_for("zoo:mobile", {})["momentum"] == 0.9
    fields = fields_for("zoo:har", {"optimizer": "sgd", "momentum": None})
    assert fields == {**DEFAULT_FIELDS, "batch_size": 32, "num_epochs": 2}
    assert fields_for("zoo:mobile", {"optimizer": "sgd"}) == fields_for("zoo:mobile", {})


def test_a_file_and_an_old_name_have_the_general_defaults():
    assert fields_for("model.keras", {}) == DEFAULT_FIELDS
    assert fields_for("head", {}) == DEFAULT_FIELDS  # a path, not zoo:head
    for old in ("digits_mlp", "digits_cnn", "mnist_cnn"):
        assert fields_for(f"zoo:{old}", {}) == DEFAULT_FIELDS


@pytest.mark.parametrize(("name", "seed"), [("head", 0), ("private-head", 0), ("har", 2), ("mobile", 1)])
def test_a_zoo_model_is_exported_well_within_tolerance_with_its_preset(name, seed):
    certificate = dry_run(f"zoo:{name}", "--seed", str(seed))["certificate"]
    assert max(certificate[f"max_{kind}_error"] for kind in ("loss", "weight", "output")) <= 1e-5
    # A model that passes by a hair would be refused with another seed.
    assert certificate["max_gradient_error"] <= 8e-6
    assert certificate["num_parameters"] == ZOO_ENTRIES[name].num_parameters


def test_the_zoo_page_has_a_row_of_figures_for_every_model_with_a_preset():
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "zoo.md").read_text()
    table = page.partition("<!-- table")[2].partition("<!-- end")[0]
    for name in ZOO_ROWS:
        assert f"| `{name}` |" in table
        assert f" {ZOO_ENTRIES[name].num_parameters:,} |" in table


def test_a_device_learns_from_the_exported_private_head_what_the_privacy_frontier_computes(tmp_path):
    result = CliRunner().invoke(export, ["zoo:private-head", "--out", str(tmp_path / "bundle")])
    assert result.exit_code == 0, result.output
    bundle = read_task_bundle(tmp_path / "bundle")
    rng = np.random.default_rng(0)
    x, y = rng.random((10, 28, 28, 1)).astype(np.float32), rng.integers(0, 10, 10).astype(np.int32)
    job = TrainingJob(kind=RoundKind.TRAIN, plan=bundle.plan, model=bundle.model_bytes, round_id=1, device_id="d",
                      checkpoint=bundle.initial_weights)  # fmt: skip
    learnt = LiteRtTrainer().train(job, ArrayExamples(x=x, y=y)).model_delta
    model = ZOO["private-head"](0)
    features = tf.keras.Model(model.inputs, model.layers[-1].input)(x).numpy()
    assert 0.5 < np.linalg.norm(features, axis=1).min() <= np.linalg.norm(features, axis=1).max() <= 1 + 1e-6
    with_ones = np.concatenate([features, np.ones((10, 1), np.float32)], axis=1)
    head = np.concatenate([part.reshape(-1, 10) for part in bundle.initial_weights])
    computed = model_deltas(head, with_ones[None], y[None])[0]
    assert np.abs(computed).max() > 0.01
    np.testing.assert_allclose(np.concatenate([part.reshape(-1) for part in learnt]), computed, atol=1e-5)


def features_in_numpy(images):
    """The definition, with loops over taps and float64."""
    n = len(images)
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    gx, gy = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    angles = 2 * np.pi * np.arange(8) / 8
    along = gx[..., None] * np.cos(angles) + gy[..., None] * np.sin(angles)
    cosine = along / np.sqrt(gx**2 + gy**2 + 2e-6)[..., None]
    oriented = np.maximum(along, 0) * np.maximum(cosine, 0) ** 2
    oriented = np.pad(oriented, ((0, 0), (2, 2), (2, 2), (0, 0)))
    tent = 1 - np.abs(np.arange(8) - 3.5) / 4
    cells = np.zeros((n, 7, 7, 8))
    for i in range(7):
        for j in range(7):
            window = oriented[:, 4 * i : 4 * i + 8, 4 * j : 4 * j + 8]
            cells[:, i, j] = np.einsum("nabo,a,b->no", window, tent, tent)
    energy = np.pad((cells**2).sum(-1), ((0, 0), (1, 1), (1, 1)))
    of_block = sum(energy[:, i : i + 7, j : j + 7] for i in range(3) for j in range(3))
    capped = np.minimum(cells / np.sqrt(of_block + 0.5)[..., None], 0.5).reshape(n, -1)
    centred = capped - capped.mean(1, keepdims=True)
    return centred / np.sqrt(capped.var(1, keepdims=True) + 1e-3)


def test_the_frozen_layers_compute_the_gradient_features_that_are_defined():
    inputs = tf.keras.Input((28, 28, 1))
    model = tf.keras.Model(inputs, gradient_features(inputs))
    assert not model.trainable_weights
    x = np.random.default_rng(0).random((5, 28, 28, 1)).astype(np.float32)
    x[3] = 0.5  # flat: no gradient but at the rim
    x[4, 10:20, 5:9] = 1.0
    np.testing.assert_allclose(model(x), features_in_numpy(x[..., 0]), atol=2e-5)
    assert math.prod(model.output_shape[1:]) == NUM_FEATURES


def test_the_frontiers_features_are_those_of_the_zoo_but_for_their_order_and_softening():
    images = np.pad(np.kron(load_digits().x_test[:40].reshape(-1, 8, 8), np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    inputs = tf.keras.Input((28, 28, 1))
    of_the_zoo = tf.keras.Model(inputs, gradient_features(inputs))(images[..., None].astype("f")).numpy()
    by_orientation = frontier_features(images.astype("f")).reshape(-1, 8, 7, 7)
    by_cell = by_orientation.transpose(0, 2, 3, 1).reshape(len(images), -1)
    centred = by_cell - by_cell.mean(1, keepdims=True)
    cosines = (centred * of_the_zoo).sum(1) / np.linalg.norm(centred, axis=1) / np.linalg.norm(of_the_zoo, axis=1)
    assert cosines.min() > 0.99
