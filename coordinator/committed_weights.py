"""The weights of a task to use elsewhere: from a checkpoint file, or the latest that a coordinator has committed.

Reads only: a coordinator may be at work in the same directory.
"""

import dataclasses
import re
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from coordinator.checkpoints import StoredLeaf, decode_leaves
from coordinator.errors import CheckpointDamaged, InvalidBundle
from coordinator.privacy_record import RECORD_FILE, read_privacy_record
from coordinator.task_bundle import TaskBundle
from wire_protocol.errors import WireError
from wire_protocol.tensors import Tensors, decode_tensors, encode_tensors

__all__ = ["CommittedWeights", "read_weights"]

_STATES: Final = "states"
_STATE: Final = re.compile(r"state_(\d{10})\.fwstate")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CommittedWeights:
    """Weights, and where they come from."""

    weights: Tensors
    task_id: str
    num_commits: int | None
    """Committed rounds behind them; ``None``: a file of weights alone does not say."""


def read_weights(path: Path, bundle: TaskBundle) -> CommittedWeights:
    """Reads weights of a task.

    Args:
        path: A checkpoint file (safetensors), a coordinator's ``--state-dir``, or one task's directory in it.
        bundle: The task, without privacy or with it: a coordinator that was told to make the task private is found too.

    Raises:
        InvalidBundle: Nothing there is this task's.
        CheckpointDamaged: There are states of this task, but none is whole.
    """
    if path.is_dir():
        directory, task_id = _task_directory(path, bundle)
        return _latest(directory, bundle, task_id)
    try:
        weights = decode_tensors(path.read_bytes(), bundle.plan.weights)
    except OSError as error:
        raise InvalidBundle(f"cannot read {path}: {error.strerror}") from error
    except WireError as error:
        raise InvalidBundle(f"{path} is no checkpoint of this task: {error}") from error
    return CommittedWeights(weights=weights, task_id=bundle.task_id, num_commits=None)


def _task_directory(state_dir: Path, bundle: TaskBundle) -> tuple[Path, str]:
    if (state_dir / _STATES).is_dir():
        return state_dir, state_dir.absolute().name
    candidates = [state_dir / bundle.task_id, *sorted(state_dir.glob("task-*"))]
    found = [path for path in candidates if path.is_dir() and path.name in _names(path, bundle)]
    if not found:
        others = ", ".join(sorted(path.name for path in state_dir.glob("task-*"))[:3]) or "no task at all"
        raise InvalidBundle(
            f"{state_dir} holds {others}; this bundle is {bundle.task_id}: name a task's directory to take it for that"
        )
    if len({path.name for path in found}) > 1:
        names = ", ".join(sorted({path.name for path in found}))
        raise InvalidBundle(f"{state_dir} holds this task several times ({names}): keep each in a directory of its own")
    return found[0], found[0].name


def _names(directory: Path, bundle: TaskBundle) -> set[str]:
    """Ids under which a coordinator keeps this task in ``directory``: its own, and that with the recorded privacy."""
    if not (directory / RECORD_FILE).exists():
        return {bundle.task_id}
    privacy, _, _ = read_privacy_record(directory)
    private = dataclasses.replace(bundle, plan=msgspec.structs.replace(bundle.plan, privacy=privacy))
    return {bundle.task_id, private.task_id}


def _latest(directory: Path, bundle: TaskBundle, task_id: str) -> CommittedWeights:
    states = directory / _STATES
    matches = [_STATE.fullmatch(path.name) for path in states.iterdir()] if states.is_dir() else []
    versions = sorted((int(match[1]) for match in matches if match), reverse=True)
    if not versions:
        raise InvalidBundle(f"{directory} holds no committed state yet")
    problem: Exception | None = None
    for version in versions:
        try:
            leaves = decode_leaves((states / f"state_{version:010d}.fwstate").read_bytes())
            weights = _checked(leaves, bundle)
        except (CheckpointDamaged, OSError) as error:  # one is removed while a coordinator commits
            problem = error
            continue
        return CommittedWeights(weights=weights, task_id=task_id, num_commits=version)
    raise CheckpointDamaged(f"no state in {states} is whole: {problem}")


def _checked(leaves: list[tuple[str, StoredLeaf]], bundle: TaskBundle) -> Tensors:
    """The weights are the first leaves after their number (see ``CheckpointStore``)."""
    num_weights = leaves[0][1] if leaves else None
    if not isinstance(num_weights, int):
        raise CheckpointDamaged("it is no server state")
    arrays = [leaf for _, leaf in leaves[1 : 1 + num_weights] if isinstance(leaf, np.ndarray)]
    try:
        return decode_tensors(encode_tensors(arrays), bundle.plan.weights)
    except WireError as error:
        raise CheckpointDamaged(f"its weights are not the plan's: {error}") from error
