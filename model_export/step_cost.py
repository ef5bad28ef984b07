"""What a training step costs on this machine: time and memory of LiteRT alone, in a process of its own.

The measured process loads numpy and LiteRT, as a device's trainer does, and none of TensorFlow.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Final

import msgspec
import numpy as np

from model_export.certificate import StepCost

__all__ = ["measure_step_cost"]

_KIB: Final = 1024
_WARM_UP: Final = 3
_MOST_SECONDS: Final = 2.0
_TIMEOUT_S: Final = 120.0


def measure_step_cost(model: bytes, *, num_steps: int = 50) -> StepCost:
    """Runs a model file's training step in a fresh process.

    Args:
        model: The file.
        num_steps: Steps to time; fewer if they take longer than two seconds together.

    Raises:
        RuntimeError: The process failed; carries what it said.
    """
    places = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "model.tflite"
        path.write_bytes(model)
        command = [sys.executable, "-m", "model_export.step_cost", str(path), str(num_steps)]
        done = subprocess.run(command, env=places, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"the training step could not be measured: {done.stderr[-500:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=StepCost)


def _measure(path: str, num_steps: int) -> StepCost:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=1)
    rng = np.random.default_rng(0)
    restore = interpreter.get_signature_runner("restore")
    restore(**{
        name: np.asarray(0.05 * rng.standard_normal(detail["shape"]), np.float32)
        for name, detail in restore.get_input_details().items()
    })  # fmt: skip
    train = interpreter.get_signature_runner("train")
    inputs = {name: _example(name, detail, rng) for name, detail in train.get_input_details().items()}
    for _ in range(_WARM_UP):
        train(**inputs)
    walls: list[float] = []
    while len(walls) < num_steps and sum(walls) < 1e3 * _MOST_SECONDS:
        began = time.perf_counter()
        train(**inputs)
        walls.append(1e3 * (time.perf_counter() - began))
    # Not ru_maxrss: a child inherits its parent's across exec.
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    peak = int(status.split("VmHWM:")[1].split()[0]) * _KIB / 1e6
    return StepCost(num_steps=len(walls), median_ms=statistics.median(walls), min_ms=min(walls), peak_rss_mb=peak)


def _example(name: str, detail: Any, rng: np.random.Generator) -> Any:
    shape = tuple(detail["shape"])
    if np.issubdtype(detail["dtype"], np.integer):
        return rng.integers(0, 2, shape).astype(detail["dtype"])
    if name == "learning_rate":
        return np.full(shape, 1e-3, np.float32)
    return np.ones(shape, np.float32) if name == "example_weight" else rng.random(shape, np.float32)


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(_measure(sys.argv[1], int(sys.argv[2]))).decode() + "\n")
