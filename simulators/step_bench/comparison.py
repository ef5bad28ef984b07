"""Runs the rivals in processes of their own, a few steps at a time in random order, and compares them turn by turn.

On a shared machine single timings say little: each turn's median is divided by the yardstick's of the same turn, and
the median of these ratios is given with its quartiles. CPU time per step hardly depends on the neighbours.
"""

import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

__all__ = ["GemmPeak", "RivalResult", "compare", "gemm_peak", "rival_commands"]

YARDSTICK: Final = "LiteRT, exported file"
_HERE: Final = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class RivalResult:
    """One rival at one number of threads."""

    rival: str
    num_threads: int
    min_ms: float
    median_ms: float
    cpu_ms: float
    """Least CPU time per step of any turn."""
    ratio: float
    """Median over the turns of (exported file's median step / this rival's): below 1, the file is faster."""
    ratio_quartiles: tuple[float, float]
    cpu_ratio: float
    """The exported file's ``cpu_ms`` over this rival's."""
    peak_rss_mb: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmPeak:
    """numpy's float32 matrix products at the step's direct shapes: a limit for lowerings without Winograd."""

    num_threads: int
    gflops: float
    direct_step_ms: float
    """Time of the products of a step without Winograd at that rate."""


def rival_commands(
    files: Mapping[str, Path], *, num_threads: int, batch_size: int, dropout: float, torch_python: str | None
) -> dict[str, list[str]]:
    """Command lines of the rivals, the exported file first."""
    modules = "simulators.step_bench"
    shape = [str(batch_size), str(dropout)]
    commands = {
        YARDSTICK: [sys.executable, "-m", f"{modules}.lite_worker", "litert", str(files["exported"]), str(num_threads)],
        "TensorFlow graph": [sys.executable, "-m", f"{modules}.keras_worker", str(num_threads), *shape],
    }
    if "clipped" in files:
        clipped = [sys.executable, "-m", f"{modules}.lite_worker", "litert", str(files["clipped"]), str(num_threads)]
        commands["LiteRT, each example clipped"] = clipped
    if "flex" in files:
        flex = [sys.executable, "-m", f"{modules}.lite_worker", "flex", str(files["flex"]), str(num_threads)]
        commands["Flex file in TensorFlow's interpreter"] = flex
    if torch_python:
        for layout in ("NCHW", "NHWC"):
            worker = str(_HERE / "torch_worker.py")
            commands[f"PyTorch, {layout}"] = [torch_python, worker, str(num_threads), *shape, layout]
    return commands


def compare(
    commands: Mapping[str, Sequence[str]], *, num_threads: int, turns: int, steps: int, is_alone: bool = False
) -> list[RivalResult]:
    """Measures; ends every process it started.

    Args:
        commands: Of the rivals.
        num_threads: That each may use.
        turns: Of each rival.
        steps: Per turn.
        is_alone: Whether a rival whose turn it is has the processors to itself: other processes then stand still.

    Raises:
        RuntimeError: A rival ended before it answered; names it.
        PermissionError: ``is_alone`` needs the right to real-time priority.
    """
    limits = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
    workers = {
        name: subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=limits
        )
        for name, command in commands.items()
    }
    try:
        for name, worker in workers.items():
            _answer(name, worker)
            if is_alone:
                _give_real_time_priority(worker.pid)
        answers: dict[str, list[Any]] = {name: [] for name in workers}
        for _ in range(turns):
            for name in random.sample(list(workers), len(workers)):
                stdin = workers[name].stdin
                if stdin is None:
                    raise RuntimeError(f"{name} has no standard input")
                stdin.write(f"{steps}\n")
                stdin.flush()
                answers[name].append(_answer(name, workers[name]))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return [_result(name, num_threads, answers) for name in workers]


def _give_real_time_priority(pid: int) -> None:
    """To all threads of a process that waits for its turn."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setscheduler(int(thread.name), os.SCHED_RR, os.sched_param(1))


def _answer(name: str, worker: "subprocess.Popen[str]") -> Any:
    """The next line that is one of ours; libraries print too."""
    for line in worker.stdout or ():
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"{name} ended before it answered; run it by hand: {worker.args!r}")


def _result(name: str, num_threads: int, answers: Mapping[str, list[Any]]) -> RivalResult:
    medians = {rival: [statistics.median(turn["walls_ms"]) for turn in turns] for rival, turns in answers.items()}
    ratios = [ours / theirs for ours, theirs in zip(medians[YARDSTICK], medians[name], strict=True)]
    cpu = {rival: min(turn["cpu_ms"] for turn in turns) for rival, turns in answers.items()}
    walls = [wall for turn in answers[name] for wall in turn["walls_ms"]]
    low, high = (float(np.quantile(ratios, share)) for share in (0.25, 0.75))
    return RivalResult(
        rival=name,
        num_threads=num_threads,
        min_ms=min(walls),
        median_ms=statistics.median(walls),
        cpu_ms=cpu[name],
        ratio=statistics.median(ratios),
        ratio_quartiles=(low, high),
        cpu_ratio=cpu[YARDSTICK] / cpu[name],
        peak_rss_mb=max(turn["rss_mb"] for turn in answers[name]),
    )


# (rows, inner, columns) per product of one image's step of mnist_cnn, and how often per batch of 32 it is done at once.
_PRODUCTS: Final = (
    *[(676 * 32, 9, 32), (9, 676 * 32, 32)],
    *[(576 * 32, 288, 64), (576 * 32, 64, 288), (288, 576 * 32, 64)],
    *[(32, 9216, 128), (32, 128, 9216), (9216, 32, 128)],
)


def gemm_peak(*, num_threads: int, repeats: int = 15, is_alone: bool = False) -> GemmPeak:
    """Measures in a process whose BLAS may use ``num_threads``; the best of ``repeats``; ``is_alone`` as in ``compare``."""
    priority = "import os; os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)); " if is_alone else ""
    code = f"{priority}from simulators.step_bench.comparison import _gemm; print(_gemm({repeats}))"
    limits = {**os.environ, "OPENBLAS_NUM_THREADS": str(num_threads), "OMP_NUM_THREADS": str(num_threads)}
    done = subprocess.run([sys.executable, "-c", code], env=limits, check=True, capture_output=True, text=True)
    seconds = float(done.stdout.split()[-1])
    flop = sum(2 * rows * inner * columns for rows, inner, columns in _PRODUCTS)
    return GemmPeak(num_threads=num_threads, gflops=flop / seconds / 1e9, direct_step_ms=1e3 * seconds)


def _gemm(repeats: int) -> float:
    """Seconds of all products, each at its fastest."""
    rng = np.random.default_rng(0)
    total = 0.0
    for rows, inner, columns in _PRODUCTS:
        left, right = rng.random((rows, inner), np.float32), rng.random((inner, columns), np.float32)
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - began)
        total += min(times)
    return total
