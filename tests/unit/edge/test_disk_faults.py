"""A disk that refuses, and a budget for what is written: what need not be on disk is kept in memory."""

import errno
import hashlib
import logging

import pytest

from edge_client import state_writer
from edge_client.blob_store import FileBlobStore
from edge_client.daemon_log import HourlyLine
from edge_client.errors import StorageError
from edge_client.state_dir import StateDir
from edge_client.state_writer import StateWriter

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EROFS)


def _name(data):
    return hashlib.sha256(data).digest()


@pytest.fixture
def refuse(monkeypatch):
    """Makes every write fail with an error number."""

    def start(number):
        def write(path, data, **mode):
            raise OSError(number, "injected")

        monkeypatch.setattr(state_writer, "write_atomically", write)

    return start


@pytest.mark.parametrize("number", ERRNOS)
def test_a_blob_that_the_disk_refuses_is_kept_in_memory_and_said_once(tmp_path, refuse, caplog, number):
    refuse(number)
    store = FileBlobStore(tmp_path, max_bytes=1000)
    for data in (b"one", b"two", b"three"):
        store.put(_name(data), data)
        assert store.get(_name(data)) == data
    assert list(tmp_path.iterdir()) == []
    assert caplog.text.count("file_not_written") == 1


def test_memory_holds_the_latest_blobs_and_not_more(tmp_path, refuse):
    refuse(errno.ENOSPC)
    store = FileBlobStore(tmp_path, max_bytes=1000)
    blobs = [bytes([index]) * 10 for index in range(10)]
    for blob in blobs:
        store.put(_name(blob), blob)
    assert [store.get(_name(blob)) for blob in blobs] == [None] * 6 + blobs[6:]


def test_beyond_the_hours_budget_blobs_stay_in_memory_and_reports_are_written_all_the_same(tmp_path):
    now = [0.0]
    writer = StateWriter(max_bytes_per_hour=100, clock=lambda: now[0])
    store = FileBlobStore(tmp_path / "blobs", max_bytes=1000, writer=writer)
    first, second, third = b"a" * 80, b"b" * 80, b"c" * 80
    store.put(_name(first), first)
    store.put(_name(second), second)
    assert store.get(_name(second)) == second
    writer.write(tmp_path / "report", b"r" * 500)
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [_name(first).hex()]
    assert writer.num_bytes_in_the_last_hour == 580
    now[0] = 3599.0
    assert writer.num_bytes_in_the_last_hour == 580
    now[0] = 3660.0
    assert writer.num_bytes_in_the_last_hour == 0
    store.put(_name(third), third)
    assert len(list((tmp_path / "blobs").iterdir())) == 2


def test_what_the_hours_writes_are_remembered_by_does_not_grow_with_their_number(tmp_path):
    now = [0.0]
    writer = StateWriter(clock=lambda: now[0])
    for number in range(1000):
        now[0] = number * 9.0
        writer.write(tmp_path / "file", b"x")
        assert 0 <= writer.num_bytes_in_the_last_hour - min(number + 1, 400) <= 7
    assert len(writer._recent) <= 61


def test_a_failure_is_said_again_only_after_a_write_has_succeeded(tmp_path, refuse, monkeypatch, caplog):
    writer = StateWriter()
    for _ in range(2):
        refuse(errno.ENOSPC)
        for _ in range(3):
            with pytest.raises(OSError, match="injected"):
                writer.write(tmp_path / "file", b"x")
        monkeypatch.undo()
        writer.write(tmp_path / "file", b"x")
    assert caplog.text.count("file_not_written") == 2
    assert writer.num_failures == 6


def test_every_flipped_bit_of_a_made_up_id_is_found_and_another_one_made(tmp_path):
    state = StateDir(tmp_path)
    made_up = state.device_id("")
    path = tmp_path / "device_id"
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert state.device_id("") != made_up
    path.write_bytes(good)
    assert state.device_id("") == made_up


def test_an_id_that_cannot_be_kept_is_an_error_and_a_configured_one_is_not(tmp_path, refuse):
    refuse(errno.EROFS)
    with pytest.raises(StorageError, match=r"set device\.id"):
        StateDir(tmp_path).device_id("")
    assert StateDir(tmp_path).device_id("kitchen-pi") == "kitchen-pi"


def test_a_directory_in_the_place_of_the_lock_locks_all_the_same(tmp_path):
    (tmp_path / "lock").mkdir()
    first = StateDir(tmp_path)
    first.lock()
    with pytest.raises(StorageError, match="another daemon"):
        StateDir(tmp_path).lock()
    first.unlock()
    StateDir(tmp_path).lock()


def test_what_was_written_is_in_the_log_once_an_hour(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    now = [0.0]
    writer = StateWriter(clock=lambda: now[0])
    line = HourlyLine(writer, now=0.0)
    for minute in range(121):
        now[0] = 60.0 * minute
        if minute == 30:
            writer.write(tmp_path / "file", b"x" * 700)
        line.tick(now[0])
    lines = [record.getMessage() for record in caplog.records if "state_written" in record.getMessage()]
    assert [text.split()[1] for text in lines] == ["bytes_last_hour=700", "bytes_last_hour=0"]
