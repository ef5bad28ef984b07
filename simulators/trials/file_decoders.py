"""The decoders that read files: each input is written into a scratch directory first.

What is read from a directory of several files comes as one input, cut at ``SEPARATOR``.
"""

import sqlite3
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from coordinator.checkpoints import CheckpointStore, encode_leaves
from coordinator.committed_weights import read_weights
from coordinator.errors import CheckpointDamaged, CoordinatorError, InvalidBundle, InvalidConfig
from coordinator.privacy_record import RECORD_FILE, PrivacyRecord, read_privacy_record
from coordinator.question_files import KeptQuestion, keep_question, question_file, read_question, read_questions
from coordinator.round_ids import RoundIds
from coordinator.round_journal import Contribution, RoundJournal
from coordinator.round_table import Member, RoundState
from coordinator.task_bundle import TaskBundle, read_task_bundle
from coordinator.tff.server_artefact import read_server_artefact
from edge_client.config_loader import load_config
from edge_client.errors import ConfigError, DataError, IdentityError, StorageError
from edge_client.example_header import ExamplesHeader
from edge_client.example_store import open_examples
from edge_client.identity import IdentityStore
from edge_client.import_examples import read_array, read_csv_arrays
from edge_client.state_dir import StateDir
from edge_client.state_writer import StateWriter
from simulators.trials.coordinator_key_decoders import SEPARATOR, coordinator_key_decoders, on_file
from simulators.trials.decoders import Decoder
from simulators.trials.sample_messages import sample_metrics
from wire_protocol.messages import RoundKind
from wire_protocol.model_contract import BUNDLE_CHECKPOINT, BUNDLE_MODEL, BUNDLE_PLAN
from wire_protocol.plan import TensorSpec, TrainingPlan, encode_plan
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.query import Query
from wire_protocol.query_answer import answer_query
from wire_protocol.tensors import encode_tensors

__all__ = ["SEPARATOR", "file_decoders"]

_FEW: Final = 0.12
_VERY_FEW: Final = 0.006
_ENVIRONMENT: Final = b"""FLOCKWISE__DEVICE__POPULATION=p
FLOCKWISE__BROKER__URL=mqtts://h
FLOCKWISE__DATA__PATH=d
FLOCKWISE__TRAINING__NUM_THREADS=2"""
_CONFIG: Final = b"""[device]
population = "p"
[broker]
url = "mqtt://localhost:1883"
[data]
path = "data"
[training]
trainer = "linear"
num_threads = 2
"""


def file_decoders(scratch: Path) -> list[Decoder]:
    """The decoders, on an empty directory that is theirs."""
    return [*_example_decoders(scratch), *_config_decoders(scratch), *_coordinator_decoders(scratch)]


def _example_decoders(scratch: Path) -> list[Decoder]:
    header = msgspec.json.encode(ExamplesHeader(num_examples=2, x_dtype="float32", x_shape=(3,), y_dtype="uint8"))
    directory = scratch / "examples"
    directory.mkdir()
    csv, npy = scratch / "examples.csv", scratch / "array.npy"
    np.save(npy, np.arange(6, dtype=np.float32).reshape(2, 3))
    data_errors = (DataError,)
    return [
        Decoder(
            name="examples directory",
            decode=lambda data: open_examples(_place(directory, ("examples.json", "x.bin", "y.bin"), data)),
            documented=data_errors,
            seeds=[SEPARATOR.join((header, bytes(24), b"\x00\x01"))],
            covers=("edge_client.example_store.open_examples", "edge_client.example_header.read_header"),
            share=_FEW,
        ),
        Decoder(
            name="examples csv",
            decode=on_file(csv, read_csv_arrays),
            documented=data_errors,
            seeds=[b"a,b,label\n1.5,2,0\n3,-4e2,1\n", b'"a","b"\r\n1,0\r\n'],
            covers=(
                "edge_client.import_examples.read_csv_arrays",
                "edge_client.csv_examples.read_csv_examples",
            ),
            share=_FEW,
        ),
        Decoder(
            name="examples npy",
            decode=on_file(npy, read_array),
            documented=data_errors,
            seeds=[npy.read_bytes()],
            covers=("edge_client.import_examples.read_array",),
            share=_FEW,
        ),
    ]


def _config_decoders(scratch: Path) -> list[Decoder]:
    toml, state = scratch / "edge.toml", scratch / "state"
    state.mkdir()
    return [
        Decoder(
            name="config file",
            decode=on_file(toml, lambda path: load_config(path, {"HOME": "/nowhere"})),
            documented=(ConfigError,),
            seeds=[_CONFIG],
            covers=("edge_client.config_loader.load_config",),
            share=_FEW,
        ),
        Decoder(
            name="environment",
            decode=lambda data: load_config(None, _environment(data)),
            documented=(ConfigError,),
            seeds=[_ENVIRONMENT],
            covers=(),
            share=_FEW,
        ),
        _identity_decoder(scratch),
        *coordinator_key_decoders(scratch),
        Decoder(
            name="device id file",
            decode=on_file(state / "device_id", lambda path: StateDir(path.parent).device_id("")),
            documented=(StorageError,),
            seeds=[b"device-0011223344556677\n"],
            covers=("edge_client.state_dir.StateDir.device_id",),
            share=_FEW,
        ),
    ]


def _identity_decoder(scratch: Path) -> Decoder:
    """A key and an epoch, as a device finds them at its start."""
    directory = scratch / "identity"
    directory.mkdir()
    store = IdentityStore(directory, writer=StateWriter(), clock=lambda: 1e9)
    store.load_or_make()
    names = ("epoch", "identity.key")
    return Decoder(
        name="identity files",
        decode=lambda data: (_place(directory, names, data), store.load()),
        documented=(IdentityError, StorageError),
        seeds=[SEPARATOR.join((directory / name).read_bytes() for name in names)],
        covers=("edge_client.identity.IdentityStore.load_or_make",),
        share=_FEW,
    )


def _record(scratch: Path) -> bytes:
    spec = PrivacySpec(
        mode="local", clipping_norm=1.0, noise_multiplier=4.0, num_rounds=2, target_epsilon=2.0, grid_bits=8
    )
    plan = TrainingPlan(
        batch_size=1,
        learning_rate=0.1,
        input_shape=(2,),
        num_classes=2,
        weights=(TensorSpec(shape=(2, 2)),),
        privacy=spec,
    )
    record = PrivacyRecord(scratch / "record", plan)
    record.note(_Over())
    return (scratch / "record" / RECORD_FILE).read_bytes()


class _Over:
    """A round that is over."""

    round_id = 1
    state = RoundState.COMMITTED
    num_reports = 3
    epsilon = 0.5


def _coordinator_decoders(scratch: Path) -> list[Decoder]:
    specs = (TensorSpec(shape=(2, 2)),)
    plan = TrainingPlan(batch_size=4, learning_rate=0.1, input_shape=(2,), num_classes=2, weights=specs)
    bundle, states, server = scratch / "bundle", scratch / "states", scratch / "server"
    for directory in (bundle, states, server):
        directory.mkdir()
    weights = encode_tensors((np.ones((2, 2), np.float32),))
    state = encode_leaves([("num_weights", 1), ("leaf/0", np.ones((2, 2), np.float32))])
    return [
        Decoder(
            name="bundle directory",
            decode=lambda data: read_task_bundle(_place(bundle, (BUNDLE_PLAN, BUNDLE_CHECKPOINT, BUNDLE_MODEL), data)),
            documented=(InvalidBundle,),
            seeds=[SEPARATOR.join((encode_plan(plan), weights, b"model"))],
            covers=("coordinator.task_bundle.read_task_bundle",),
            share=_FEW,
        ),
        Decoder(
            name="round id file",
            decode=on_file(scratch / "last_round_id", RoundIds),
            documented=(InvalidBundle,),
            seeds=[b"17\n"],
            covers=("coordinator.round_ids.RoundIds",),
            share=_FEW,
        ),
        Decoder(
            name="record of a private task",
            decode=on_file(scratch / RECORD_FILE, lambda path: read_privacy_record(path.parent)),
            documented=(InvalidBundle,),
            seeds=[_record(scratch)],
            covers=("coordinator.privacy_record.read_privacy_record",),
            share=_FEW,
        ),
        Decoder(
            name="state files",
            decode=on_file(
                states / "state_0000000001.fwstate", lambda path: CheckpointStore(path.parent).load_latest()
            ),
            documented=(CheckpointDamaged,),
            seeds=[state],
            covers=("coordinator.checkpoints.CheckpointStore.load_latest",),
            share=_VERY_FEW,
        ),
        _weights_decoder(scratch, TaskBundle(plan=plan, model_bytes=b"model", initial_weights=()), state),
        Decoder(
            name="server artefact",
            decode=lambda data: read_server_artefact(_place(server, ("schema.json",), data)),
            documented=(CheckpointDamaged,),
            seeds=[b'{"format":1,"spec":{},"weights":[{"shape":[2]}],"graphs":{}}'],
            covers=("coordinator.tff.server_artefact.read_server_artefact",),
            share=_FEW,
        ),
        _question_decoder(scratch),
        _journal_decoder(scratch),
        _row_decoder(scratch),
    ]


def _weights_decoder(scratch: Path, bundle: TaskBundle, state: bytes) -> Decoder:
    """A coordinator's state, read beside it."""
    states = scratch / "committed" / bundle.task_id / "states"
    states.mkdir(parents=True)
    return Decoder(
        name="committed weights",
        decode=on_file(states / "state_0000000001.fwstate", lambda _: read_weights(scratch / "committed", bundle)),
        documented=(CheckpointDamaged,),
        seeds=[state],
        covers=("coordinator.committed_weights.read_weights",),
        share=_FEW,
    )


def _question_decoder(scratch: Path) -> Decoder:
    """A question and its answer, as `flockwise query` finds them."""
    query = Query(name="q", period="1", kind="mean", edges=(0.0, 40.0), epsilon=1.0, min_contributors=2)
    answer = answer_query(query, [5, 512], num_reports=3)
    keep_question(scratch, KeptQuestion(query=query, answer=answer))
    path = question_file(scratch, query)
    return Decoder(
        name="question file",
        decode=on_file(path, lambda path: (read_question(path), read_questions(scratch))),
        documented=(InvalidConfig,),
        seeds=[path.read_bytes()],
        covers=("coordinator.question_files.read_question", "coordinator.question_files.read_questions"),
        share=_FEW,
    )


def _journal_decoder(scratch: Path) -> Decoder:
    """The database file itself, damaged."""
    path = scratch / "journal.sqlite"
    _write_journal(path)
    return Decoder(
        name="journal file",
        decode=on_file(path, _read_journal),
        documented=(CoordinatorError,),
        seeds=[path.read_bytes()],
        covers=(),
        max_bytes=32768,
        share=_VERY_FEW,
    )


def _row_decoder(scratch: Path) -> Decoder:
    """A whole database whose rows say something else: kind, state, nonce, member's state, rejection, cut apart."""
    path = scratch / "rows.sqlite"

    def decode(data: bytes) -> None:
        for stale in scratch.glob("rows.sqlite*"):
            stale.unlink()
        _write_journal(path)
        parts = (data.split(SEPARATOR, 4) + [b""] * 5)[:5]
        kind, state, nonce, member, rejection = (part.decode("latin-1") for part in parts)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE rounds SET kind = ?, state = ?", (kind, state))
            values = (nonce.encode("latin-1"), member, rejection or None)
            db.execute("UPDATE members SET nonce = ?, state = ?, rejection = ?", values)
        db.close()
        _read_journal(path)

    return Decoder(
        name="journal rows",
        decode=decode,
        documented=(CoordinatorError,),
        seeds=[SEPARATOR.join((b"train", b"reporting", bytes(16), b"rejected", b"late"))],
        covers=("coordinator.round_journal.RoundJournal",),
        share=_VERY_FEW,
    )


def _write_journal(path: Path) -> None:
    metrics = sample_metrics()
    with RoundJournal(path) as journal:
        journal.open_round(1, RoundKind.TRAIN, base_commits=0)
        journal.assign(1, {"d1": Member(nonce=bytes(16))})
        journal.add(1, Contribution(device_id="d1", model_delta=b"x", aggregation_weight=1.0, metrics=metrics))


def _read_journal(path: Path) -> None:
    journal = RoundJournal(path)
    try:
        for known in journal.rounds():
            list(journal.contributions(known.round_id))
    finally:
        journal.close()
        for stale in path.parent.glob(f"{path.name}-*"):
            stale.unlink()


def _place(directory: Path, names: tuple[str, ...], data: bytes) -> Path:
    for name, part in zip(names, data.split(SEPARATOR, len(names) - 1), strict=False):
        (directory / name).write_bytes(part)
    return directory


def _environment(data: bytes) -> dict[str, str]:
    lines = (line.partition(b"=") for line in data.split(b"\n"))
    return {name.decode("latin-1"): value.decode("latin-1") for name, _, value in lines if name}
