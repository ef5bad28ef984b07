"""TFF's program state in the coordinator's durable files."""

import asyncio
import collections
import logging
import typing

import numpy as np
import pytest

from coordinator.errors import CheckpointDamaged
from wire_protocol.plan import TensorSpec

pytestmark = pytest.mark.tensorflow


class Program(typing.NamedTuple):
    state: typing.Any
    round_number: int
    next_evaluation: int | None
    iterator: typing.Any


@pytest.fixture
def manager(tmp_path):
    from coordinator.tff.state_manager import DurableStateManager

    return DurableStateManager(tmp_path)


def program(round_number):
    from coordinator.tff.data_source import FleetDataSource

    source = FleetDataSource(["a", "b", "c", "d"], weights=[TensorSpec(shape=(2,))], seed=5)
    iterator = source.iterator()
    for _ in range(round_number):
        iterator.select(2)
    state = collections.OrderedDict(
        weights=[np.full((2,), round_number, np.float32)],
        step=np.int32(round_number),
        event=np.array([b"dp\0"], object),
    )
    return Program(state, round_number, None, iterator)


def test_a_program_goes_on_with_its_own_types_and_its_own_place_in_the_data(manager):
    saved = program(3)
    asyncio.run(manager.save(saved, 3))
    loaded, version = asyncio.run(manager.load_latest(program(0)))
    assert version == 3
    assert isinstance(loaded, Program)
    assert loaded.round_number == 3
    assert type(loaded.round_number) is int
    assert loaded.next_evaluation is None
    np.testing.assert_array_equal(loaded.state["weights"][0], [3.0, 3.0])
    assert loaded.state["step"] == 3
    assert loaded.state["event"].tolist() == [b"dp\0"]
    assert loaded.iterator.select(2) == saved.iterator.select(2)
    assert loaded.iterator.federated_type == saved.iterator.federated_type


def test_references_are_waited_for(manager):
    import tensorflow_federated as tff

    class Later(tff.program.MaterializableValueReference):
        @property
        def type_signature(self):
            return tff.TensorType(np.float32)

        async def get_value(self):
            await asyncio.sleep(0)
            return np.float32(2.5)

    asyncio.run(manager.save([Later(), 1], 1))
    assert asyncio.run(manager.load(1, [0.0, 0])) == [2.5, 1]


def test_a_version_is_saved_once(manager):
    import tensorflow_federated as tff

    asyncio.run(manager.save([1], 1))
    with pytest.raises(tff.program.ProgramStateExistsError):
        asyncio.run(manager.save([2], 1))


def test_a_missing_version_is_not_found(manager):
    import tensorflow_federated as tff

    assert asyncio.run(manager.get_versions()) is None
    assert asyncio.run(manager.load_latest([1])) == (None, 0)
    with pytest.raises(tff.program.ProgramStateNotFoundError):
        asyncio.run(manager.load(4, [1]))


def test_a_truncated_version_is_set_aside_for_the_one_before_and_logged(manager, tmp_path, caplog):
    asyncio.run(manager.save(program(1), 1))
    asyncio.run(manager.save(program(2), 2))
    latest = max(tmp_path.glob("*.fwstate"))
    latest.write_bytes(latest.read_bytes()[:-5])
    with pytest.raises(CheckpointDamaged):
        asyncio.run(manager.load(2, program(0)))
    with caplog.at_level(logging.ERROR):
        loaded, version = asyncio.run(manager.load_latest(program(0)))
    assert (loaded.round_number, version) == (1, 1)
    assert "checkpoint_damaged version=2" in caplog.text


def test_a_state_of_another_structure_is_refused(manager):
    asyncio.run(manager.save({"a": 1}, 1))
    with pytest.raises(CheckpointDamaged, match="structure"):
        asyncio.run(manager.load(1, {"b": 1}))


def test_removing_all_leaves_none(manager):
    asyncio.run(manager.save([1], 1))
    asyncio.run(manager.remove_all())
    assert asyncio.run(manager.get_versions()) is None
