"""What an auditor needs of a private task, beside its states: the mechanism, and a line per round that is over."""

import os
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from coordinator.errors import InvalidBundle
from wire_protocol.plan import TrainingPlan
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["RECORD_FILE", "PrivacyRecord", "RecordedRound", "read_privacy_record"]

RECORD_FILE: Final = "privacy.jsonl"
"""Its name in a task's directory."""


class RecordedRound(msgspec.Struct, frozen=True, kw_only=True):
    """One round that is over."""

    round_id: int
    state: str
    num_reports: int
    epsilon: float
    """What the filter had let through by then, abandoned rounds included."""


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    privacy: PrivacySpec
    num_parameters: int


class _Summary(Protocol):
    """Of a round; see ``coordinator.round_loop.RoundSummary``."""

    @property
    def round_id(self) -> int: ...
    @property
    def state(self) -> Any: ...
    @property
    def num_reports(self) -> int: ...
    @property
    def epsilon(self) -> float | None: ...


class PrivacyRecord:
    """Appends to the record of one private task; made with the first line if it is not there.

    Args:
        directory: The task's directory.
        plan: Its plan.

    Raises:
        ValueError: The plan is not private.
        OSError: The record cannot be written.
    """

    def __init__(self, directory: Path, plan: TrainingPlan) -> None:
        if plan.privacy is None:
            raise ValueError("a task that is not private has no record of privacy")
        self._path = directory / RECORD_FILE
        directory.mkdir(parents=True, exist_ok=True)
        _drop_unfinished_line(self._path)
        if not self._path.exists():
            self._append(_Head(privacy=plan.privacy, num_parameters=plan.num_parameters))

    def note(self, summary: _Summary) -> None:
        """Writes a round down.

        Raises:
            OSError: The record cannot be written.
        """
        self._append(
            RecordedRound(
                round_id=summary.round_id,
                state=summary.state.value,
                num_reports=summary.num_reports,
                epsilon=summary.epsilon or 0.0,
            )
        )

    def _append(self, line: msgspec.Struct) -> None:
        with self._path.open("ab") as stream:
            stream.write(msgspec.json.encode(line) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())


def _drop_unfinished_line(path: Path) -> None:
    """What a crash left of a line would swallow the next one."""
    if path.exists():
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)
        if not path.stat().st_size:
            path.unlink()


def read_privacy_record(directory: Path) -> tuple[PrivacySpec, int, list[RecordedRound]]:
    """Mechanism, number of parameters, and the rounds that are over. A last line cut off by a crash is left out.

    Raises:
        InvalidBundle: There is no record, or it cannot be read.
    """
    path = directory / RECORD_FILE
    try:
        first, *rest = path.read_bytes().split(b"\n")
        head = msgspec.json.decode(first, type=_Head)
        rounds = [msgspec.json.decode(line, type=RecordedRound) for line in rest[:-1]]
    except (OSError, ValueError) as error:
        raise InvalidBundle(f"{path} cannot be read as the record of a private task: {error}") from error
    return head.privacy, head.num_parameters, rounds
