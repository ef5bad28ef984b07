"""``flockwise export``."""

import json
import subprocess
import sys

import pytest
import tensorflow as tf
from click.testing import CliRunner

from flockwise.export_command import export
from model_export.lowering import activations
from model_export.zoo import digits_mlp

pytestmark = pytest.mark.tensorflow


def run(*arguments):
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


def test_a_zoo_model_is_exported_with_exit_code_0(tmp_path):
    result = run("zoo:digits_mlp", "--out", tmp_path / "bundle", "--batch-size", 4, "--learning-rate", 0.1)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "bundle").iterdir())) == 5
    assert "gradient error" in result.output


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_saved_model_is_exported_with_its_own_weights(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    digits_mlp(seed=9).save(path)
    result = run(path, "--dry-run", "--json", "--batch-size", 4)
    assert result.exit_code == 0, result.output
    of_file = json.loads(result.stdout)["certificate"]["checkpoint_sha256"]
    of_zoo = json.loads(run("zoo:digits_mlp", "--dry-run", "--json", "--batch-size", 4, "--seed", 9).stdout)
    assert of_file == of_zoo["certificate"]["checkpoint_sha256"]


def test_a_dry_run_writes_nothing_and_says_so(tmp_path):
    result = run("zoo:digits_mlp", "--dry-run", "--out", tmp_path / "bundle", "--batch-size", 4)
    assert result.exit_code == 0
    assert "dry run" in result.output
    assert list(tmp_path.iterdir()) == []


def lambda_model():
    return tf.keras.Sequential([tf.keras.layers.InputLayer((5,)), tf.keras.layers.Lambda(lambda x: x + 1)])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_that_holds_code_is_not_run_but_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    lambda_model().save(path)
    result = run(path, "--dry-run")
    assert result.exit_code == 2
    assert "ambda" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["zoo:digits_mlp"], "--out"),
        (["zoo:nothing", "--dry-run"], "digits_mlp"),
        (["missing.keras", "--dry-run"], "there is no file"),
        (["zoo:digits_mlp", "--dry-run", "--learning-rate", "-1"], "learning_rate"),
        (["zoo:digits_mlp", "--dry-run", "--learning-rate", "nan"], "learning_rate"),
        (["zoo:digits_mlp", "--dry-run", "--momentum", "1"], "momentum"),
        (["zoo:digits_mlp", "--dry-run", "--seed", 2**63], "seed"),
        (["zoo:digits_mlp", "--dry-run", "--batch-size", "0"], "batch-size"),
    ],
)
def test_wrong_usage_has_exit_code_2_and_says_what_is_wrong(arguments, sentence):
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in result.output


def test_a_file_that_is_no_model_has_exit_code_2(tmp_path):
    for name in ("model.keras", "model.h5", "model.txt"):
        (tmp_path / name).write_text("not a model")
        assert run(tmp_path / name, "--dry-run").exit_code == 2


def test_an_unsupported_model_has_exit_code_3_and_names_the_layer(tmp_path):
    layers = tf.keras.layers
    tf.keras.Sequential([layers.InputLayer((5,)), layers.UnitNormalization(name="unit"), layers.Dense(3)]).save(
        tmp_path / "model.keras"
    )
    result = run(tmp_path / "model.keras", "--out", tmp_path / "bundle")
    assert result.exit_code == 3
    assert "'unit' (UnitNormalization)" in result.output
    assert not (tmp_path / "bundle").exists()


def test_a_refused_parity_has_exit_code_4_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(activations.ACTIVATIONS, "relu", lambda x: (tf.nn.relu(x), lambda dy: dy))
    result = run("zoo:digits_mlp", "--out", tmp_path / "bundle", "--batch-size", 4)
    assert result.exit_code == 4
    assert "gradient off by" in result.output
    assert not (tmp_path / "bundle").exists()


def test_the_help_ends_with_an_example_and_lists_the_exit_codes():
    text = run("--help").output
    assert text.rstrip().endswith("--learning-rate 0.05")
    for code in (0, 2, 3, 4):
        assert f"\n    {code}  " in text


@pytest.mark.parametrize("module", ["flockwise.export_command", "model_export.errors", "model_export.operations"])
def test_importing_what_needs_no_tensorflow_does_not_load_it(module):
    code = f"import {module}, sys; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_clip_of_each_example_is_in_the_plan_and_refused_by_layer_where_it_cannot_be(tmp_path):
    clip = ["--dry-run", "--json", "--per-example-clip", "0.5"]
    done = CliRunner().invoke(export, ["zoo:digits_mlp", *clip])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["plan"]["per_example_clipping_norm"] == 0.5
    refused = CliRunner().invoke(export, ["zoo:gru", *clip])
    assert refused.exit_code == 3
    assert "without --per-example-clip" in refused.output


def test_a_loss_that_is_named_is_what_the_plan_says(tmp_path):
    tf.keras.Sequential([tf.keras.layers.InputLayer((4,)), tf.keras.layers.Dense(2)]).save(tmp_path / "m.keras")
    result = run(str(tmp_path / "m.keras"), "--loss", "huber", "--huber-delta", "0.5", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["plan"]
    assert (plan["loss"], plan["huber_delta"]) == ("huber", 0.5)
    refused = run(str(tmp_path / "m.keras"), "--loss", "mean_squared_error", "--huber-delta", "0.5", "--dry-run")
    assert refused.exit_code == 2
    assert "belongs to --loss huber" in refused.output
