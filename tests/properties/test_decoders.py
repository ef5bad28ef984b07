"""Whatever bytes come: a decoder raises what it documents, and nothing else. None of them is forgotten."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulators.trials.fuzzing import Decoder, _Run, every_decoder, fuzz, try_input

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("wire_protocol", "broker_link", "edge_client", "coordinator", "model_export", "secure_sum")
WORDS = ("decode_", "read_", "parse_", "load_", "unseal")
NOT_FROM_OUTSIDE = {
    "model_export.keras_graph.read_graph": "takes a Keras model",
    "edge_client.crash_guard.read_record": "decode_record is this",
    "wire_protocol.integer_updates.decode_sum": "takes an array of our own",
    "edge_client.channel.unsealed": "hands its argument on",
    "coordinator.releases.channel_files.ChannelFiles.read_target": "returns bytes that it has compared with a signed hash",
    "coordinator.checkpoints.CheckpointFiles.read_latest": "CheckpointStore.load_latest is this",
    "coordinator.tff.state_manager.DurableStateManager.load_latest": "reads by CheckpointFiles, needs TFF",
}


def _public_decoders():
    """Every public function and method whose name says that it makes something of bytes or text."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "lowering" in path.parts:
                continue  # makes graphs of Keras layers; no bytes come in
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield from _named(ast.parse(path.read_text()).body, module)


def _named(body, prefix):
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _named(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(WORDS):
            yield f"{prefix}.{node.name}"


def test_no_decoder_is_missing_from_the_registry(tmp_path):
    covered = {name for decoder in every_decoder(tmp_path) for name in decoder.covers}
    found = set(_public_decoders())
    assert len(found) >= 20
    assert found - covered - NOT_FROM_OUTSIDE.keys() == set()
    assert NOT_FROM_OUTSIDE.keys() <= found, "an exception that is none any more"


def test_every_seed_is_well_formed(tmp_path):
    for decoder in every_decoder(tmp_path):
        accepted = [try_input(decoder, seed) for seed in decoder.seeds]
        assert [problem for problem, _ in accepted if problem] == [], decoder.name
        if decoder.name not in {"certificate", "server artefact"}:  # fragments, to reach what a whole one would not
            assert all(is_accepted for _, is_accepted in accepted), decoder.name


def test_mutated_inputs_raise_nothing_that_is_not_documented():
    report = fuzz(12_000, seed=3)
    assert report.defects == ()
    assert sum(report.per_decoder.values()) == 12_000
    assert report.num_accepted > 100


def test_the_same_seed_tries_the_same_inputs():
    first, second = fuzz(500, seed=5, only="plan"), fuzz(500, seed=5, only="plan")
    assert (first.num_accepted, first.per_decoder) == (second.num_accepted, second.per_decoder)


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match="no decoder"):
        fuzz(1, seed=1, only="no such one")


def _found(decode, *, weighs=False):
    decoder = Decoder(name="x", decode=decode, documented=(ValueError,), seeds=(b"seed",), covers=())
    run = _Run([decoder], 1)
    for number in range(200 if weighs else 20, 0, -1):
        run.step(number)
    return {defect.problem.split()[0] for defect in run.report(20).defects}


def test_an_undocumented_exception_is_a_defect_and_a_documented_one_is_none():
    assert _found(lambda data: {}[data]) == {"KeyError:"}
    assert _found(lambda data: int("x")) == set()


def test_an_input_that_takes_too_much_memory_is_a_defect():
    assert _found(lambda data: bytearray(8 * 1024 * 1024), weighs=True) == {"takes"}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("aggregation spec", b'{"\xc1": 1}'),
        ("broker url", b"mqtt://[::1:1883"),
        ("certificate", b'{"f\x91": 1}'),
        ("certificate", b"[" * 3000),
        ("server artefact", b'{"\xf3": 1}'),
        ("trainer frame body", b"\x81\xa1a" * 2000),
        ("examples npy", b"\x93NUMPY\x01\x00\x08\x00{'a': (\n"),
        ("config file", b'[device]\npopulation = "p"\n[data]\npath = "~nobody-of-this-name/x"\n'),
        ("journal rows", b"train\n--cut--\nreporting\n--cut--\nn\n--cut--\nrejected\n--cut--\nnone of the reasons"),
        ("journal rows", b"neither\n--cut--\nreporting\n--cut--\nn\n--cut--\nassigned\n--cut--\n"),
        ("checkpoint body", b'FWSTATE1\x5c\x00\x00\x00[{"name":"b","kind":"strings","num_bytes":0,"shape":[9000000,9000000],"lengths":[]}]  '),
    ],
)  # fmt: skip
def test_what_the_fuzzer_found_once_stays_found_out(tmp_path, name, data):
    decoder = next(known for known in every_decoder(tmp_path) if known.name == name)
    assert try_input(decoder, data) == ("", False)


def test_a_journal_whose_schema_is_no_text_is_one_clear_error(tmp_path):
    decoder = next(known for known in every_decoder(tmp_path) if known.name == "journal file")
    [seed] = decoder.seeds
    damaged = seed.replace(b"base_commits INTEGER NOT", b"base_commits INTEGER NO\xd4")
    assert damaged != seed
    assert try_input(decoder, damaged) == ("", False)


def test_the_guided_fuzzer_says_how_to_install_what_it_lacks():
    if importlib.util.find_spec("atheris") is not None:
        pytest.skip("atheris is installed here")
    command = [sys.executable, str(ROOT / "scripts" / "fuzz-atheris"), "--decoder", "plan"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert ended.returncode == 2
    assert "pip install atheris==" in ended.stderr
