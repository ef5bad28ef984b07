"""The trainer's child process may hang, crash or lose its parent; the daemon's side survives all of it."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_client.errors import FrameError
from edge_client.events import TrainingFailed, TrainingFinished
from edge_client.example_store import write_examples
from edge_client.linear_trainer import LinearTrainer, linear_weights
from edge_client.trainer_frames import (
    FailureFrame,
    job_frame,
    max_result_bytes,
    read_frame,
    read_job,
    read_result,
    result_frame,
    write_frame,
)
from edge_client.trainer_options import TrainerOptions
from edge_client.trainer_process import TrainerProcess
from edge_client.training import ArrayExamples, TrainingJob
from wire_protocol.messages import RoundKind, WithdrawalReason
from wire_protocol.plan import TrainingPlan

WEIGHTS = linear_weights(input_shape=(5,), num_classes=3)
X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
Y = np.arange(12, dtype=np.int32) % 3
PATIENCE_S = 60.0


def _job(kind=RoundKind.TRAIN, **plan):
    fields = {"batch_size": 4, "learning_rate": 0.1, "input_shape": (5,), "num_classes": 3, "weights": WEIGHTS}
    checkpoint = tuple(np.zeros(spec.shape, np.float32) for spec in WEIGHTS)
    return TrainingJob(
        kind=kind,
        plan=TrainingPlan(**(fields | plan)),
        model=b"m" * 300_000,  # more than a pipe holds
        checkpoint=checkpoint,
        round_id=7,
        device_id="d1",
    )


ENDLESS = _job(num_epochs=1000, batch_size=1)  # on many examples: hours
SHORT = _job(max_steps=2)


@pytest.fixture
def data(tmp_path):
    write_examples(tmp_path / "data", x=X, y=Y)
    return tmp_path / "data"


@pytest.fixture
def many_data(tmp_path):
    write_examples(tmp_path / "many", x=np.tile(X, (5000, 1)), y=np.tile(Y, 5000))
    return tmp_path / "many"


class Owner:
    """Starts jobs and waits for their ends, as the daemon does."""

    def __init__(self, data, *, trainer="linear", time_limit_s=PATIENCE_S, idle_stop_s=PATIENCE_S, memory_limit_mb=0):
        self.clock_s = 0.0
        self.woken = threading.Event()
        options = TrainerOptions(data_path=str(data), trainer=trainer, memory_limit_mb=memory_limit_mb)
        self.process = TrainerProcess(
            options=options,
            time_limit_s=time_limit_s,
            idle_stop_s=idle_stop_s,
            wake=self.woken.set,
            clock=lambda: self.clock_s,
        )

    def run(self, job):
        self.process.start(job)
        return self.wait()

    def wait(self):
        assert self.woken.wait(PATIENCE_S), "the trainer never answered"
        self.woken.clear()
        return self.process.poll()


@pytest.fixture
def owner(data):
    owner = Owner(data)
    yield owner
    owner.process.close()
    assert owner.process.pid is None


@pytest.fixture
def busy_owner(many_data):
    owner = Owner(many_data)
    yield owner
    owner.process.close()


def _is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def _wait_until_training(pid):
    """Waits until the child has used more processor time than starting up takes."""
    ends_at = time.monotonic() + PATIENCE_S
    while True:
        user_ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11])
        if user_ticks / os.sysconf("SC_CLK_TCK") > 0.6:
            return
        assert time.monotonic() < ends_at, "the job does not run"
        time.sleep(0.02)


def _wait_until_gone(pid):
    ends_at = time.monotonic() + PATIENCE_S
    while _is_alive(pid):
        assert time.monotonic() < ends_at, f"process {pid} is still there"
        time.sleep(0.02)


def test_a_job_in_the_child_gives_exactly_what_it_gives_in_process(owner):
    expected = LinearTrainer().train(_job(num_epochs=2), ArrayExamples(x=X, y=Y))
    ended = owner.run(_job(num_epochs=2))
    assert isinstance(ended, TrainingFinished)
    assert ended.round_id == 7
    for delta, wanted in zip(ended.result.model_delta, expected.model_delta, strict=True):
        np.testing.assert_array_equal(delta, wanted)
    assert ended.result.metrics == expected.metrics


def test_the_child_stays_for_the_next_round_and_leaves_when_idle(owner):
    owner.run(_job())
    pid = owner.process.pid
    assert owner.run(_job(RoundKind.EVALUATE)).result.model_delta is None
    assert owner.process.pid == pid
    assert owner.process.next_wakeup() == PATIENCE_S
    owner.clock_s = PATIENCE_S
    assert owner.process.poll() is None
    assert owner.process.pid is None
    _wait_until_gone(pid)
    assert isinstance(owner.run(_job()), TrainingFinished)


def test_a_job_that_takes_too_long_is_killed_and_reported(busy_owner):
    busy_owner.process.start(ENDLESS)
    pid = busy_owner.process.pid
    assert busy_owner.process.poll() is None
    busy_owner.clock_s = PATIENCE_S
    ended = busy_owner.process.poll()
    assert isinstance(ended, TrainingFailed)
    assert ended.reason is WithdrawalReason.TRAINING_FAILED
    assert "longer than 60 s" in ended.detail
    _wait_until_gone(pid)
    busy_owner.wait()
    assert isinstance(busy_owner.run(SHORT), TrainingFinished)


def test_a_child_that_crashes_is_reported_and_replaced(busy_owner):
    busy_owner.process.start(ENDLESS)
    _wait_until_training(busy_owner.process.pid)
    os.kill(busy_owner.process.pid, signal.SIGSEGV)
    ended = busy_owner.wait()
    assert isinstance(ended, TrainingFailed)
    assert f"exit code {-signal.SIGSEGV}" in ended.detail
    assert isinstance(busy_owner.run(SHORT), TrainingFinished)


def test_a_child_that_died_between_rounds_is_replaced_unnoticed(owner):
    owner.run(_job())
    os.kill(owner.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, owner.process.pid, os.WEXITED | os.WNOWAIT)  # all its threads are gone, not only the first
    assert isinstance(owner.run(_job()), TrainingFinished)


def test_a_stopped_job_is_killed_and_never_heard_of_again(busy_owner):
    busy_owner.process.start(ENDLESS)
    pid = busy_owner.process.pid
    busy_owner.process.stop()
    _wait_until_gone(pid)
    assert busy_owner.wait() is None
    assert not busy_owner.process.is_busy
    assert isinstance(busy_owner.run(SHORT), TrainingFinished)


def test_a_new_job_takes_the_place_of_one_still_running(busy_owner):
    busy_owner.process.start(ENDLESS)
    busy_owner.process.start(SHORT)
    ended = busy_owner.wait()
    while ended is None:
        ended = busy_owner.wait()
    assert isinstance(ended, TrainingFinished)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"min_examples": 100}, WithdrawalReason.TOO_FEW_EXAMPLES),
        ({"learning_rate": 1e38, "num_epochs": 50}, WithdrawalReason.NON_FINITE_UPDATE),
    ],
)
def test_what_the_trainer_refuses_is_reported_with_its_reason_and_the_child_lives(owner, plan, reason):
    ended = owner.run(_job(**plan))
    assert isinstance(ended, TrainingFailed)
    assert ended.reason is reason
    assert isinstance(owner.run(_job()), TrainingFinished)


def test_examples_that_are_gone_fail_the_job_and_not_the_child(tmp_path):
    owner = Owner(tmp_path / "nowhere")
    ended = owner.run(_job())
    assert ended.reason is WithdrawalReason.TRAINING_FAILED
    assert "nowhere" in ended.detail
    owner.process.close()


def test_a_file_that_is_no_model_is_refused_by_litert(data):
    owner = Owner(data, trainer="litert")
    ended = owner.run(_job())
    assert isinstance(ended, TrainingFailed)
    assert "ContractViolation" in ended.detail
    owner.process.close()


def test_memory_beyond_the_limit_fails_the_job_and_not_the_daemon(tmp_path):
    many = 200_000
    write_examples(tmp_path / "data", x=np.zeros((many, 400), np.uint8), y=np.zeros(many, np.int32))
    weights = linear_weights(input_shape=(400,), num_classes=3)
    job = dataclasses.replace(
        _job(input_shape=(400,), weights=weights, batch_size=65536),
        checkpoint=tuple(np.zeros(spec.shape, np.float32) for spec in weights),
    )
    owner = Owner(tmp_path / "data", memory_limit_mb=300)
    ended = owner.run(job)
    assert isinstance(ended, TrainingFailed)
    owner.process.close()


def test_the_child_dies_with_its_parent_in_the_middle_of_a_job(many_data):
    program = f"""
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("tests_of_the_trainer", {__file__!r})
module = importlib.util.module_from_spec(spec)
sys.modules["tests_of_the_trainer"] = module
spec.loader.exec_module(module)
owner = module.Owner({str(many_data)!r})
owner.process.start(module.ENDLESS)
print(owner.process.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    _wait_until_training(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _wait_until_gone(child)


def test_nothing_but_frames_comes_out_of_the_child(data):
    command = TrainerOptions(data_path=str(data), trainer="linear").command(parent_pid=os.getpid())
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    job = _job()
    write_frame(child.stdin, job_frame(job))
    frame = read_frame(child.stdout, max_bytes=max_result_bytes(job.plan))
    assert read_result(frame, job).num_examples == 12
    child.stdin.close()
    assert child.stdout.read() == b""
    assert child.wait(PATIENCE_S) == 0
    child.stdout.close()


def test_what_libraries_print_goes_to_standard_error():
    program = """
import os
from edge_client.trainer_child import _claim_pipes
jobs, results = _claim_pipes()
print("noise", flush=True)
os.write(1, b"more noise")
results.write(b"frame:" + jobs.read())
results.flush()
"""
    done = subprocess.run([sys.executable, "-c", program], input=b"job", capture_output=True, check=True)
    assert done.stdout == b"frame:job"
    assert b"more noise" in done.stderr


def test_jobs_and_results_survive_the_pipe():
    job = _job()
    assert read_job(job_frame(job)).plan == job.plan
    result = LinearTrainer().train(job, ArrayExamples(x=X, y=Y))
    back = read_result(result_frame(job, result), job)
    assert back.metrics == result.metrics
    assert back.duration_s == result.duration_s


def test_frames_that_lie_are_refused(tmp_path):
    job = _job()
    result = LinearTrainer().train(job, ArrayExamples(x=X, y=Y))
    other = dataclasses.replace(job, round_id=8)
    evaluation = dataclasses.replace(job, kind=RoundKind.EVALUATE)
    for wrong in (other, evaluation):
        with pytest.raises(FrameError):
            read_result(result_frame(job, result), wrong)
    path = tmp_path / "frames"
    with path.open("wb") as stream:
        write_frame(stream, FailureFrame(round_id=1, reason=WithdrawalReason.TRAINING_FAILED, detail="x" * 100))
    whole = path.read_bytes()
    for damaged in (whole[:5], whole[:-1], whole[:8] + b"\xc1" * (len(whole) - 8), b"\xff" * 100):
        path.write_bytes(damaged)
        with path.open("rb") as stream, pytest.raises(FrameError):
            read_frame(stream, max_bytes=1000)
    path.write_bytes(b"")
    with path.open("rb") as stream:
        assert read_frame(stream, max_bytes=1000) is None
