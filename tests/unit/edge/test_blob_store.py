"""Blobs on disk are what their names say, or they are not there."""

import hashlib
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.blob_store import FileBlobStore
from edge_client.errors import StorageError


def _name(data):
    return hashlib.sha256(data).digest()


def _store(path, max_bytes=1000):
    return FileBlobStore(path, max_bytes=max_bytes)


def test_a_blob_survives_a_restart(tmp_path):
    _store(tmp_path).put(_name(b"model"), b"model")
    assert _store(tmp_path).get(_name(b"model")) == b"model"
    assert _store(tmp_path).get(_name(b"other")) is None


@settings(max_examples=50, deadline=None)
@given(data=st.binary(min_size=1, max_size=100), at=st.integers(0, 99), flip=st.integers(1, 255))
def test_a_blob_with_any_byte_changed_is_treated_as_missing_and_removed(tmp_path_factory, data, at, flip):
    directory = tmp_path_factory.mktemp("blobs")
    store = _store(directory)
    store.put(_name(data), data)
    path = directory / _name(data).hex()
    damaged = bytearray(data)
    damaged[at % len(data)] ^= flip
    path.write_bytes(damaged)
    assert store.get(_name(data)) is None
    assert not path.exists()
    store.put(_name(data), data)
    assert store.get(_name(data)) == data


def test_a_truncated_blob_is_treated_as_missing(tmp_path):
    store = _store(tmp_path)
    store.put(_name(b"model"), b"model")
    os.truncate(tmp_path / _name(b"model").hex(), 2)
    assert store.get(_name(b"model")) is None


def test_bytes_that_are_not_the_blob_are_refused(tmp_path):
    store = _store(tmp_path)
    with pytest.raises(StorageError, match="not the blob"):
        store.put(_name(b"model"), b"forged")
    assert list(tmp_path.iterdir()) == []


def test_only_digests_become_file_names(tmp_path):
    with pytest.raises(ValueError, match="32 bytes"):
        _store(tmp_path).get(b"../../etc/passwd")


def test_the_blobs_not_used_for_longest_go_first(tmp_path):
    store = _store(tmp_path, max_bytes=30)
    blobs = [bytes([index]) * 10 for index in range(3)]
    for age, blob in enumerate(blobs):
        store.put(_name(blob), blob)
        os.utime(tmp_path / _name(blob).hex(), (1000 + age, 1000 + age))
    assert store.get(_name(blobs[0])) == blobs[0]  # used just now
    store.put(_name(b"new blob.."), b"new blob..")
    assert store.get(_name(blobs[1])) is None
    assert [store.get(_name(blob)) for blob in (blobs[0], blobs[2])] == [blobs[0], blobs[2]]
    assert store.num_bytes <= 30


def test_one_blob_larger_than_the_limit_is_kept_alone(tmp_path):
    store = _store(tmp_path, max_bytes=30)
    store.put(_name(b"small"), b"small")
    store.put(_name(b"x" * 100), b"x" * 100)
    assert store.get(_name(b"x" * 100)) == b"x" * 100
    assert store.get(_name(b"small")) is None


def test_half_written_files_are_removed_and_strange_ones_left(tmp_path):
    (tmp_path / ".0123.abcd.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    store = _store(tmp_path, max_bytes=1)
    store.put(_name(b"model"), b"model")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["notes.txt", _name(b"model").hex()])


def test_where_no_directory_can_be_made_blobs_are_kept_in_memory(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = _store(tmp_path / "file" / "blobs")
    store.put(_name(b"x"), b"x")
    assert store.get(_name(b"x")) == b"x"
    assert (tmp_path / "file").is_file()
