"""Tries a release on its golden batch, in a process of its own: whatever the model does, it does it here.

Run as ``python -m edge_client.releases.check_child SLOT --num-threads N --memory-limit-mb M``; writes one line of JSON, a
`CheckVerdict`, to standard output. A process that dies without one is itself a verdict.
"""

import argparse
import contextlib
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edge_client.errors import DataFormatError
from edge_client.releases.golden import compare_outputs, decode_golden
from edge_client.releases.slots import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE
from wire_protocol import model_contract as contract
from wire_protocol.errors import WireError
from wire_protocol.release import ReleaseManifest, decode_manifest
from wire_protocol.release_report import MAX_DETAIL_CHARS, ReleaseCheck, ReleaseFailure

__all__ = ["CheckVerdict", "main"]

_TIMED_RUNS: Final = 5
_MEGABYTE: Final = 1 << 20


class CheckVerdict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a release did."""

    failure: ReleaseFailure | None = None
    detail: str = ""
    check: ReleaseCheck | None = None


def main() -> None:
    """Checks one slot."""
    parser = argparse.ArgumentParser(prog="edge_client.releases.check_child")
    parser.add_argument("slot", type=Path)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--memory-limit-mb", type=int, default=0)
    options = parser.parse_args()
    with contextlib.suppress(OSError):
        os.nice(10)
    # What a library prints must not be taken for the verdict.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if options.memory_limit_mb:
        limit = options.memory_limit_mb * _MEGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answer.write(msgspec.json.encode(_verdict(options.slot, options.num_threads)))
    answer.close()


def _verdict(slot: Path, num_threads: int) -> CheckVerdict:
    try:
        manifest = decode_manifest((slot / MANIFEST_FILE).read_bytes())
        examples = decode_golden((slot / GOLDEN_FILE).read_bytes(), manifest)
        before_mb = _peak_memory_mb()
        outputs, latency_ms = _run((slot / MODEL_FILE), manifest, examples.inputs, num_threads)
    except MemoryError as error:
        return _failed(ReleaseFailure.TOO_LARGE, error)
    except (OSError, WireError, DataFormatError, ValueError, RuntimeError, TypeError, KeyError) as error:
        return _failed(ReleaseFailure.DAMAGED, error)
    max_abs_error, agreement, failure = compare_outputs(outputs, examples, manifest.golden)
    check = ReleaseCheck(
        latency_ms=latency_ms,
        max_abs_error=max_abs_error,
        agreement=agreement,
        peak_memory_mb=max(0.0, _peak_memory_mb() - before_mb),
    )
    golden = manifest.golden
    if failure is None and latency_ms > golden.max_latency_ms:
        failure = ReleaseFailure.SLOW
    detail = (
        f"error {max_abs_error:.3g} (allowed {golden.max_abs_error:g}), agreement {agreement:.3f}, {latency_ms:.2f} ms"
    )
    return CheckVerdict(failure=failure, detail="" if failure is None else detail, check=check)


def _run(
    path: Path, manifest: ReleaseManifest, inputs: npt.NDArray[Any], num_threads: int
) -> tuple[npt.NDArray[Any], float]:
    """The model's outputs [n, ...], and the median milliseconds per example."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path), num_threads=num_threads).get_signature_runner(contract.INFER)
    wanted = runner.get_input_details()[contract.X]
    batch_size = int(wanted["shape"][0])
    if tuple(wanted["shape"][1:]) != manifest.input.shape or np.dtype(wanted["dtype"]).name != manifest.input.dtype:
        raise ValueError(f"the model takes {wanted['dtype']} {wanted['shape']}, not {manifest.input}")
    outputs, times = [], []
    for start in range(0, len(inputs), batch_size):
        # A short batch is filled up, and what it fills is cut off again.
        batch = inputs[np.arange(start, start + batch_size) % len(inputs)]
        began = time.perf_counter()
        outputs.append(runner(**{contract.X: batch})[contract.OUTPUT].copy())
        times.append(time.perf_counter() - began)
    for _ in range(_TIMED_RUNS):
        began = time.perf_counter()
        runner(**{contract.X: batch})
        times.append(time.perf_counter() - began)
    latency_ms = float(np.median(times)) * 1000.0 / batch_size
    return np.concatenate(outputs)[: len(inputs)], latency_ms


def _peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def _failed(failure: ReleaseFailure, error: BaseException) -> CheckVerdict:
    return CheckVerdict(failure=failure, detail=f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS])


if __name__ == "__main__":
    main()
    sys.exit(0)
