"""The daemon's side of the trainer: starts the child, gives it jobs, and outlives whatever happens to it.

The child is started by the first job, kept for the next rounds (imports take seconds on a Pi), and ended when no job
has come for a while, so that an idle daemon is light. Nothing here blocks: a thread of its own feeds and reads it.
"""

import dataclasses
import math
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from typing import IO, Final

from edge_client.errors import FrameError
from edge_client.events import TrainingFailed, TrainingFinished
from edge_client.trainer_frames import (
    FailureFrame,
    Frame,
    ResultFrame,
    job_frame,
    max_result_bytes,
    read_frame,
    read_result,
    write_frame,
)
from edge_client.trainer_options import TrainerOptions
from edge_client.training import TrainingJob
from wire_protocol.messages import WithdrawalReason

__all__ = ["TrainerProcess"]

_GOODBYE_S: Final = 2.0
_NOT_STARTED: Final = "the trainer cannot be started"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """What the thread of one job brought back."""

    job: TrainingJob
    frame: Frame | None
    """None if the child ended instead of answering."""
    problem: str = ""


class TrainerProcess:
    """Runs one job at a time in a child process.

    Must be used from one thread, which must live as long as the child: Linux tells a child that its parent has died
    when the *thread* that started it ends.

    Args:
        options: How the child is to run.
        time_limit_s: A job that takes longer is killed.
        idle_stop_s: A child without a job is ended after this.
        wake: Called, from another thread, when ``poll`` has something to give.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self,
        *,
        options: TrainerOptions,
        time_limit_s: float,
        idle_stop_s: float,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._time_limit_s = time_limit_s
        self._idle_stop_s = idle_stop_s
        self._wake = wake
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._job: TrainingJob | None = None
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._act_at = math.inf
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, if there is a child."""
        return self._child.pid if self._child is not None else None

    @property
    def is_busy(self) -> bool:
        """Whether a job is running."""
        return self._job is not None

    @property
    def is_answerable(self) -> bool:
        """Whether a running job can still end by itself: the thread that waits for it lives, or has answered."""
        is_waiting = self._thread is not None and self._thread.is_alive()
        return self._job is None or is_waiting or not self._answers.empty()

    def next_wakeup(self) -> float:
        """When ``poll`` must be called at the latest, on ``clock``; infinity if only ``wake`` will say."""
        return self._act_at

    def start(self, job: TrainingJob) -> None:
        """Gives the child a job; ``poll`` brings its end. A job still running is stopped first."""
        if self._job is not None:
            self.stop()
        if self._child is not None and self._child.poll() is not None:
            self._kill()
        self._job = job
        self._act_at = self._clock() + self._time_limit_s
        try:
            child = self._child = self._child or self._spawn()
        except OSError as error:
            self._answers.put(_Answer(job=job, frame=None, problem=f"{_NOT_STARTED}: {error}"))
            self._wake()
            return
        self._thread = threading.Thread(target=self._exchange, args=(child, job), name="trainer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Kills the running job; ``poll`` will say nothing about it."""
        if self._job is not None:
            self._job = None
            self._kill()

    def poll(self) -> TrainingFinished | TrainingFailed | None:
        """How the running job ended, if it has. Also enforces the time limit and ends an idle child."""
        while not self._answers.empty():
            answer = self._answers.get()
            if answer.job is self._job:
                self._job = None
                self._act_at = self._clock() + self._idle_stop_s
                return self._conclude(answer)
        if self._clock() < self._act_at:
            return None
        job, self._job = self._job, None
        if job is None:
            self.close()
            return None
        self._kill()
        return _died(job, f"the job took longer than {self._time_limit_s:g} s and was killed")

    def close(self) -> None:
        """Ends the child: at once if it is busy, otherwise the end of its input tells it to leave."""
        self.stop()
        child = self._child
        if child is not None and child.stdin is not None and child.poll() is None:
            try:
                child.stdin.close()
                child.wait(_GOODBYE_S)
            except (OSError, subprocess.TimeoutExpired):
                child.kill()
            if child.stdout is not None:
                child.stdout.close()
        self._kill()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        threads = str(self._options.num_threads)
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        command = self._options.command(parent_pid=os.getpid())
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def _exchange(self, child: "subprocess.Popen[bytes]", job: TrainingJob) -> None:
        """One job, in a thread of its own: writing a model and waiting for the result both take their time."""
        frame, problem = None, ""
        try:
            frame = _ask(child.stdin, child.stdout, job)
        except (OSError, ValueError, FrameError) as error:
            problem = f"{type(error).__name__}: {error}"
        self._answers.put(_Answer(job=job, frame=frame, problem=problem))
        self._wake()

    def _conclude(self, answer: _Answer) -> TrainingFinished | TrainingFailed:
        match answer.frame:
            case FailureFrame() as failure:
                return TrainingFailed(round_id=answer.job.round_id, reason=failure.reason, detail=failure.detail)
            case ResultFrame() as frame:
                try:
                    result = read_result(frame, answer.job)
                except FrameError as error:
                    self._kill()
                    return _failed(answer.job, str(error))
                return TrainingFinished(round_id=answer.job.round_id, result=result)
            case _:
                code = self._kill()
                if answer.problem.startswith(_NOT_STARTED):
                    return _failed(answer.job, answer.problem)
                return _died(answer.job, f"the trainer died (exit code {code}) {answer.problem}".strip())

    def _kill(self) -> int | None:
        """Ends the child at once, if there is one, and returns its exit code."""
        child, self._child = self._child, None
        self._act_at = math.inf
        if child is None:
            return None
        # The thread of a running job sees the end of the pipes by itself; closing them under it would be a race.
        child.kill()
        return child.wait()


def _ask(to_child: IO[bytes] | None, from_child: IO[bytes] | None, job: TrainingJob) -> Frame | None:
    if to_child is None or from_child is None:
        raise FrameError("the trainer has no pipes")
    write_frame(to_child, job_frame(job))  # type: ignore[arg-type]  # IO[bytes] of Popen is a BinaryIO
    return read_frame(from_child, max_bytes=max_result_bytes(job.plan))  # type: ignore[arg-type]  # the same


def _failed(job: TrainingJob, detail: str) -> TrainingFailed:
    return TrainingFailed(round_id=job.round_id, reason=WithdrawalReason.TRAINING_FAILED, detail=detail)


def _died(job: TrainingJob, detail: str) -> TrainingFailed:
    return dataclasses.replace(_failed(job, detail), trainer_died=True)
