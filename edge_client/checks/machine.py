"""What `doctor` checks about the machine's software: interpreter, libraries, processors, limits, randomness."""

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from typing import Final

import numpy as np

from edge_client.doctor import Check, CheckStatus, Finding, Subject, fail, ok, warn
from edge_client.eligibility.machine import Unknown
from wire_protocol.messages import WIRE_VERSION
from wire_protocol.model_contract import CONTRACT_VERSION

__all__ = ["MACHINE_CHECKS"]

_OLDEST_PYTHON: Final = (3, 11)
_NEWEST_PYTHON: Final = (3, 14)
_OLDEST_NUMPY: Final = (1, 25)
_MACHINES: Final = {"x86_64", "amd64", "aarch64", "arm64"}
_OLDEST_GLIBC: Final = (2, 27)
"""What the LiteRT and numpy wheels ask for (manylinux_2_27)."""
_LITERT_TIMEOUT_S: Final = 120.0
_LITERT_PROBE: Final = "from ai_edge_litert.interpreter import Interpreter"
_MIN_OPEN_FILES: Final = 128
_MIN_ADDRESS_SPACE: Final = 256 * 1024 * 1024
_MIN_ENTROPY_BITS: Final = 128
_GRND_NONBLOCK: Final = 1


def check_python(subject: Subject) -> Finding:
    """The interpreter's version."""
    del subject
    version = sys.version_info[:2]
    detail = f"Python {platform.python_version()}"
    if version < _OLDEST_PYTHON:
        return fail(detail, "install Python 3.11 or later")
    if version > _NEWEST_PYTHON:
        return warn(detail, "untested; if something fails, use Python 3.11 to 3.14")
    return ok(detail)


def check_architecture(subject: Subject) -> Finding:
    """Processor architecture: LiteRT has wheels for 64-bit machines alone. A 64-bit kernel may carry 32-bit programs."""
    del subject
    bits = 64 if sys.maxsize > 2**32 else 32
    detail = f"{platform.system()} {platform.machine()}, {bits}-bit Python"
    if platform.machine().lower() in _MACHINES and bits == 64:  # noqa: PLR2004
        return ok(detail)
    return fail(detail, "LiteRT needs a 64-bit system (x86_64 or aarch64): on a Raspberry Pi install the 64-bit OS")


def check_libc(subject: Subject) -> Finding:
    """The C library: wheels are built for glibc of a certain age."""
    del subject
    name, version = platform.libc_ver()
    if name != "glibc":
        return warn(
            f"C library: {name or 'unknown'}", "wheels are built for glibc: use Debian, Raspberry Pi OS, Ubuntu"
        )
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_GLIBC:
        return fail(f"glibc {version}", "use a system of 2019 or later, with glibc 2.27")
    return ok(f"glibc {version}")


def check_numpy(subject: Subject) -> Finding:
    """The version of numpy."""
    del subject
    version = tuple(int(part) for part in np.__version__.split(".")[:2])
    detail = f"numpy {np.__version__}"
    return ok(detail) if version >= _OLDEST_NUMPY else fail(detail, "pip install 'numpy>=1.25,<3'")


def check_litert(subject: Subject) -> Finding:
    """Whether LiteRT can be imported, in a process of its own: a wheel of the wrong kind crashes rather than raises."""
    severity = CheckStatus.FAIL if subject.config.training.trainer == "litert" else CheckStatus.WARN
    remedy = "pip install --force-reinstall ai-edge-litert, in the environment of this command"
    command = [sys.executable, "-c", _LITERT_PROBE]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_LITERT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(status=severity, detail=str(error), remedy=remedy)
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return Finding(status=severity, detail=last[0], remedy=remedy)
    return ok(f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')} can be imported")


def check_processors(subject: Subject) -> Finding:
    """Whether there are processors for the configured threads."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_threads = subject.config.training.num_threads
    detail = f"{available} processors for {num_threads} threads"
    if num_threads <= available:
        return ok(detail)
    return warn(detail, f"set training.num_threads to at most {available}; more threads train more slowly")


def check_limits(subject: Subject) -> Finding:
    """Whether this process's limits (``ulimit``) leave room for the daemon and its trainer."""
    del subject
    small = []
    if 0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] < _MIN_OPEN_FILES:
        small.append(f"open files (ulimit -n) are limited, at least {_MIN_OPEN_FILES} are needed")
    if 0 <= resource.getrlimit(resource.RLIMIT_AS)[0] < _MIN_ADDRESS_SPACE:
        small.append("the address space (ulimit -v) is limited, at least 256 MB are needed")
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] >= 0:
        small.append("the size of files (ulimit -f) is limited: a model file may not fit")
    if small:
        return fail(
            "; ".join(small), "raise the limit in the shell, or LimitNOFILE=, LimitAS=, LimitFSIZE= in the unit"
        )
    return ok("open files, address space and file sizes are not in the way")


def check_entropy(subject: Subject) -> Finding:
    """Whether the system's random generator is seeded: keys and noise wait for it, or would be weak."""
    remedy = "wait a minute after the start; on a headless machine: apt install rng-tools5 (or jitterentropy-rngd)"
    try:
        if hasattr(os, "getrandom"):
            os.getrandom(16, _GRND_NONBLOCK)
    except BlockingIOError:
        return fail("the random generator is not seeded yet", remedy)
    text = subject.machine.read("proc/sys/kernel/random/entropy_avail")
    if not isinstance(text, Unknown) and text.isdigit() and int(text) < _MIN_ENTROPY_BITS:
        return warn(f"{text} bits of entropy", remedy)
    return ok("the random generator is seeded")


def check_contract(subject: Subject) -> Finding:
    """Which versions of wire protocol and model contract this client speaks; a coordinator refuses others."""
    del subject
    return ok(f"wire protocol {WIRE_VERSION}, model contract {CONTRACT_VERSION}")


MACHINE_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("python", check_python),
    ("architecture", check_architecture),
    ("libc", check_libc),
    ("numpy", check_numpy),
    ("litert", check_litert),
    ("contract", check_contract),
    ("processors", check_processors),
    ("limits", check_limits),
    ("entropy", check_entropy),
)
"""Name and function of each check, in the order in which they are made."""
