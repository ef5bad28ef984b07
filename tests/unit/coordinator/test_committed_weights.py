"""Weights of a task for use elsewhere: from a file, or the latest that a coordinator has committed."""

import dataclasses

import msgspec
import numpy as np
import pytest

from coordinator.aggregation import ServerState
from coordinator.checkpoints import CheckpointStore, encode_leaves
from coordinator.committed_weights import read_weights
from coordinator.errors import CheckpointDamaged, InvalidBundle
from coordinator.privacy_record import PrivacyRecord
from coordinator.task_bundle import TaskBundle
from wire_protocol.plan import TensorSpec, TrainingPlan
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.tensors import encode_tensors

SPECS = (TensorSpec(shape=(2, 3)), TensorSpec(shape=(3,)))
PLAN = TrainingPlan(batch_size=1, learning_rate=0.1, input_shape=(2,), num_classes=3, weights=SPECS)
BUNDLE = TaskBundle(
    plan=PLAN, model_bytes=b"model", initial_weights=(np.zeros((2, 3), np.float32), np.zeros(3, np.float32))
)
PRIVACY = PrivacySpec(
    mode="local", clipping_norm=1.0, noise_multiplier=4.0, num_rounds=2, target_epsilon=2.0, grid_bits=8
)


def weights(value):
    return (np.full((2, 3), value, np.float32), np.full(3, value, np.float32))


def commit(state_dir, *values, task_id=BUNDLE.task_id):
    """States of 1, 2, ... commits; the server's own array behind the weights."""
    store = CheckpointStore(state_dir / task_id / "states")
    for num_commits, value in enumerate(values, start=1):
        leaves = (*weights(value), np.full((2, 3), -1.0, np.float32))
        store.save(ServerState(num_commits=num_commits, num_weights=2, leaves=leaves))


def everything(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_checkpoint_file_is_read_and_does_not_say_how_many_rounds_are_behind_it(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(encode_tensors(weights(2.5)))
    found = read_weights(path, BUNDLE)
    assert [array.tolist() for array in found.weights] == [array.tolist() for array in weights(2.5)]
    assert (found.task_id, found.num_commits) == (BUNDLE.task_id, None)


def test_a_state_directory_gives_the_latest_committed_weights_and_no_slot_of_the_server(tmp_path):
    commit(tmp_path, 1.0, 2.0, 3.0)
    found = read_weights(tmp_path, BUNDLE)
    assert [array.tolist() for array in found.weights] == [array.tolist() for array in weights(3.0)]
    assert found.num_commits == 3


def test_the_newest_state_that_is_whole_is_taken_and_nothing_is_changed(tmp_path):
    commit(tmp_path, 1.0, 2.0, 3.0)
    states = tmp_path / BUNDLE.task_id / "states"
    (states / "state_0000000003.fwstate").write_bytes(b"cut off")
    (states / "state_0000000004.fwstate.part").write_bytes(b"being written by a coordinator at work")
    before = everything(tmp_path)
    assert read_weights(tmp_path, BUNDLE).num_commits == 2
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "leaves",
    [
        [],
        [("num_weights", None)],
        [("num_weights", 1), ("leaf/0", np.zeros((2, 3), np.float32))],
        [("num_weights", 2), ("leaf/0", np.zeros((2, 3), np.float32)), ("leaf/1", np.zeros(4, np.float32))],
        [("num_weights", 2), ("leaf/0", np.zeros((2, 3), np.float64)), ("leaf/1", np.zeros(3, np.float32))],
        [("num_weights", 2), ("leaf/0", b"raw"), ("leaf/1", np.zeros(3, np.float32))],
        [("num_weights", 2), ("leaf/0", np.full((2, 3), np.nan, np.float32)), ("leaf/1", np.zeros(3, np.float32))],
    ],
)
def test_a_state_that_is_whole_but_not_of_the_plan_is_damage(tmp_path, leaves):
    states = tmp_path / BUNDLE.task_id / "states"
    states.mkdir(parents=True)
    (states / "state_0000000001.fwstate").write_bytes(encode_leaves(leaves))
    with pytest.raises(CheckpointDamaged, match=r"no state in .* is whole"):
        read_weights(tmp_path, BUNDLE)


def test_the_state_directory_of_another_task_is_refused_and_its_task_named(tmp_path):
    commit(tmp_path, 1.0, task_id="task-0123456789abcdef")
    with pytest.raises(InvalidBundle, match=f"task-0123456789abcdef; this bundle is {BUNDLE.task_id}"):
        read_weights(tmp_path, BUNDLE)
    with pytest.raises(InvalidBundle, match="no task at all"):
        read_weights(tmp_path / "task-0123456789abcdef" / "states", BUNDLE)


def test_a_tasks_own_directory_can_be_named_whatever_its_id_and_its_weights_must_be_the_plans(tmp_path):
    commit(tmp_path, 1.0, 6.0, task_id="task-0123456789abcdef")
    found = read_weights(tmp_path / "task-0123456789abcdef", BUNDLE)
    assert (found.task_id, found.num_commits) == ("task-0123456789abcdef", 2)
    narrow = msgspec.structs.replace(PLAN, weights=(TensorSpec(shape=(2, 2)), SPECS[1]))
    with pytest.raises(CheckpointDamaged, match="not the plan's"):
        read_weights(tmp_path / "task-0123456789abcdef", dataclasses.replace(BUNDLE, plan=narrow))


def test_a_task_without_a_state_is_refused(tmp_path):
    (tmp_path / BUNDLE.task_id / "states").mkdir(parents=True)
    with pytest.raises(InvalidBundle, match="no committed state yet"):
        read_weights(tmp_path, BUNDLE)


@pytest.mark.parametrize("data", [b"", b"not safetensors", encode_tensors(weights(1.0)[:1])])
def test_a_file_that_is_no_checkpoint_of_the_task_is_refused(tmp_path, data):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidBundle, match="no checkpoint of this task"):
        read_weights(path, BUNDLE)
    with pytest.raises(InvalidBundle, match="cannot read"):
        read_weights(tmp_path / "absent", BUNDLE)


def test_a_task_that_the_coordinator_made_private_is_found_from_the_plain_bundle(tmp_path):
    plan = msgspec.structs.replace(PLAN, privacy=PRIVACY)
    private = dataclasses.replace(BUNDLE, plan=plan)
    commit(tmp_path, 4.0, task_id=private.task_id)
    PrivacyRecord(tmp_path / private.task_id, plan)
    found = read_weights(tmp_path, BUNDLE)
    assert (found.task_id, found.num_commits) == (private.task_id, 1)
    assert private.task_id != BUNDLE.task_id
    commit(tmp_path, 5.0)  # and now the plain one as well: which is meant?
    with pytest.raises(InvalidBundle, match="several times"):
        read_weights(tmp_path, BUNDLE)
