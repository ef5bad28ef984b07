"""The files of an export, as the other packages read them."""

import hashlib

import numpy as np
import pytest

from model_export.bundle import Bundle, write_bundle
from model_export.certificate import decode_certificate
from model_export.errors import NotABundle
from model_export.exporter import export_model
from model_export.zoo import digits_mlp
from wire_protocol.model_contract import (
    BUNDLE_CERTIFICATE,
    BUNDLE_CHECKPOINT,
    BUNDLE_GRAPH,
    BUNDLE_MODEL,
    BUNDLE_PLAN,
    CONTRACT_VERSION,
)
from wire_protocol.plan import decode_plan
from wire_protocol.tensors import decode_tensors

pytestmark = pytest.mark.tensorflow

SMALL = Bundle(model=b"model", plan=b"plan", checkpoint=b"checkpoint", graph=b"graph", certificate=b"certificate")
OTHER = Bundle(model=b"other", plan=b"other", checkpoint=b"other", graph=b"other", certificate=b"other")


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_an_exported_directory_decodes_by_the_wire_protocol(tmp_path):
    model = digits_mlp(seed=7)
    directory = tmp_path / "deep" / "bundle"
    export_model(model, out_dir=directory, batch_size=4, learning_rate=0.125, num_epochs=3, seed=11)
    files = contents(directory)
    assert set(files) == {BUNDLE_MODEL, BUNDLE_PLAN, BUNDLE_CHECKPOINT, BUNDLE_GRAPH, BUNDLE_CERTIFICATE}
    plan = decode_plan(files[BUNDLE_PLAN])
    assert (plan.batch_size, plan.learning_rate, plan.num_epochs, plan.seed) == (4, 0.125, 3, 11)
    assert (plan.input_shape, plan.num_classes, plan.has_dropout) == ((64,), 10, False)
    for got, expected in zip(decode_tensors(files[BUNDLE_CHECKPOINT], plan.weights), model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_certificate_names_the_files_it_was_made_for(any_export):
    certificate = decode_certificate(any_export.bundle.certificate)
    assert certificate == any_export.certificate
    assert certificate.contract_version == CONTRACT_VERSION
    assert certificate.model_sha256 == hashlib.sha256(any_export.bundle.model).hexdigest()
    assert certificate.plan_sha256 == hashlib.sha256(any_export.bundle.plan).hexdigest()
    assert certificate.checkpoint_sha256 == hashlib.sha256(any_export.bundle.checkpoint).hexdigest()
    assert certificate.model_bytes == len(any_export.bundle.model)
    assert set(certificate.versions) == {"ai-edge-litert", "keras", "numpy", "tensorflow"}


def test_the_certificate_covers_ties_a_partial_batch_and_momentum(mlp_export, mixed_export):
    for certificate in (mlp_export.certificate, mixed_export.certificate):
        names = [case.name for case in certificate.cases]
        assert [name.split(",")[0] for name in names] == ["several steps", "random", "random", "flat", "partial"]
        assert certificate.num_steps_compared == 7
        partial = certificate.cases[-1]
        assert partial.num_examples < certificate.cases[-2].num_examples


def test_errors_of_every_model_are_within_the_tolerances(any_export):
    certificate = any_export.certificate
    assert certificate.max_loss_error <= certificate.tolerances.loss == 1e-5
    assert certificate.max_gradient_error <= certificate.tolerances.gradient == 1e-5
    assert certificate.max_weight_error <= certificate.tolerances.weight == 1e-5
    assert certificate.num_kept_jumpy_examples == 0


def test_an_earlier_bundle_is_replaced_as_a_whole(tmp_path):
    write_bundle(SMALL, tmp_path / "bundle")
    write_bundle(OTHER, tmp_path / "bundle")
    assert set(contents(tmp_path / "bundle").values()) == {b"other"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_directory_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(NotABundle, match=r"thesis\.txt"):
        write_bundle(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_way_is_left_alone(tmp_path):
    target = tmp_path / "bundle"
    target.write_text("a file")
    with pytest.raises(NotABundle, match="not a directory"):
        write_bundle(SMALL, target)
    assert target.read_text() == "a file"


def test_a_failed_write_leaves_the_earlier_bundle_and_no_scraps(tmp_path):
    write_bundle(SMALL, tmp_path / "bundle")
    broken = Bundle(model=b"new", plan=b"new", checkpoint="not bytes", graph=b"new", certificate=b"new")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_bundle(broken, tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == dict(SMALL.files)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
