"""Too many failures in a row, and the device takes no part for a while; whatever happens to the record, it starts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.checked_file import seal
from edge_client.crash_guard import CrashGuard
from edge_client.crash_record import (
    MAX_RECORD_BYTES,
    SAVE_EVERY_S,
    CrashLimits,
    CrashRecord,
    decode_record,
    encode_record,
)
from edge_client.errors import CorruptState
from edge_client.events import HealthChanged, TrainingFailed
from edge_client.session import SessionState
from edge_client.state_writer import StateWriter
from wire_protocol.messages import (
    CheckIn,
    DeviceMode,
    PieceListRequest,
    PieceRequest,
    Report,
    Withdrawal,
    WithdrawalReason,
)

LIMITS = CrashLimits()
DIED = TrainingFailed(round_id=1, reason=WithdrawalReason.TRAINING_FAILED, trainer_died=True)
DECLINED = TrainingFailed(round_id=1, reason=WithdrawalReason.TOO_FEW_EXAMPLES)


class Machine:
    """A device that is switched on and off, with a clock that runs only by hand."""

    def __init__(self, tmp_path, **limits):
        self.path, self.now = tmp_path / "crashes", 0.0
        self.writer = StateWriter(clock=lambda: self.now)
        self.limits = CrashLimits(**limits)

    def start(self):
        self.guard = CrashGuard(self.path, writer=self.writer, limits=self.limits, clock=lambda: self.now)
        return self.guard

    def run(self, seconds):
        self.now += seconds
        self.guard.tick()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_the_start_after_five_bad_ones_in_a_row_is_in_safe_mode_and_none_before(machine):
    assert [machine.start().is_safe_mode for _ in range(6)] == [False] * 5 + [True]
    assert "5 starts" in machine.guard.health().reason


@pytest.mark.parametrize("how", ["time", "round", "stop"])
def test_a_start_that_was_good_or_stopped_cleanly_is_no_bad_one(machine, how):
    for _ in range(20):
        assert not machine.start().is_safe_mode
        match how:
            case "time":
                machine.run(LIMITS.good_after_s)
            case "round":
                machine.guard.round_accepted()
            case "stop":
                machine.guard.stopped_cleanly()


def test_a_clean_stop_does_not_make_good_what_was_bad_before(machine):
    for _ in range(5):
        machine.start()
    for _ in range(2):
        assert machine.start().is_safe_mode
        machine.guard.stopped_cleanly()


def test_three_deaths_of_the_trainer_in_a_row_on_one_task_bring_safe_mode_even_over_restarts(machine):
    machine.start().task_announced("t1")
    machine.guard.job_over(DIED)
    machine.guard.job_over(DIED)
    assert not machine.guard.is_safe_mode
    machine.guard.stopped_cleanly()
    machine.start().task_announced("t1")
    machine.guard.job_over(DIED)
    assert machine.guard.is_safe_mode
    assert machine.guard.health().mode is DeviceMode.SAFE_MODE


@pytest.mark.parametrize("between", ["orderly", "task"])
def test_deaths_that_are_not_in_a_row_or_not_of_one_task_bring_none(machine, between):
    machine.start().task_announced("t0")
    for number in range(10):
        machine.guard.job_over(DIED)
        machine.guard.job_over(DIED)
        if between == "orderly":
            machine.guard.job_over(DECLINED)
        else:
            machine.guard.task_announced(f"t{number}x")
    assert not machine.guard.is_safe_mode


def _enter(machine):
    for _ in range(6):
        machine.start()
    machine.guard.task_announced("t1")
    assert machine.guard.is_safe_mode


def test_safe_mode_ends_by_itself_after_its_time_of_running_over_restarts(machine):
    _enter(machine)
    half = LIMITS.safe_mode_s / 2
    machine.run(half)
    machine.start()
    machine.run(half - 1)
    assert machine.guard.is_safe_mode
    assert machine.guard.next_wakeup() - machine.now <= 1
    machine.run(1)
    assert not machine.guard.is_safe_mode
    assert machine.guard.health() == HealthChanged(mode=DeviceMode.SAFE_MODE, reason="")
    assert not machine.start().is_safe_mode


def test_a_device_that_cannot_stay_up_stays_in_safe_mode(machine):
    _enter(machine)
    for _ in range(1000):
        machine.start()
        machine.run(SAVE_EVERY_S / 2)
    assert machine.guard.is_safe_mode


def test_another_task_ends_safe_mode_and_the_same_one_does_not(machine):
    _enter(machine)
    machine.start().task_announced("t1")
    assert machine.guard.is_safe_mode
    machine.guard.task_announced("t2")
    assert not machine.guard.is_safe_mode


def test_safe_mode_of_no_length_is_never_entered(tmp_path):
    machine = Machine(tmp_path, safe_mode_s=0.0)
    for _ in range(50):
        assert not machine.start().is_safe_mode
        machine.guard.job_over(DIED)


def test_a_good_device_writes_its_record_a_few_times_per_start_and_never_again(machine):
    machine.start().task_announced("t1")
    for _ in range(1000):
        machine.run(60.0)
        machine.guard.task_announced("t1")
        machine.guard.round_accepted()
        machine.guard.job_over(DECLINED)
    assert machine.writer.num_files <= 3
    assert machine.guard.next_wakeup() == float("inf")


RECORD = encode_record(CrashRecord(num_bad_starts=5, task_id="t1"))


@given(st.integers(0, len(RECORD) - 1), st.integers(0, 7))
@settings(deadline=None)
def test_any_flipped_bit_of_a_record_is_found(position, bit):
    damaged = bytearray(RECORD)
    damaged[position] ^= 1 << bit
    with pytest.raises(CorruptState):
        decode_record(bytes(damaged))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_record_or_corrupt(data, is_sealed):
    try:
        record = decode_record(seal(b"CR", data) if is_sealed else data)
    except CorruptState:
        return
    assert len(encode_record(record)) <= MAX_RECORD_BYTES


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.text("abcXYZ-_9", max_size=64),
    st.floats(0, 1e9),
    st.text("x é", max_size=200),
)
def test_a_record_round_trips(starts, deaths, task_id, left_s, reason):
    record = CrashRecord(
        num_bad_starts=starts, num_trainer_deaths=deaths, task_id=task_id, safe_left_s=left_s, reason=reason
    )
    assert decode_record(encode_record(record)) == record


def test_a_damaged_record_is_put_aside_and_begun_anew(machine):
    for length in range(len(RECORD)):
        machine.path.write_bytes(RECORD[:length])
        assert not machine.start().is_safe_mode
        assert decode_record(machine.path.read_bytes()).num_bad_starts == 1
    assert machine.path.with_name("crashes.corrupt").exists()
    machine.path.unlink()
    machine.path.mkdir()
    assert not machine.start().is_safe_mode
    assert machine.path.is_file()


def test_a_record_that_cannot_be_written_is_kept_in_memory(machine, monkeypatch, caplog):
    def full(path, data, **mode):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_client.state_writer.write_atomically", full)
    machine.start().task_announced("t1")
    for _ in range(3):
        machine.guard.job_over(DIED)
    assert machine.guard.is_safe_mode
    assert caplog.text.count("No space left") == 1


# -- what the agent does with it


def _safe_mode(bench, reason="bad starts"):
    return bench.handle(HealthChanged(mode=DeviceMode.SAFE_MODE, reason=reason))


@pytest.mark.parametrize("mode", [DeviceMode.SAFE_MODE, DeviceMode.INELIGIBLE])
def test_a_device_that_is_not_ok_stays_online_and_does_not_check_in(bench, mode):
    bench.handle(HealthChanged(mode=mode, reason="because"))
    bench.connect()
    bench.announce()
    for _ in range(5):
        bench.tick(3600.0)
    assert bench.take(CheckIn) == []
    assert bench.statuses == ["online"]
    assert {health.mode for health in bench.healths} == {mode}
    bench.handle(HealthChanged(mode=mode, reason=""))
    bench.tick_when_due()
    assert len(bench.take(CheckIn)) == 1


@pytest.mark.parametrize("state", [SessionState.ASSIGNED, SessionState.TRAINING])
def test_what_is_not_finished_is_given_back(bench, state):
    bench.assign(bench.check_in())
    if state is SessionState.TRAINING:
        bench.serve()
    _safe_mode(bench)
    assert [message.reason for message in bench.take(Withdrawal)] == [WithdrawalReason.NOT_ELIGIBLE]
    assert bench.stopped == ([1] if state is SessionState.TRAINING else [])
    assert bench.agent.state is SessionState.IDLE


def test_a_finished_report_is_still_sent(bench):
    assignment = bench.reach_training()
    bench.disconnect()
    bench.finish()
    _safe_mode(bench)
    bench.connect()
    assert len(bench.take(Report)) == 1
    bench.receipt(assignment)
    bench.tick(3600.0)
    assert bench.take(CheckIn) == []


def test_an_assignment_that_comes_too_late_is_given_back_and_no_blob_is_read_or_fetched(make_bench):
    class Unreadable:
        def get(self, sha256):
            raise AssertionError("a cached blob was read")

    bench = make_bench(blobs=Unreadable())
    check_in = bench.check_in()
    _safe_mode(bench)
    assignment = bench.assign(check_in)
    [withdrawal] = bench.take(Withdrawal)
    assert (withdrawal.nonce, withdrawal.reason) == (assignment.nonce, WithdrawalReason.NOT_ELIGIBLE)
    assert bench.take(PieceRequest) == bench.take(PieceListRequest) == []
    assert bench.agent.state is SessionState.IDLE
