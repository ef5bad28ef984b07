"""Marks of apps that are trying a new release: an app that dies while its mark is up has been killed by the model, perhaps.

An app puts up a mark before it loads a release and takes it down after the first answers. The daemon counts marks
whose process is gone. Where apps may not write, nothing is marked and nothing counted.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import Final

__all__ = ["begin_use", "clear_marks", "num_broken_uses", "uses_path"]

_MARK: Final = re.compile(r"(\d{1,10})-(\d{1,10})")


def uses_path(model_directory: Path) -> Path:
    """Where marks are."""
    return model_directory / "uses"


def begin_use(model_directory: Path, number: int) -> Path | None:
    """Puts up this process's mark.

    Returns:
        The mark, to be deleted after the first answers; None if it cannot be put up.
    """
    mark = uses_path(model_directory) / f"{number}-{os.getpid()}"
    try:
        mark.touch()
    except OSError:
        return None
    return mark


def num_broken_uses(model_directory: Path, number: int) -> int:
    """How many processes have died with their mark of a release up. A mark is counted as long as it is there."""
    num = 0
    with contextlib.suppress(OSError):
        for mark in uses_path(model_directory).iterdir():
            match = _MARK.fullmatch(mark.name)
            if match is not None and int(match[1]) == number and not _is_alive(int(match[2])):
                num += 1
    return num


def clear_marks(model_directory: Path) -> None:
    """Deletes the marks of processes that are gone."""
    with contextlib.suppress(OSError):
        for mark in uses_path(model_directory).iterdir():
            match = _MARK.fullmatch(mark.name)
            if match is None or not _is_alive(int(match[2])):
                mark.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
