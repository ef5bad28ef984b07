"""Runs exported files in other LiteRT runtimes, each in a fresh environment of its own, and compares what they compute.

And the device package on another Python: installed as on a device, its daemon imported, its tests run.
"""

import dataclasses
import math
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from model_export import runtime_probe
from model_export.proved_runtimes import RuntimeRun
from simulators.trials.errors import NoEnvironment, TrialFailed
from simulators.trials.runtime_files import ProofFile
from wire_protocol import model_contract as contract

__all__ = [
    "RUNTIMES",
    "TOLERANCE",
    "Environment",
    "newer_python",
    "prove_device",
    "prove_runtime",
    "requirements",
]

TOLERANCE: Final = 1e-5
"""Of each difference; the exporter's own, of a file from Keras."""
RUNTIMES: Final = (
    "1.0.0", "1.0.1", "1.1.0", "1.1.1", "1.1.2", "1.2.0", "1.3.0", "1.4.0", "2.0.2", "2.0.3", "2.1.0", "2.1.1", "2.1.2",
    "2.1.3", "2.1.4", "2.1.5", "2.1.6", "2.2.0", "2.3.0",
)  # fmt: skip
"""All versions of ai-edge-litert, oldest first; the last is what devices install."""
_NEWER: Final = ("3.14", "3.13", "3.12")
_VERSIONS: Final = "import sys, numpy; print(sys.version.split()[0], numpy.__version__)"
_TIMEOUT_S: Final = 300.0
_QUANTITIES: Final[Mapping[str, str]] = {
    contract.TRAIN: "loss",
    contract.EVALUATE: "loss",
    contract.SAVE: "weight",
    contract.INFER: "output",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """A fresh virtual environment."""

    directory: pathlib.Path
    python: str
    """The interpreter that it is made of."""
    packages: tuple[str, ...]
    """What is installed, as requirements or the path of a project."""

    @property
    def interpreter(self) -> pathlib.Path:
        """Its own Python."""
        return self.directory / "bin" / "python"

    def make(self) -> None:
        """Makes it.

        Raises:
            NoEnvironment: It cannot be made; says why.
        """
        uv = shutil.which("uv")
        if uv is None:
            raise NoEnvironment("uv is not on the PATH: pip install uv")
        for words in (
            ["venv", "--quiet", "--python", self.python, str(self.directory)],
            ["pip", "install", "--quiet", "--python", str(self.interpreter), *self.packages],
        ):
            done = _run([uv, *words], cwd=self.directory.parent)  # in a project uv would obey that project's settings
            if done.returncode != 0:
                raise NoEnvironment(f"uv {words[0]} of {' '.join(self.packages)}: {done.stderr.strip()[-500:]}")


def requirements(runtime: str) -> tuple[str, ...]:
    """What a runtime needs: one before 2 beside the numpy of its day, the oldest that devices may have."""
    numpy = "numpy==1.25.2" if runtime.startswith("1.") else "numpy>=2"
    return (f"ai-edge-litert=={runtime}", numpy)


def newer_python() -> str | None:
    """A Python later than 3.11: on the PATH, or one that pyenv has installed; ``None`` if there is none."""
    shims = shutil.which("pyenv")
    root = pathlib.Path(_run([shims, "root"]).stdout.strip()) if shims else None
    for version in _NEWER:
        installed = sorted(root.glob(f"versions/{version}.*/bin/python")) if root else []
        found = [shutil.which(f"python{version}"), *map(str, reversed(installed))]
        for candidate in found:
            if candidate is not None and _run([candidate, "-c", ""]).returncode == 0:  # pyenv's shims may be empty
                return candidate
    return None


def prove_runtime(
    environment: Environment,
    runtime: str,
    files: Sequence[ProofFile],
    *,
    inputs: pathlib.Path,
    certified: Mapping[str, float],
) -> RuntimeRun:
    """Runs all files in an environment.

    Args:
        environment: Made already.
        runtime: Of ai-edge-litert in it.
        files: What to compare with.
        inputs: Where ``write_files`` has written them.
        certified: Name -> how far the file is from Keras already, where that is known: both distances together must
            stay within the tolerance.
    """
    out = pathlib.Path(tempfile.mkdtemp(prefix="outputs-", dir=environment.directory))
    done = _run([str(environment.interpreter), runtime_probe.__file__, str(inputs), str(out)])
    versions = _run([str(environment.interpreter), "-c", _VERSIONS]).stdout.split()
    run = RuntimeRun(runtime=runtime, python=versions[0], numpy=versions[1])
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("INFO")]
        said = [f"exit code {done.returncode}", *lines][-1]
        return msgspec.structs.replace(run, problem=f"does not run: {said[:120]}")
    largest = dict.fromkeys(("loss", "weight", "output"), 0.0)
    wrong: dict[str, None] = {}  # each once, in order
    for file in files:
        found = _found(file, out)
        if not all(difference <= TOLERANCE - certified.get(file.name, 0.0) for _, difference in found):
            wrong[file.name] = None
            continue
        for quantity, difference in found:
            largest[quantity] = max(difference, largest[quantity])
    rounded = {f"{quantity}_difference": float(f"{value:.2g}") for quantity, value in largest.items()}
    return msgspec.structs.replace(run, wrong=tuple(wrong), **rounded)


def _found(file: ProofFile, out: pathlib.Path) -> list[tuple[str, float]]:
    """The differences of a file's outputs; infinite if it raised."""
    path = out / f"{file.file_name}.npz"
    if not path.exists():
        return [("output", math.inf)]
    with np.load(path, allow_pickle=False) as outputs:
        return list(_differences(file.expected, outputs))


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, values in expected.items():
        quantity = _QUANTITIES.get(key.split("/")[1])
        if quantity is None:
            continue
        scale = max(1.0, float(np.abs(values).max()))
        difference = float(np.abs(found[key] - values).max()) / scale
        yield quantity, difference if np.isfinite(difference) else math.inf


def prove_device(environment: Environment, root: pathlib.Path, tests: Sequence[str]) -> str:
    """Imports the daemon in an environment that holds the base package, and runs device tests there.

    Args:
        environment: Made already, with the project and pytest.
        root: Of the source tree, for its tests.
        tests: What to run, as pytest has it.

    Returns:
        pytest's last line.

    Raises:
        TrialFailed: The daemon cannot be imported, or a test fails; carries what was said.
    """
    python = str(environment.interpreter)
    imported = _run([python, "-I", "-c", "import edge_client.daemon, flockwise.cli"])
    if imported.returncode != 0:
        raise TrialFailed(f"the daemon cannot be imported: {imported.stderr[-800:]}")
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", *tests]
    done = _run(command, cwd=root)
    if done.returncode != 0:
        raise TrialFailed(f"device tests fail: {done.stdout[-1500:]}{done.stderr[-500:]}")
    return done.stdout.strip().splitlines()[-1]


def _run(command: list[str], cwd: pathlib.Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd=cwd)
