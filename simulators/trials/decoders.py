"""Every decoder that takes bytes from outside: what it may raise, and what a good input looks like.

One registry for the property test, `scripts/fuzz` and `scripts/fuzz-atheris`. Formats with a checksum stand here twice:
as they are, and with the checksum mended (``... body``), so that what lies behind it is reached too. A test compares
the registry with the functions of the packages, so that none is forgotten.
"""

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import zstandard

from broker_link.broker_url import parse_broker_url
from broker_link.errors import InvalidBrokerUrl
from coordinator.admission import decode_client_update
from coordinator.aggregation_spec import AggregationSpec, decode_aggregation_spec, encode_aggregation_spec
from coordinator.checkpoints import decode_leaves, encode_leaves
from coordinator.errors import CheckpointDamaged, InvalidConfig
from coordinator.privacy_file import parse_privacy_file
from edge_client.checked_file import SEAL_BYTES, seal, unseal
from edge_client.crash_record import CrashRecord, decode_record, encode_record
from edge_client.eligibility.hours import parse_hours
from edge_client.errors import CorruptState, DataFormatError, FrameError, ReleaseRefused
from edge_client.pending_report import PendingReport, decode_pending, encode_pending
from edge_client.releases.golden import GoldenExamples, decode_golden, encode_golden
from edge_client.releases.slots import SlotRecord, decode_slot_record, encode_slot_record
from edge_client.releases.unpacking import unpack_model
from edge_client.trainer_frames import Frame, JobFrame, ResultFrame, read_frame, read_job, read_result, write_frame
from edge_client.training import TrainingJob
from model_export.certificate import decode_certificate
from model_export.errors import UnreadableGraph
from model_export.graph_file import decode_graph, encode_graph
from model_export.layer_operations import Standardize
from model_export.operations import Activation, Bias, Dense, Input, ModelGraph, Node
from simulators.mqtt_framing import PacketSplitter, PacketType, encode_packet, encode_string
from simulators.trials.sample_messages import sample_messages, sample_metrics
from wire_protocol.blobs import BlobAssembler, split_blob
from wire_protocol.errors import WireError
from wire_protocol.identifiers import checked_identifier
from wire_protocol.integer_updates import decode_integer_update, encode_integer_update, num_elements
from wire_protocol.messages import Message, Report, RoundKind, decode_message, encode_message, message_kind
from wire_protocol.plan import TensorSpec, TrainingPlan, decode_plan, encode_plan
from wire_protocol.release import (
    GoldenBatch,
    ModelTensor,
    ReleaseManifest,
    ReleaseNeeds,
    RolloutOrder,
    decode_manifest,
    decode_order,
    encode_release_file,
)
from wire_protocol.signed import SignedMessage, frame_signed, parse_signed
from wire_protocol.tensors import decode_tensors, encode_tensors
from wire_protocol.topics import (
    device_status,
    device_up,
    parse_device_topic,
    parse_release_piece,
    release_file,
    release_file_name,
    release_piece,
    release_piece_list,
)

__all__ = ["Decoder", "byte_decoders"]

_SPECS: Final = (TensorSpec(shape=(3, 4)), TensorSpec(shape=(4,)))
_PLAN: Final = TrainingPlan(batch_size=4, learning_rate=0.1, input_shape=(3,), num_classes=4, weights=_SPECS)
_TENSORS: Final = (np.ones((3, 4), np.float32), np.zeros(4, np.float32))
_JOB: Final = TrainingJob(kind=RoundKind.TRAIN, plan=_PLAN, model=b"m", checkpoint=_TENSORS, round_id=3, device_id="d1")
_DIGEST_BYTES: Final = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """One way in."""

    name: str
    decode: Callable[[bytes], object]
    documented: tuple[type[Exception], ...]
    """What it may raise; anything else is a defect."""
    seeds: Sequence[bytes]
    """Good inputs, from which bad ones are made."""
    covers: tuple[str, ...]
    """The functions that this exercises, as ``module.function``."""
    max_bytes: int = 4096
    """Longest input to try; the decoders' own limits are larger."""
    share: float = 1.0
    """How often it is tried, against the others: less if each try needs a file."""


_ENVELOPE = frame_signed(SignedMessage(epoch=1, counter=2, signature=bytes(64), message=b"FW\x01"))


def byte_decoders() -> list[Decoder]:
    """The decoders that need no file."""
    return [*_message_decoders(), *_wire_decoders(), *_release_decoders(), *_frame_decoders(), *_stored_decoders()]


def _message_decoders() -> list[Decoder]:
    samples: dict[type[Message], list[bytes]] = {}
    for message in sample_messages():
        samples.setdefault(type(message), []).append(encode_message(message))
    return [
        Decoder(
            name=f"message {message_kind(kind)}",
            decode=_expecting(kind),
            documented=(WireError,),
            seeds=seeds,
            covers=("wire_protocol.messages.decode_message",),
        )
        for kind, seeds in samples.items()
    ]


def _expecting(kind: type[Message]) -> Callable[[bytes], object]:
    return lambda data: decode_message(data, kind)


def _wire_decoders() -> list[Decoder]:
    words = np.arange(16, dtype=np.uint32)
    blob = split_blob(bytes(range(256)) * 10, piece_bytes=1024)
    wire = (WireError,)
    topics = (device_status("p", "d1").encode(), device_up("p", "d1", "report").encode())
    return [
        _one("topic", lambda data: parse_device_topic(_text(data)), wire, topics, parse_device_topic),
        _one("identifier", lambda data: checked_identifier(_text(data), kind="device"), wire, (b"device-1",), checked_identifier),
        _one("owner's hours", lambda data: parse_hours(_text(data).split("\n")), (ValueError,), (b"22:00-06:00",), parse_hours),
        _one("plan", decode_plan, wire, (encode_plan(_PLAN),), decode_plan),
        _one("tensors", lambda data: decode_tensors(data, _SPECS), wire, (encode_tensors(_TENSORS),), decode_tensors),
        _one(
            "integer update",
            lambda data: decode_integer_update(data, num_elements(_SPECS)),
            wire,
            (encode_integer_update(words),),
            decode_integer_update,
        ),
        _one("signed envelope", parse_signed, wire, (_ENVELOPE,), parse_signed),
        _one(
            "client update",
            lambda data: decode_client_update(data, _PLAN, aggregation_weight=1.0, metrics=sample_metrics()),
            wire,
            (encode_tensors(_TENSORS),),
            decode_client_update,
        ),
        _one("piece list", lambda data: BlobAssembler(blob.ref).set_piece_list(data), wire, (blob.piece_digests,), BlobAssembler.set_piece_list),
        _one("piece", lambda data: _take_piece(BlobAssembler(blob.ref), blob.piece_digests, data), wire, (b"\x00" + blob.piece(0),), BlobAssembler.add),
        _one("broker url", lambda data: parse_broker_url(_text(data)), (InvalidBrokerUrl,), (b"mqtts://u:p@host:8883", b"mqtt://[::1]:1883"), parse_broker_url),
    ]  # fmt: skip


def _release_decoders() -> list[Decoder]:
    blob = split_blob(bytes(2000), piece_bytes=1024).ref
    manifest = ReleaseManifest(
        name="digits",
        number=2,
        model=blob,
        input=ModelTensor(shape=(8, 8, 1), dtype="float32"),
        output=ModelTensor(shape=(10,), dtype="float32"),
        golden=GoldenBatch(blob=blob, num_examples=8, max_abs_error=0.1, min_agreement=0.9, max_latency_ms=9.0),
        needs=ReleaseNeeds(min_runtime="2.1.0", min_memory_mb=64, operators=("ADD",), device_classes=("aarch64",)),
    )
    order = RolloutOrder(name="digits", serial=3, baseline=1, candidate=2, permille=50, salt="12345678", tags=("lab",))
    pieces = (release_piece_list("p", blob.sha256).encode(), release_piece("p", blob.sha256, 7).encode())
    file_topics = (release_file("p", "timestamp.json").encode(),)
    wire = (WireError,)
    return [
        _one("release manifest", decode_manifest, wire, (encode_release_file(manifest),), decode_manifest),
        _one(
            "golden batch",
            lambda data: decode_golden(data, manifest),
            (DataFormatError,),
            (
                encode_golden(
                    GoldenExamples(inputs=np.zeros((8, 8, 8, 1), np.float32), outputs=np.zeros((8, 10), np.float32))
                ),
            ),
            decode_golden,
        ),
        _one(
            "release record",
            decode_slot_record,
            (CorruptState,),
            (encode_slot_record(SlotRecord(current=3)),),
            decode_slot_record,
        ),
        _one("rollout order", decode_order, wire, (encode_release_file(order),), decode_order),
        _one(
            "packed model",
            lambda data: unpack_model(data, blob, base=None),
            (ReleaseRefused,),
            (zstandard.ZstdCompressor().compress(bytes(2000)),),
            unpack_model,
        ),
        _one("release topic", lambda data: release_file_name(_text(data)), wire, file_topics, release_file_name),
        _one("piece topic", lambda data: parse_release_piece(_text(data)), wire, pieces, parse_release_piece),
    ]


def _take_piece(assembler: BlobAssembler, digests: bytes, data: bytes) -> None:
    assembler.set_piece_list(digests)
    assembler.add(data[0] if data else 0, data[1:])


def _frame_decoders() -> list[Decoder]:
    job = JobFrame(
        round_id=3,
        kind=RoundKind.TRAIN,
        plan=encode_plan(_PLAN),
        model=b"m",
        checkpoint=encode_tensors(_TENSORS),
        device_id="d1",
    )
    result = ResultFrame(
        round_id=3,
        model_delta=encode_tensors(_TENSORS),
        num_examples=5,
        aggregation_weight=5.0,
        metrics=sample_metrics(),
        duration_s=1.0,
    )
    streams = []
    frames: tuple[Frame, ...] = (job, result)
    for frame in frames:
        stream = io.BytesIO()
        write_frame(stream, frame)
        streams.append(stream.getvalue())
    packet = encode_packet(PacketType.PUBLISH, 0, encode_string("fw/v1/p/task"), b"payload")
    return [
        Decoder(
            name="trainer frame",
            decode=_read_stream,
            documented=(FrameError,),
            seeds=streams,
            covers=tuple(f"edge_client.trainer_frames.{name}" for name in ("read_frame", "read_job", "read_result")),
        ),
        Decoder(
            name="trainer frame body",
            decode=lambda body: _read_stream(len(body).to_bytes(8, "big") + body),
            documented=(FrameError,),
            seeds=[stream[8:] for stream in streams],
            covers=(),
        ),
        Decoder(
            name="mqtt packets",
            decode=lambda data: PacketSplitter().feed(data),
            documented=(ValueError,),
            seeds=[packet, packet + packet],
            covers=("simulators.mqtt_framing.PacketSplitter.feed",),
        ),
    ]


def _read_stream(data: bytes) -> None:
    stream = io.BytesIO(data)
    while (frame := read_frame(stream, max_bytes=65536)) is not None:
        if isinstance(frame, JobFrame):
            read_job(frame)
        elif isinstance(frame, ResultFrame):
            read_result(frame, _JOB)


def _stored_decoders() -> list[Decoder]:
    report = next(message for message in sample_messages() if isinstance(message, Report))
    update = split_blob(bytes(range(256)) * 8, piece_bytes=1024)
    digests = update.piece_digests
    report = msgspec.structs.replace(report, update=update.ref, piece_digests=digests)
    pending = encode_pending(
        PendingReport(population="p", device_id="d1", task_id="task-1", report=report, update=update)
    )
    leaves = encode_leaves(
        [
            ("num_weights", 1),
            ("a", np.ones((2, 3), np.float32)),
            ("b", np.array([b"x", b"yz\0"], object)),
            ("c", b"raw"),
        ]
    )
    record = encode_record(CrashRecord(num_bad_starts=2, task_id="task-1", safe_left_s=60.0, reason="died"))
    sealed = "edge_client.checked_file.unseal"
    return [
        *_privacy_file_decoders(),
        _one("pending report", decode_pending, (CorruptState,), (pending,), decode_pending),
        Decoder(
            name="pending report body",
            decode=lambda body: decode_pending(seal(b"OB", body)),
            documented=(CorruptState,),
            seeds=[pending[SEAL_BYTES:]],
            covers=(),
        ),
        _one("crash record", decode_record, (CorruptState,), (record,), decode_record),
        Decoder(
            name="crash record body",
            decode=lambda body: decode_record(seal(b"CR", body)),
            documented=(CorruptState,),
            seeds=[record[SEAL_BYTES:]],
            covers=(),
        ),
        Decoder(
            name="sealed file",
            decode=lambda data: unseal(b"OB", data, max_bytes=2048),
            documented=(CorruptState,),
            seeds=[seal(b"OB", b"body")],
            covers=(sealed,),
        ),
        _one("checkpoint", decode_leaves, (CheckpointDamaged,), (leaves,), decode_leaves),
        Decoder(
            name="checkpoint body",
            decode=lambda body: decode_leaves(body + hashlib.sha256(body).digest()),
            documented=(CheckpointDamaged,),
            seeds=[leaves[:-_DIGEST_BYTES]],
            covers=(),
        ),
        _one(
            "aggregation spec",
            decode_aggregation_spec,
            (InvalidConfig,),
            (encode_aggregation_spec(AggregationSpec()),),
            decode_aggregation_spec,
        ),
        _one("model graph", decode_graph, (UnreadableGraph,), (encode_graph(_graph()),), decode_graph),
        _one("certificate", decode_certificate, (msgspec.DecodeError,), (b'{"format": 1, "cases": [{}]}',), decode_certificate),
    ]  # fmt: skip


def _graph() -> ModelGraph:
    """A frozen matrix on standardised inputs, and a trained bias."""
    nodes = (
        Node(operation=Input(), inputs=(), shape=(2,)),
        Node(operation=Standardize(centre=(1.0, 2.0), deviation=(1.0, 0.5)), inputs=(0,), shape=(2,)),
        Node(operation=Dense(kernel=1), inputs=(1,), shape=(4,)),
        Node(operation=Bias(bias=0), inputs=(2,), shape=(4,)),
        Node(operation=Activation(name="softmax"), inputs=(3,), shape=(4,)),
    )
    frozen = (np.ones((2, 4), np.float32),)
    return ModelGraph(nodes=nodes, logits=3, weight_shapes=((4,),), weight_names=("bias",), frozen_weights=frozen)


def _privacy_file_decoders() -> list[Decoder]:
    toml = b'mode = "central"\nepsilon = 4.0\nclipping_norm = 0.5\nrounds = 30\nadaptive_clip = 0.5\n'
    json = b'{"epsilon": 4, "clipping_norm": 0.5, "bands": 2, "sampling_rate": 0.1}'
    refused = (InvalidConfig,)
    return [
        _one("privacy file", lambda data: parse_privacy_file(data, kind="toml"), refused, (toml,), parse_privacy_file),
        _one("privacy file, JSON", lambda data: parse_privacy_file(data, kind="json"), refused, (json,), parse_privacy_file),
    ]  # fmt: skip


def _one(
    name: str,
    decode: Callable[[bytes], object],
    documented: tuple[type[Exception], ...],
    seeds: Sequence[bytes],
    function: Callable[..., Any],
) -> Decoder:
    covers = (f"{function.__module__}.{function.__qualname__}",)
    return Decoder(name=name, decode=decode, documented=documented, seeds=seeds, covers=covers)


def _text(data: bytes) -> str:
    """A broker hands topics on as UTF-8; a person may type anything."""
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode()
    return data.decode("latin-1")
