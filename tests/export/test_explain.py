"""The certificate's facts about the file, and `flockwise export --explain`."""

import gzip
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from flockwise.export_command import export
from model_export.certificate import Certificate, decode_certificate
from model_export.exporter import export_model
from model_export.file_ops import count_ops, op_versions
from model_export.proved_runtimes import proved_runtimes, runtimes_of
from model_export.signature_errors import SignatureErrors
from model_export.step_cost import measure_step_cost
from model_export.zoo import digits_mlp

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("explained") / "bundle"
    export_model(digits_mlp(), out_dir=directory, batch_size=8, learning_rate=0.05)
    return directory


def explain(*arguments):
    return CliRunner().invoke(export, ["--explain", *map(str, arguments)])


def test_a_written_bundle_says_what_its_file_is_made_of_and_what_a_step_costs(directory):
    result = explain(directory, "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    model = (directory / "model.tflite").read_bytes()
    assert said["op_counts"] == count_ops(model)
    assert set(said["op_versions"]) == set(said["op_counts"])
    assert said["min_runtime_version"].count(".") == 2
    assert said["model_gzip_bytes"] == len(gzip.compress(model, mtime=0)) < said["model_bytes"]
    assert said["proved_runtimes"] == list(runtimes_of(op_versions(model), proved_runtimes().trained_ops))
    cost = said["step_cost"]
    assert 0 < cost["min_ms"] <= cost["median_ms"] < 1000
    assert 20 < cost["peak_rss_mb"] < 150  # TensorFlow alone takes twice as much


def test_the_table_names_every_op_and_every_error(directory):
    text = explain(directory).output
    for word in ("BATCH_MATMUL", "gradient", "gzipped", "MB", "version", "absolute", "relative", "proved in LiteRT"):
        assert word in text


def test_every_signature_has_its_absolute_and_relative_error(directory):
    errors = {
        (e["signature"], e["quantity"]): e for e in json.loads(explain(directory, "--json").stdout)["signature_errors"]
    }
    assert set(errors) == {
        ("save", "weights that restore set"),
        ("infer", "output"),
        ("evaluate", "mean loss"),
        ("train", "mean loss"),
        ("train", "gradient"),
        ("train", "weights after a step"),
    }
    restored = errors.pop(("save", "weights that restore set"))
    assert (restored["absolute"], restored["relative"]) == (0.0, 0.0)
    assert all(0 <= error["absolute"] <= 1e-5 and 0 <= error["relative"] <= 1e-5 for error in errors.values())
    assert 0 < errors["train", "gradient"]["absolute"] != errors["train", "gradient"]["relative"]


@pytest.mark.parametrize("wrong", [1.5, float("nan")])
def test_the_largest_errors_are_kept_and_nan_is_not_lost(wrong):
    errors = SignatureErrors()
    for off in (0.5, wrong, 0.25):
        errors.note("infer", "output", [np.array([2.0 + off, 4.0])], [np.array([2.0, 4.0])])
    (entry,) = errors.entries()
    np.testing.assert_array_equal([entry.absolute, entry.relative], [wrong, wrong / 4])


def test_a_file_that_was_not_certified_is_found_out(directory, tmp_path):
    for name in ("model.tflite", "plan.json", "initial.safetensors", "graph.json"):
        copy = tmp_path / name.partition(".")[0]
        shutil.copytree(directory, copy)
        (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
        result = explain(copy)
        assert result.exit_code == 2
        assert name in result.output


def test_what_is_no_bundle_is_refused_with_exit_code_2(directory, tmp_path):
    assert explain(tmp_path).exit_code == 2
    shutil.copytree(directory, tmp_path / "damaged")
    (tmp_path / "damaged" / "certificate.json").write_text("{}")
    result = explain(tmp_path / "damaged")
    assert result.exit_code == 2
    assert "damaged" in result.output


def test_a_dry_run_measures_nothing_and_a_certificate_of_before_is_still_read(mlp_export, cnn_export):
    assert mlp_export.certificate.step_cost is not None
    assert cnn_export.certificate.step_cost is None
    fields = json.loads(mlp_export.bundle.certificate)
    for name in (
        "op_versions",
        "min_runtime_version",
        "model_gzip_bytes",
        "step_cost",
        "graph_sha256",
    ):
        del fields[name]
    assert isinstance(decode_certificate(json.dumps(fields).encode()), Certificate)


def test_a_file_that_cannot_be_run_is_an_error_that_says_why():
    with pytest.raises(RuntimeError, match="could not be measured"):
        measure_step_cost(b"not a model")
