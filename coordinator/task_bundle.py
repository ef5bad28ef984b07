"""An exported task as read from its directory: plan, model file, initial checkpoint."""

import dataclasses
import functools
import hashlib
from pathlib import Path

from coordinator.errors import InvalidBundle
from wire_protocol.blobs import split_blob
from wire_protocol.errors import WireError
from wire_protocol.model_contract import BUNDLE_CHECKPOINT, BUNDLE_MODEL, BUNDLE_PLAN
from wire_protocol.plan import TrainingPlan, decode_plan, encode_plan
from wire_protocol.tensors import Tensors, decode_tensors

__all__ = ["TaskBundle", "read_task_bundle"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskBundle:
    """What a population works on."""

    plan: TrainingPlan
    model_bytes: bytes
    initial_weights: Tensors

    @functools.cached_property
    def plan_bytes(self) -> bytes:
        """The plan as it goes to devices."""
        return encode_plan(self.plan)

    @functools.cached_property
    def task_id(self) -> str:
        """Names the task: a hash of plan and model, so that the same task has the same id after a restart."""
        return "task-" + hashlib.sha256(self.plan_bytes + self.model_bytes).hexdigest()[:16]


def read_task_bundle(directory: Path) -> TaskBundle:
    """Reads what ``flockwise export`` wrote.

    Raises:
        InvalidBundle: A file is missing or damaged; the message names it and says what to do.
    """
    files: dict[str, bytes] = {}
    for name in (BUNDLE_PLAN, BUNDLE_MODEL, BUNDLE_CHECKPOINT):
        try:
            files[name] = (directory / name).read_bytes()
        except OSError as error:
            raise InvalidBundle(
                f"cannot read {directory / name}: {error.strerror}; write a bundle with 'flockwise export'"
            ) from error
    try:
        plan = decode_plan(files[BUNDLE_PLAN])
        weights = decode_tensors(files[BUNDLE_CHECKPOINT], plan.weights)
        split_blob(files[BUNDLE_MODEL])  # whether devices can fetch it at all
    except WireError as error:
        raise InvalidBundle(f"{directory} is not a valid bundle: {error}; export it again") from error
    return TaskBundle(plan=plan, model_bytes=files[BUNDLE_MODEL], initial_weights=weights)
