"""The trainer's process: reads jobs on standard input, writes results on standard output, dies with its parent.

Training may crash, hang or use up the memory; here that costs a process, not the daemon. Run by `trainer_process`
as ``python -m edge_client.trainer_child``.
"""

import contextlib
import ctypes
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import BinaryIO, Final

from broker_link.failpoints import hit
from edge_client.errors import EdgeClientError, FrameError
from edge_client.example_store import open_examples
from edge_client.run_job import run_job
from edge_client.trainer_frames import (
    MAX_JOB_BYTES,
    FailureFrame,
    JobFrame,
    ResultFrame,
    read_frame,
    read_job,
    result_frame,
    write_frame,
)
from edge_client.trainer_options import TrainerOptions
from edge_client.training import Trainer, withdrawal_reason
from wire_protocol.messages import WithdrawalReason

__all__ = ["main"]

_PR_SET_PDEATHSIG: Final = 1
_NICENESS: Final = 10
_OOM_SCORE: Final = "500"
_DETAIL_CHARS: Final = 1000


def main() -> None:
    """Serves jobs until standard input ends."""
    options, parent_pid = TrainerOptions.parse(sys.argv[1:])
    _die_with(parent_pid)
    _lower_priority()
    _limit_memory(options.memory_limit_mb)
    jobs, results = _claim_pipes()
    trainer = _make_trainer(options)
    inbox: queue.SimpleQueue[JobFrame] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs, inbox), name="jobs", daemon=True).start()
    while True:
        write_frame(results, _run(inbox.get(), trainer, options))


def _run(frame: JobFrame, trainer: Trainer, options: TrainerOptions) -> ResultFrame | FailureFrame:
    try:
        job = read_job(frame)
        examples = open_examples(Path(options.data_path))
        hit("device.trainer.before_train")
        result = run_job(trainer, job, examples)
        hit("device.trainer.after_train")
        return result_frame(job, result)
    except (EdgeClientError, MemoryError, ImportError) as error:
        detail = f"{type(error).__name__}: {error}"[:_DETAIL_CHARS]
        return FailureFrame(round_id=frame.round_id, reason=withdrawal_reason(error), detail=detail)
    except Exception as error:  # noqa: BLE001 - whatever it was, the parent must hear of it and the next job may do
        detail = f"unexpected {type(error).__name__}: {error}"[:_DETAIL_CHARS]
        return FailureFrame(round_id=frame.round_id, reason=WithdrawalReason.TRAINING_FAILED, detail=detail)


def _make_trainer(options: TrainerOptions) -> Trainer:
    if options.trainer == "linear":
        from edge_client.linear_trainer import LinearTrainer

        return LinearTrainer()
    from edge_client.litert_trainer import LiteRtTrainer

    return LiteRtTrainer(num_threads=options.num_threads)


def _read_jobs(stream: BinaryIO, inbox: "queue.SimpleQueue[JobFrame]") -> None:
    """Reads ahead, so that the end of the stream ends the process in the middle of a job too."""
    with contextlib.suppress(FrameError, OSError):
        while (frame := read_frame(stream, max_bytes=MAX_JOB_BYTES)) is not None:
            if isinstance(frame, JobFrame):
                inbox.put(frame)
    os._exit(0)


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Takes standard input and output for frames; what any library prints goes to standard error instead."""
    jobs = os.fdopen(os.dup(0), "rb")
    results = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return jobs, results


def _die_with(parent_pid: int) -> None:
    """Asks the kernel for a kill when the parent dies; elsewhere the end of standard input does the same, later."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        # It died before we asked.
        os._exit(0)


def _lower_priority() -> None:
    """The owner's work comes first; and if memory runs out, it is this process that goes."""
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def _limit_memory(limit_mb: int) -> None:
    if limit_mb > 0:
        import resource

        limit_bytes = limit_mb * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


if __name__ == "__main__":
    main()
