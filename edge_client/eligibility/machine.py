"""How probes see the machine: a file tree, a command runner, and, off Linux, psutil. Tests hand in a fake one.

A probe returns a value or `Unknown`. It never raises, and it never guesses: what cannot be read is unknown.
"""

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Self, TypeAlias

__all__ = ["CommandRunner", "Machine", "Unknown"]

_COMMAND_TIMEOUT_S: Final = 3.0
_MAX_FILE_BYTES: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Unknown:
    """A reading that could not be made. It is neither good nor bad."""

    why: str
    """In a few words, for the owner."""


CommandRunner: TypeAlias = Callable[[Sequence[str]], str | Unknown]
"""Runs a program by name, and returns what it printed; unknown if there is none, it failed, or it took too long."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What probes may look at."""

    root: Path
    """Above ``sys`` and ``proc``: ``/``, or a made-up tree."""
    run: CommandRunner
    num_cores: int

    def __post_init__(self) -> None:
        if self.num_cores < 1:
            raise ValueError(f"num_cores must be positive, not {self.num_cores}")

    @classmethod
    def this(cls) -> Self:
        """The real one."""
        return cls(root=Path("/"), run=_run, num_cores=os.cpu_count() or 1)

    def read(self, path: str) -> str | Unknown:
        """The text of a small file, without white space at its ends.

        Args:
            path: Relative to ``root``.
        """
        try:
            with (self.root / path).open("rb") as stream:
                return stream.read(_MAX_FILE_BYTES).decode(errors="replace").strip()
        except OSError as error:
            return Unknown(f"/{path}: {error.strerror or error}")

    def find(self, pattern: str) -> list[str]:
        """Paths that match a glob pattern, relative to ``root``, sorted; none if they cannot be listed."""
        try:
            return sorted(str(path.relative_to(self.root)) for path in self.root.glob(pattern))
        except OSError:
            return []


def _run(command: Sequence[str]) -> str | Unknown:
    program = shutil.which(command[0])
    if program is None:
        return Unknown(f"there is no program {command[0]}")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return Unknown(f"{command[0]} did not answer within {_COMMAND_TIMEOUT_S:g} s")
    except OSError as error:
        return Unknown(f"{command[0]} cannot be run: {error}")
    if done.returncode != 0:
        return Unknown(f"{command[0]} failed with exit code {done.returncode}")
    return done.stdout.decode(errors="replace")
