"""State files are whole or absent, and reading one runs no code."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordinator.aggregation import ServerState
from coordinator.checkpoints import CheckpointFiles, CheckpointStore, decode_leaves, encode_leaves
from coordinator.errors import CheckpointDamaged, CheckpointExists

NUMBERS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


def state(num_commits, *, scale=1.0):
    leaves = (np.full((2, 3), scale, np.float32), np.arange(4, dtype=np.int64), np.array([b"dp", b""], "S2"))
    return ServerState(num_commits=num_commits, num_weights=1, leaves=leaves)


@given(
    st.lists(NUMBERS | st.binary() | st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(), max_size=6)
)
def test_whatever_is_stored_comes_back(values):
    decoded = decode_leaves(encode_leaves([(str(index), value) for index, value in enumerate(values)]))
    assert [name for name, _ in decoded] == [str(index) for index in range(len(values))]
    for (_, found), value in zip(decoded, values, strict=True):
        assert type(found) is type(value)
        if isinstance(value, np.ndarray):
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert found.tobytes() == value.tobytes()
        else:
            assert found == value


@given(hnp.arrays(object, hnp.array_shapes(max_dims=2, max_side=3), elements=st.binary(max_size=5)))
def test_strings_keep_the_zero_bytes_at_their_end(strings):
    [(_, found)] = decode_leaves(encode_leaves([("strings", strings)]))
    assert found.tolist() == strings.tolist()


@settings(max_examples=60)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(position, bit):
    data = bytearray(encode_leaves([("weights", np.arange(5, dtype=np.float32)), ("note", "x")]))
    data[position % len(data)] ^= 1 << bit
    with pytest.raises(CheckpointDamaged):
        decode_leaves(bytes(data))


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_state_file_are_refused(data):
    for candidate in (data, b"FWSTATE1" + data):
        with pytest.raises(CheckpointDamaged):
            decode_leaves(candidate)


def test_an_array_of_objects_cannot_be_stored():
    with pytest.raises(TypeError, match="leaf"):
        encode_leaves([("leaf", np.array([object()]))])


def test_the_latest_state_is_loaded_with_all_its_leaves(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.load_latest() is None
    store.save(state(1))
    store.save(state(2, scale=7.0))
    loaded = CheckpointStore(tmp_path).load_latest()
    assert (loaded.num_commits, loaded.num_weights) == (2, 1)
    for found, expected in zip(loaded.leaves, state(2, scale=7.0).leaves, strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_only_the_last_states_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for num_commits in range(1, 6):
        store.save(state(num_commits))
    assert CheckpointFiles(tmp_path).versions() == [4, 5]


@pytest.mark.parametrize("num_bytes_left", [0, 7, 11, 40, -1], ids=lambda n: f"{n} bytes left")
def test_a_truncated_state_is_set_aside_for_the_one_before_and_logged(tmp_path, caplog, num_bytes_left):
    store = CheckpointStore(tmp_path)
    store.save(state(1, scale=1.0))
    store.save(state(2, scale=2.0))
    latest = max(tmp_path.glob("*.fwstate"))
    latest.write_bytes(latest.read_bytes()[:num_bytes_left])
    with caplog.at_level(logging.ERROR):
        loaded = store.load_latest()
    assert loaded.num_commits == 1
    assert "checkpoint_damaged version=2" in caplog.text
    store.save(state(2, scale=3.0))  # its number is free again
    assert store.load_latest().leaves[0][0, 0] == 3.0


def test_a_state_is_never_overwritten(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(state(1))
    with pytest.raises(CheckpointExists):
        store.save(state(1))


def test_what_a_crash_left_half_written_is_no_state_and_goes_away(tmp_path):
    CheckpointStore(tmp_path).save(state(1))
    (tmp_path / "state_0000000002.part").write_bytes(b"FWSTATE1half")
    store = CheckpointStore(tmp_path)
    assert store.load_latest().num_commits == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_file_is_synced_before_its_name_appears_and_the_directory_after(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        real_fsync(descriptor)

    def replace(source, target):
        events.append(("replace", Path(target).name))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    CheckpointStore(tmp_path).save(state(1))
    assert events == [
        ("fsync", "state_0000000001.part"),
        ("replace", "state_0000000001.fwstate"),
        ("fsync", tmp_path.name),
    ]


def test_a_programs_file_is_not_taken_for_a_server_state(tmp_path):
    CheckpointFiles(tmp_path).write(1, [("/round_number", 1), ("/iterator", b"{}")])
    with pytest.raises(CheckpointDamaged, match="no server state"):
        CheckpointStore(tmp_path).load_latest()
