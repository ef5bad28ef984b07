"""What `doctor` checks about training: one step, in the trainer's child, as a round would run it."""

import tempfile
import threading
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edge_client.cached_task import find_cached_task
from edge_client.checks.state import state_path
from edge_client.doctor import Check, Finding, Subject, fail, ok, skip, warn
from edge_client.errors import StorageError
from edge_client.events import TrainingFinished
from edge_client.example_store import write_examples
from edge_client.linear_trainer import linear_weights
from edge_client.trainer_options import TrainerOptions
from edge_client.trainer_process import TrainerProcess
from edge_client.training import TrainingJob
from wire_protocol.messages import RoundKind, WithdrawalReason
from wire_protocol.model_contract import BUNDLE_CHECKPOINT, BUNDLE_MODEL, BUNDLE_PLAN
from wire_protocol.plan import TrainingPlan, decode_plan
from wire_protocol.tensors import Tensors, decode_tensors

__all__ = ["MODEL_CHECKS", "probe_job"]

_TIME_LIMIT_S: Final = 120.0
_DATA_REASONS: Final = {WithdrawalReason.TOO_FEW_EXAMPLES, WithdrawalReason.DATA_MISMATCH}


def check_probe_model(subject: Subject) -> Finding:
    """One step of the tiny model that comes with this package, on made-up examples: does training work at all?"""
    job = probe_job(subject.config.training.trainer)
    with tempfile.TemporaryDirectory(prefix="flockwise-doctor-") as directory:
        data = Path(directory) / "data"
        try:
            write_examples(data, x=np.zeros((job.plan.batch_size, *job.plan.input_shape), np.float32),
                           y=np.zeros(job.plan.batch_size, np.int32))  # fmt: skip
        except StorageError as error:
            return fail(str(error), "free some space in the temporary directory, or set TMPDIR")
        return _try(subject, job, data)


def check_cached_model(subject: Subject) -> Finding:
    """One step of the model of the last round, on this device's own examples. Nothing is kept or sent."""
    task = find_cached_task(state_path(subject) / "blobs")
    if task is None or task.checkpoint is None or (task.model is None and subject.config.training.trainer == "litert"):
        return skip("no model has been fetched yet")
    plan = msgspec.structs.replace(task.plan, num_epochs=1, max_steps=1)
    return _try(subject, _job(plan, task.model or b"", task.checkpoint), Path(subject.config.data.path))


def probe_job(trainer: str) -> TrainingJob:
    """One step of the packaged model; for the linear trainer, of a model without a file."""
    if trainer == "linear":
        weights = linear_weights(input_shape=(4,), num_classes=2)
        plan = TrainingPlan(batch_size=2, learning_rate=0.1, input_shape=(4,), num_classes=2, weights=weights)
        zeros = tuple(np.zeros(spec.shape, np.float32) for spec in weights)
        return _job(plan, b"", zeros)
    directory = resources.files("edge_client") / "probe_model"
    plan = decode_plan((directory / BUNDLE_PLAN).read_bytes())
    checkpoint = decode_tensors((directory / BUNDLE_CHECKPOINT).read_bytes(), plan.weights)
    return _job(plan, (directory / BUNDLE_MODEL).read_bytes(), checkpoint)


def _job(plan: TrainingPlan, model: bytes, checkpoint: Tensors) -> TrainingJob:
    return TrainingJob(
        kind=RoundKind.TRAIN, plan=plan, model=model, checkpoint=checkpoint, round_id=1, device_id="doctor"
    )


def _try(subject: Subject, job: TrainingJob, data: Path) -> Finding:
    """Runs a job in a child process as the daemon would, and says how it went."""
    training = subject.config.training
    woken = threading.Event()
    process = TrainerProcess(
        options=TrainerOptions(
            data_path=str(data),
            trainer=training.trainer,
            num_threads=training.num_threads,
            memory_limit_mb=training.memory_limit_mb,
        ),
        time_limit_s=_TIME_LIMIT_S,
        idle_stop_s=_TIME_LIMIT_S,
        wake=woken.set,
    )
    try:
        process.start(job)
        woken.wait(_TIME_LIMIT_S)
        ended = process.poll()
    finally:
        process.close()
    if isinstance(ended, TrainingFinished):
        return ok(f"one step of {job.plan.batch_size} examples took {ended.result.duration_s:.2f} s")
    if ended is None:
        return fail(f"no step within {_TIME_LIMIT_S:g} s", "is the machine overloaded? look at the check 'memory'")
    if ended.reason in _DATA_REASONS:
        return warn(ended.detail, "look at the checks 'data' and 'data_fits': with these examples this device declines")
    remedy = (
        "pip install --force-reinstall ai-edge-litert; look at the checks 'memory' and 'limits'; if only the cached "
    )
    return fail(ended.detail, f"{remedy}model fails, tell the fleet's operator")


MODEL_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("probe_model", check_probe_model),
    ("cached_model", check_cached_model),
)
"""Name and function of each check, in the order in which they are made."""
