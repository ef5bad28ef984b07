"""What daemon and trainer say to each other over pipes: length-prefixed MessagePack, tensors as safetensors.

A frame is eight bytes of length, big-endian, and a MessagePack map with its ``type``. The daemon trusts the trainer
no more than the network: lengths are checked before anything is read, and tensors against the plan.
"""

import struct
from typing import Annotated, BinaryIO, Final, cast

import msgspec

from edge_client.errors import FrameError
from edge_client.training import TrainingJob, TrainingResult
from wire_protocol.errors import WireError
from wire_protocol.messages import Metrics, RoundKind, WithdrawalReason
from wire_protocol.plan import TrainingPlan, decode_plan, encode_plan
from wire_protocol.tensors import decode_tensors, encode_tensors, max_encoded_bytes

__all__ = [
    "MAX_JOB_BYTES",
    "FailureFrame",
    "Frame",
    "JobFrame",
    "ResultFrame",
    "job_frame",
    "max_result_bytes",
    "read_frame",
    "read_job",
    "read_result",
    "result_frame",
    "write_frame",
]

MAX_JOB_BYTES: Final = 1024 * 1024 * 1024
_SMALL_BYTES: Final = 65536
_LENGTH: Final = struct.Struct(">Q")
_Detail = Annotated[str, msgspec.Meta(max_length=2000)]


class _Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Common settings of all frames."""

    round_id: int


class JobFrame(_Frame, frozen=True, kw_only=True, tag="job"):
    """Daemon to trainer: run this."""

    kind: RoundKind
    plan: bytes
    model: bytes
    checkpoint: bytes
    device_id: str


class ResultFrame(_Frame, frozen=True, kw_only=True, tag="result"):
    """Trainer to daemon: done."""

    model_delta: bytes | None
    num_examples: int
    aggregation_weight: float
    metrics: Metrics
    duration_s: float


class FailureFrame(_Frame, frozen=True, kw_only=True, tag="failure"):
    """Trainer to daemon: it did not work, and why."""

    reason: WithdrawalReason
    detail: _Detail


Frame = JobFrame | ResultFrame | FailureFrame
_DECODER: Final = msgspec.msgpack.Decoder(Frame)
_ENCODER: Final = msgspec.msgpack.Encoder()


def write_frame(stream: BinaryIO, frame: Frame) -> None:
    """Writes one frame and flushes.

    Raises:
        OSError: The other side is gone.
    """
    data = _ENCODER.encode(frame)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def read_frame(stream: BinaryIO, *, max_bytes: int) -> Frame | None:
    """Reads one frame; None at the end of the stream.

    Raises:
        FrameError: Too long, cut off, or no frame.
    """
    prefix = stream.read(_LENGTH.size)
    if not prefix:
        return None
    if len(prefix) < _LENGTH.size:
        raise FrameError("the stream ended inside a frame")
    (length,) = _LENGTH.unpack(prefix)
    if length > max_bytes:
        raise FrameError(f"a frame of {length} bytes; at most {max_bytes} are expected")
    data = stream.read(length)
    if len(data) < length:
        raise FrameError("the stream ended inside a frame")
    try:
        return cast("Frame", _DECODER.decode(data))
    except (msgspec.DecodeError, ValueError, RecursionError, OverflowError) as error:
        raise FrameError(f"not a frame: {error}") from error


def max_result_bytes(plan: TrainingPlan) -> int:
    """Most bytes of a trainer's answer to a job of this plan."""
    return max_encoded_bytes(plan.weights) + _SMALL_BYTES


def job_frame(job: TrainingJob) -> JobFrame:
    """A job as a frame."""
    return JobFrame(
        round_id=job.round_id,
        kind=job.kind,
        plan=encode_plan(job.plan),
        model=job.model,
        checkpoint=encode_tensors(job.checkpoint),
        device_id=job.device_id,
    )


def read_job(frame: JobFrame) -> TrainingJob:
    """The job in a frame.

    Raises:
        FrameError: Its parts do not fit together.
    """
    try:
        plan = decode_plan(frame.plan)
        checkpoint = decode_tensors(frame.checkpoint, plan.weights)
    except WireError as error:
        raise FrameError(f"not a job: {error}") from error
    return TrainingJob(
        kind=frame.kind,
        plan=plan,
        model=frame.model,
        checkpoint=checkpoint,
        round_id=frame.round_id,
        device_id=frame.device_id,
    )


def result_frame(job: TrainingJob, result: TrainingResult) -> ResultFrame:
    """A result as a frame."""
    return ResultFrame(
        round_id=job.round_id,
        model_delta=encode_tensors(result.model_delta) if result.model_delta is not None else None,
        num_examples=result.num_examples,
        aggregation_weight=result.aggregation_weight,
        metrics=result.metrics,
        duration_s=result.duration_s,
    )


def read_result(frame: ResultFrame, job: TrainingJob) -> TrainingResult:
    """The result of ``job`` in a frame.

    Raises:
        FrameError: It is of another job, or of the other kind, or not what the plan says.
    """
    if frame.round_id != job.round_id or (frame.model_delta is None) == (job.kind is RoundKind.TRAIN):
        raise FrameError("the result is not of the job that was given")
    try:
        delta = decode_tensors(frame.model_delta, job.plan.weights) if frame.model_delta is not None else None
        return TrainingResult(
            model_delta=delta,
            num_examples=frame.num_examples,
            aggregation_weight=frame.aggregation_weight,
            metrics=frame.metrics,
            duration_s=frame.duration_s,
        )
    except (WireError, ValueError) as error:
        raise FrameError(f"not a result: {error}") from error
