"""Whether files with passwords and keys are kept from this machine's other users."""

import stat
from pathlib import Path

__all__ = ["is_readable_by_everybody"]


def is_readable_by_everybody(path: str | Path) -> bool:
    """Whether any user of this machine can read a file. A group can be the service's own, so it is not asked for.

    Returns:
        False also if the file cannot be looked at: whoever opens it will say so better.
    """
    try:
        return bool(Path(path).stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
