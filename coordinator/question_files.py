"""The questions of a fleet, a file each: written down before any device is asked, and with its answer afterwards.

A question that was asked and came to nothing has been charged by those who answered, so that an auditor must see it; and
asked again with other settings it would be refused by every device.
"""

from pathlib import Path
from typing import Final

import msgspec

from coordinator.durable_files import write_durably
from coordinator.errors import InvalidConfig
from wire_protocol.query import Query
from wire_protocol.query_answer import QueryAnswer

__all__ = ["KeptQuestion", "keep_question", "question_file", "read_question", "read_questions"]

_DIRECTORY: Final = "questions"
_MAX_BYTES: Final = 1 << 20


class KeptQuestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked, and what was answered."""

    query: Query
    answer: QueryAnswer | None = None
    """None if there is none, or not yet."""

    def __post_init__(self) -> None:
        if self.answer is not None and self.answer.query != self.query:
            raise ValueError("an answer to another question")


def question_file(state_dir: Path, query: Query) -> Path:
    """Where a question is kept."""
    return state_dir / _DIRECTORY / f"{query.name}.{query.period}.json"


def keep_question(state_dir: Path, kept: KeptQuestion) -> None:
    """Writes a question down, or its answer beside it; durable when this returns.

    Raises:
        OSError: It cannot be written.
    """
    path = question_file(state_dir, kept.query)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, msgspec.json.encode(kept) + b"\n")


def read_question(path: Path) -> KeptQuestion:
    """Reads one file.

    Raises:
        InvalidConfig: It is not what was written.
        OSError: It cannot be read.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise InvalidConfig(f"{path} is too large to be a question and its answer; move it away")
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeptQuestion)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{path} is not a question and its answer ({error}); move it away") from error


def read_questions(state_dir: Path) -> list[KeptQuestion]:
    """All questions of a state directory, by name and period.

    Raises:
        InvalidConfig: A file is not what was written.
        OSError: A file cannot be read.
    """
    return [read_question(path) for path in sorted((state_dir / _DIRECTORY).glob("*.json"))]
