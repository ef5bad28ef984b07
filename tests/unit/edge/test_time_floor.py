"""A clock in 1970 or years ahead is not believed, and the floor survives restarts, rot and full disks."""

import pytest

from edge_client.state_writer import StateWriter
from edge_client.time_floor import RELEASED_AT, ClockUntrusted, TimeFloor, WallTime

YEAR_S = 365.25 * 86400
HOUR_S = 3600.0


class World:
    def __init__(self, directory):
        self.path = directory / "time_floor"
        self.wall = RELEASED_AT + HOUR_S
        self.steady = 0.0
        self.writer = StateWriter()

    def floor(self, **options):
        return TimeFloor(
            self.path, writer=self.writer, clock=lambda: self.wall, monotonic=lambda: self.steady, **options
        )


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize("wall", [0.0, RELEASED_AT - 1, float("nan"), -1e18])
def test_a_clock_before_the_release_is_not_believed(world, wall):
    world.wall = wall
    reading = world.floor().now()
    assert isinstance(reading, ClockUntrusted)
    assert "2026-11-01" in reading.why


def test_a_clock_ten_years_ahead_is_not_believed_and_one_four_years_ahead_is(world):
    world.wall = RELEASED_AT + 10 * YEAR_S
    assert isinstance(world.floor().now(), ClockUntrusted)
    world.wall = RELEASED_AT + 4 * YEAR_S
    assert world.floor().now() == WallTime(unix_s=world.wall)
    assert isinstance(world.floor(max_ahead_years=3).now(), ClockUntrusted)


def test_the_wall_clock_itself_never_raises_the_floor(world):
    floor = world.floor()
    world.wall = RELEASED_AT + 4 * YEAR_S
    floor.now()
    floor.flush()
    assert floor.floor == RELEASED_AT
    assert not world.path.exists()


def test_a_trusted_time_raises_the_floor_for_good_and_over_a_restart(world):
    floor = world.floor()
    floor.note_trusted(RELEASED_AT + 6 * YEAR_S)
    floor.note_trusted(RELEASED_AT + YEAR_S)
    assert isinstance(floor.now(), ClockUntrusted)
    again = world.floor()
    assert again.floor == RELEASED_AT + 6 * YEAR_S
    world.wall = RELEASED_AT + 10 * YEAR_S
    assert again.now() == WallTime(unix_s=world.wall)


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -1.0, 1e30])
def test_nonsense_from_a_trusted_source_is_ignored(world, nonsense):
    floor = world.floor()
    floor.note_trusted(nonsense)
    assert floor.floor == RELEASED_AT


def test_it_is_written_at_most_once_an_hour_and_at_the_end(world):
    floor = world.floor()
    for step in range(1, 4 * 3600):
        world.steady = float(step)
        floor.note_trusted(RELEASED_AT + step)
    assert world.writer.num_files == 4
    floor.flush()
    floor.flush()
    assert world.writer.num_files == 5
    assert world.floor().floor == RELEASED_AT + 4 * 3600 - 1


@pytest.mark.parametrize("text", [b"", b"99999999999999999999 00000000\n", b"\xff\xfe", b"1800000000\n", b"1" * 1000])
def test_a_damaged_file_is_put_aside_and_the_release_counts(world, text):
    world.path.write_bytes(text)
    assert world.floor().floor == RELEASED_AT
    assert not world.path.exists()


def test_no_single_flipped_bit_moves_the_floor(world):
    world.floor().note_trusted(RELEASED_AT + YEAR_S)
    whole = world.path.read_bytes()
    for index in range(len(whole) * 8):
        data = bytearray(whole)
        data[index // 8] ^= 1 << index % 8
        world.path.write_bytes(bytes(data))
        assert world.floor().floor in {RELEASED_AT, RELEASED_AT + YEAR_S}, index


def test_a_full_disk_costs_the_memory_of_the_floor_and_nothing_else(world, monkeypatch):
    floor = world.floor()
    attempts = []

    def full(path, data, **options):
        attempts.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_client.state_writer.write_atomically", full)
    for step in range(1, 100):
        floor.note_trusted(RELEASED_AT + step)
    assert floor.floor == RELEASED_AT + 99
    assert len(attempts) == 1


def test_the_limit_is_positive(world):
    with pytest.raises(ValueError, match="max_ahead_years"):
        world.floor(max_ahead_years=0)
