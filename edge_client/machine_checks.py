"""What `doctor` checks about the machine: interpreter, libraries, memory, processors, clock."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

from edge_client.config import EdgeConfig
from edge_client.doctor import Check, CheckStatus, Finding
from wire_protocol.messages import WIRE_VERSION
from wire_protocol.model_contract import CONTRACT_VERSION

__all__ = ["MACHINE_CHECKS"]

_OLDEST_PYTHON: Final = (3, 11)
_NEWEST_PYTHON: Final = (3, 14)
_OLDEST_NUMPY: Final = (1, 25)
_MACHINES: Final = {"x86_64", "amd64", "aarch64", "arm64"}
_LITERT_TIMEOUT_S: Final = 120.0
_LITERT_PROBE: Final = "from ai_edge_litert.interpreter import Interpreter"
_MIN_FREE_MB: Final = 100
_GOOD_FREE_MB: Final = 250


def check_python(config: EdgeConfig) -> Finding:
    """The interpreter's version."""
    del config
    version = sys.version_info[:2]
    detail = f"Python {platform.python_version()}"
    if version < _OLDEST_PYTHON:
        return Finding(name="python", status=CheckStatus.FAIL, detail=detail, remedy="install Python 3.11 or later")
    if version > _NEWEST_PYTHON:
        remedy = "untested; if something fails, use Python 3.11 to 3.14"
        return Finding(name="python", status=CheckStatus.WARN, detail=detail, remedy=remedy)
    return Finding(name="python", status=CheckStatus.OK, detail=detail)


def check_machine(config: EdgeConfig) -> Finding:
    """Processor architecture: LiteRT has wheels for 64-bit machines alone."""
    del config
    detail = f"{platform.system()} {platform.machine()}"
    if platform.machine().lower() in _MACHINES and sys.maxsize > 2**32:
        return Finding(name="machine", status=CheckStatus.OK, detail=detail)
    remedy = "LiteRT needs a 64-bit system (x86_64 or aarch64): on a Raspberry Pi install the 64-bit OS"
    return Finding(name="machine", status=CheckStatus.FAIL, detail=detail, remedy=remedy)


def check_numpy(config: EdgeConfig) -> Finding:
    """The version of numpy."""
    del config
    version = tuple(int(part) for part in np.__version__.split(".")[:2])
    detail = f"numpy {np.__version__}"
    if version >= _OLDEST_NUMPY:
        return Finding(name="numpy", status=CheckStatus.OK, detail=detail)
    return Finding(name="numpy", status=CheckStatus.FAIL, detail=detail, remedy="pip install 'numpy>=1.25,<3'")


def check_litert(config: EdgeConfig) -> Finding:
    """Whether LiteRT can be imported, in a process of its own: a wheel of the wrong kind crashes rather than raises."""
    severity = CheckStatus.FAIL if config.training.trainer == "litert" else CheckStatus.WARN
    remedy = "pip install --force-reinstall ai-edge-litert, in the environment of this command"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LITERT_PROBE], capture_output=True, timeout=_LITERT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name="litert", status=severity, detail=str(error), remedy=remedy)
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return Finding(name="litert", status=severity, detail=last[0][:300], remedy=remedy)
    version = importlib.metadata.version("ai-edge-litert")
    return Finding(name="litert", status=CheckStatus.OK, detail=f"ai-edge-litert {version} can be imported")


def check_memory(config: EdgeConfig) -> Finding:
    """Memory that is free for training."""
    del config
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        free_mb = int(fields["MemAvailable"].split()[0]) // 1024
    except (OSError, KeyError, ValueError):
        detail = "this system does not say how much memory is free"
        return Finding(name="memory", status=CheckStatus.WARN, detail=detail, remedy="make sure that 250 MB are free")
    detail = f"{free_mb} MB available"
    if free_mb >= _GOOD_FREE_MB:
        return Finding(name="memory", status=CheckStatus.OK, detail=detail)
    status = CheckStatus.FAIL if free_mb < _MIN_FREE_MB else CheckStatus.WARN
    remedy = "stop other programs, or add swap: a small CNN trains in about 120 MB"
    return Finding(name="memory", status=status, detail=detail, remedy=remedy)


def check_processors(config: EdgeConfig) -> Finding:
    """Whether there are processors for the configured threads."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    detail = f"{available} processors for {config.training.num_threads} threads"
    if config.training.num_threads <= available:
        return Finding(name="processors", status=CheckStatus.OK, detail=detail)
    remedy = f"set training.num_threads to at most {available}; more threads than processors train more slowly"
    return Finding(name="processors", status=CheckStatus.WARN, detail=detail, remedy=remedy)


def check_clock(config: EdgeConfig) -> Finding:
    """Whether the clock can be right: it is not earlier than the installation of this very file."""
    del config
    detail = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.time() >= Path(__file__).stat().st_mtime - 86400:
        return Finding(name="clock", status=CheckStatus.OK, detail=detail)
    remedy = "the clock is behind: set up NTP (timedatectl set-ntp true); TLS certificates will be refused until then"
    return Finding(name="clock", status=CheckStatus.FAIL, detail=detail, remedy=remedy)


def check_contract(config: EdgeConfig) -> Finding:
    """Which versions of wire protocol and model contract this client speaks; a coordinator refuses others."""
    del config
    detail = f"wire protocol {WIRE_VERSION}, model contract {CONTRACT_VERSION}"
    return Finding(name="contract", status=CheckStatus.OK, detail=detail)


MACHINE_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("python", check_python),
    ("machine", check_machine),
    ("numpy", check_numpy),
    ("litert", check_litert),
    ("memory", check_memory),
    ("processors", check_processors),
    ("clock", check_clock),
    ("contract", check_contract),
)
"""Name and function of each check, in the order in which they are made."""
