"""Where the daemon's log goes: standard error, as text or as one JSON object per line."""

import json
import logging
import sys
import time
from typing import Literal

__all__ = ["log_to_stderr"]


class _JsonLines(logging.Formatter):
    """``event`` is the first word of the message, as every line of this project begins with one."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": message.split(" ", 1)[0],
            "message": message,
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def log_to_stderr(level: str, *, style: Literal["text", "json"] = "text") -> None:
    """Sends this process's log to standard error.

    Args:
        level: Lowest level to show: debug, info, warning or error.
        style: Lines for people (journald adds nothing to them) or for machines.
    """
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_JsonLines() if style == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
