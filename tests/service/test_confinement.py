"""LiteRT and the whole daemon work under the unit's confinement: no system call beyond it, no writable code.

`scripts/confine` puts the unit's filters into force without systemd; ``--strict`` kills at the first call outside them.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge_client.example_store import write_examples

pytestmark = pytest.mark.broker

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "flockwise-edge.service"
# OpenBLAS tries to place memory on NUMA nodes, is refused, and does without.
TOLERATED = ("--tolerate", "mbind")
NUM_THREADS = 4


@pytest.fixture
def confined(systemd_analyze, tmp_path):
    """Starts a Python program or module under the unit's confinement."""
    del systemd_analyze

    def start(*words, strict=False, **options):
        command = [sys.executable, str(ROOT / "scripts" / "confine"), str(UNIT), "--writable", str(tmp_path)]
        command += ["--strict", *TOLERATED] if strict else []
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | options.pop("env", {})
        return subprocess.Popen(
            [*command, "--", sys.executable, *words],
            env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip

    return start


def _refused(action):
    program = f"import ctypes, mmap, os, socket\ntry:\n    {action}\nexcept OSError as error:\n    print(error.errno)\n"
    return ["-c", program]


@pytest.mark.parametrize(
    ("action", "errno"),
    [
        ("mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)", 1),
        ("socket.socket(16, socket.SOCK_RAW)", 97),  # AF_NETLINK
        ("os.setuid(12345)", 1),
        ("os.sched_setaffinity(0, {0})", 1),
    ],
)
def test_the_confinement_itself_bites(confined, action, errno):
    out, err = confined(*_refused(action)).communicate(timeout=60)
    assert out.strip() == str(errno), err


def test_a_strict_confinement_kills_at_a_call_outside_the_filter(confined):
    process = confined(*_refused("os.setuid(12345)"), strict=True)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGSYS


def test_what_the_eligibility_probes_read_can_be_read(confined):
    names = ["/proc/meminfo", "/proc/loadavg", "/proc/stat", "/proc/self/status", "/proc/net/route", "/proc/net/dev"]
    names += [str(path) for path in Path("/proc/pressure").glob("*")]
    program = f"import json\nfor name in {names}: open(name).read()\nimport os; os.listdir('/sys/class'); print('read')"
    out, err = confined("-c", program, strict=True).communicate(timeout=60)
    assert out == "read\n", err


def test_a_real_daemon_trains_with_litert_under_the_units_confinement(
    confined, embedded_url, scripted_coordinator, manager, tmp_path
):
    coordinator = scripted_coordinator(embedded_url, "confined")
    rng = np.random.default_rng(0)
    write_examples(tmp_path / "data", x=rng.random((200, 64), dtype=np.float32), y=rng.integers(0, 10, 200))
    (tmp_path / "edge.toml").write_text(
        f'[device]\nid = "d1"\npopulation = "confined"\nstate_dir = "state"\n[broker]\nurl = "{embedded_url}"\n'
        f'[data]\npath = "data"\n[training]\nnum_threads = {NUM_THREADS}\nmemory_limit_mb = 2000\n'
    )
    command = ["-c", "from flockwise.cli import main; main()", "edge", "run", "--config", "edge.toml", "--json"]
    process = confined(*command, strict=True, env={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "3000000"})
    try:
        assert manager.read("READY=1"), process.communicate(timeout=10)
        assert coordinator.accepted.wait(60), process.poll()
        daemon = psutil.Process(process.pid)
        everyone = [daemon, *daemon.children(recursive=True)]
        num_tasks = sum(one.num_threads() for one in everyone)
        resident_mb = sum(one.memory_info().rss for one in everyone) >> 20
        assert manager.read("WATCHDOG=1")
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, out + err
    applied = json.loads(next(line for line in err.splitlines() if "applied" in line))["applied"]
    assert {"MemoryDenyWriteExecute", "SystemCallFilter", "RestrictAddressFamilies", "NoNewPrivileges"} <= set(applied)
    assert len(everyone) == 2, "the trainer's child was not there to be counted"
    limits = dict(re.findall(r"^(TasksMax|MemoryHigh)=(\d+)M?$", UNIT.read_text(), re.MULTILINE))
    assert num_tasks <= int(limits["TasksMax"]) // 2
    assert resident_mb <= int(limits["MemoryHigh"]) // 2
