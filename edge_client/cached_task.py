"""What the blob cache holds of a task: plan, model file and checkpoint, told apart by their content.

The cache names blobs by hash and keeps no list of what they are. For looking, not for rounds: those are told which
blobs to use.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from wire_protocol.errors import WireError
from wire_protocol.limits import MAX_CONTROL_BYTES
from wire_protocol.plan import TrainingPlan, decode_plan
from wire_protocol.tensors import Tensors, decode_tensors

__all__ = ["CachedTask", "find_cached_task"]

_BLOB: Final = re.compile(r"[0-9a-f]{64}")
_TFLITE_MARK: Final = (4, b"TFL3")
"""Offset and text of the file identifier in a TensorFlow Lite file (schema.fbs: ``file_identifier "TFL3"``)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CachedTask:
    """The plan used last, and what was used last that may go with it."""

    plan: TrainingPlan
    model: bytes | None
    checkpoint: Tensors | None


def find_cached_task(directory: Path) -> CachedTask | None:
    """Looks through a blob directory, last used first; None if there is no plan in it. Changes nothing."""
    paths = _last_used_first(directory)
    plan = next(_plans(paths), None)
    if plan is None:
        return None
    return CachedTask(plan=plan, model=next(_models(paths), None), checkpoint=next(_checkpoints(paths, plan), None))


def _last_used_first(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    paths = [path for path in directory.iterdir() if _BLOB.fullmatch(path.name)]
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def _plans(paths: list[Path]) -> Iterator[TrainingPlan]:
    for path in paths:
        if path.stat().st_size <= MAX_CONTROL_BYTES:
            try:
                yield decode_plan(path.read_bytes())
            except WireError:
                continue


def _models(paths: list[Path]) -> Iterator[bytes]:
    start, mark = _TFLITE_MARK
    for path in paths:
        with path.open("rb") as stream:
            is_model = stream.read(start + len(mark))[start:] == mark
        if is_model:
            yield path.read_bytes()


def _checkpoints(paths: list[Path], plan: TrainingPlan) -> Iterator[Tensors]:
    num_bytes = sum(spec.num_bytes for spec in plan.weights)
    for path in paths:
        if path.stat().st_size >= num_bytes:
            try:
                yield decode_tensors(path.read_bytes(), plan.weights)
            except WireError:
                continue
