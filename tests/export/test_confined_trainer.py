"""A convolutional model trains in the trainer's child under the device unit's confinement, on four threads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import threading
from pathlib import Path
import numpy as np
from edge_client.example_store import write_examples
from edge_client.trainer_options import TrainerOptions
from edge_client.trainer_process import TrainerProcess
from edge_client.training import TrainingJob
from wire_protocol.messages import RoundKind
from wire_protocol.plan import decode_plan
from wire_protocol.tensors import decode_tensors

plan = decode_plan(Path("plan").read_bytes())
rng = np.random.default_rng(0)
write_examples(Path("data"), x=rng.random((32, *plan.input_shape), dtype=np.float32), y=rng.integers(0, 10, 32))
checkpoint = decode_tensors(Path("checkpoint").read_bytes(), plan.weights)
job = TrainingJob(kind=RoundKind.TRAIN, plan=plan, model=Path("model").read_bytes(), checkpoint=checkpoint, round_id=1,
                  device_id="d1")
woken = threading.Event()
options = TrainerOptions(data_path="data", num_threads=4)
process = TrainerProcess(options=options, time_limit_s=60, idle_stop_s=60, wake=woken.set)
process.start(job)
assert woken.wait(60)
print(type(process.poll()).__name__)
process.close()
"""


def test_a_cnn_trains_without_a_system_call_beyond_the_unit_and_without_writable_code(mnist_export, tmp_path):
    if shutil.which("systemd-analyze") is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze must be installed in CI: .ci/run installs it")
        pytest.skip("systemd-analyze is not installed; 'apt install systemd' brings it")
    bundle = mnist_export.bundle
    for name, data in (("plan", bundle.plan), ("model", bundle.model), ("checkpoint", bundle.checkpoint)):
        (tmp_path / name).write_bytes(data)
    confine = [sys.executable, str(ROOT / "scripts" / "confine"), str(ROOT / "deploy" / "flockwise-edge.service")]
    done = subprocess.run(
        [*confine, "--strict", "--tolerate", "mbind", "--writable", str(tmp_path), "--", sys.executable, "-c", PROGRAM],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "TrainingFinished\n"
    assert "MemoryDenyWriteExecute" in done.stderr
