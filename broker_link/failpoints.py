"""Named places where a test may kill the process, as a power cut would (ADR 0004).

`hit("name")` does nothing but count unless ``FLOCKWISE_FAILPOINTS`` arms it: ``name=3`` kills the process, by SIGKILL
to itself, when that place is passed for the third time. ``FLOCKWISE_FAILPOINT_LOG`` names a file that gets the name of
the failpoint that killed, so that a chaos run can show what it hit. Every name stands in `FAILPOINTS` (the life of a
round, which `scripts/chaos` kills through), `OPENING_FAILPOINTS` (a sum that others open) or `RELEASE_FAILPOINTS` (a
release on a device); another raises.
"""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["FAILPOINTS", "OPENING_FAILPOINTS", "RELEASE_FAILPOINTS", "armed_failpoints", "hit"]

FAILPOINTS: Final = (
    "coordinator.start.before_recovery",
    "coordinator.start.after_recovery",
    "coordinator.round_id.before_write",
    "coordinator.round_id.after_write",
    "coordinator.journal.before_open",
    "coordinator.journal.after_open",
    "coordinator.journal.before_assign",
    "coordinator.journal.after_assign",
    "coordinator.journal.before_add",
    "coordinator.journal.after_add",
    "coordinator.journal.before_sync",
    "coordinator.journal.after_sync",
    "coordinator.journal.before_close",
    "coordinator.journal.after_close",
    "coordinator.fold.before",
    "coordinator.fold.after",
    "coordinator.receipt.before",
    "coordinator.receipt.after",
    "coordinator.assignment.before",
    "coordinator.assignment.after",
    "coordinator.aggregate.before",
    "coordinator.aggregate.after",
    "coordinator.file.before_write",
    "coordinator.file.before_sync",
    "coordinator.file.before_rename",
    "coordinator.file.after_rename",
    "coordinator.round.ended",
    "coordinator.round.waiting",
    "coordinator.round.opened",
    "device.start",
    "device.link_up",
    "device.check_in.before",
    "device.check_in.after",
    "device.session.moved",
    "device.blob.before_write",
    "device.blob.after_write",
    "device.file.before_write",
    "device.file.before_sync",
    "device.file.before_rename",
    "device.file.after_rename",
    "device.outbox.before_store",
    "device.outbox.after_store",
    "device.outbox.before_drop",
    "device.outbox.after_drop",
    "device.piece.before",
    "device.piece.after",
    "device.job.before_start",
    "device.job.after_start",
    "device.job.finished",
    "device.report.before",
    "device.report.after",
    "device.round.over",
    "device.trainer.before_train",
    "device.trainer.after_train",
)

OPENING_FAILPOINTS: Final = (
    "coordinator.opening-request.before",
    "coordinator.opening-request.after",
    "coordinator.opening.opened",
)

RELEASE_FAILPOINTS: Final = (
    "device.release.before_piece",
    "device.release.after_piece",
    "device.release.before_slot",
    "device.release.after_slot",
    "device.release.before_switch",
    "device.release.after_switch",
    "device.release.before_rollback",
    "device.release.after_rollback",
)

_KNOWN: Final = frozenset((*FAILPOINTS, *OPENING_FAILPOINTS, *RELEASE_FAILPOINTS))
_ARMED: Final = "FLOCKWISE_FAILPOINTS"
_LOG: Final = "FLOCKWISE_FAILPOINT_LOG"


def armed_failpoints(environ: Mapping[str, str]) -> dict[str, int]:
    """Reads what is armed: name -> how many passes are left until it kills.

    Raises:
        ValueError: A name that is no failpoint, or no positive number.
    """
    armed: dict[str, int] = {}
    for entry in filter(None, environ.get(_ARMED, "").split(",")):
        name, _, count = entry.partition("=")
        if name not in _KNOWN or not count.isdigit() or int(count) < 1:
            raise ValueError(f"{_ARMED}: {entry!r} is not a failpoint and a positive number, such as {FAILPOINTS[0]}=1")
        armed[name] = int(count)
    return armed


_left = armed_failpoints(os.environ)


def hit(name: str) -> None:
    """Passes a failpoint; may not return.

    Raises:
        ValueError: ``name`` is not one that is known.
    """
    if not _left:
        return
    if name not in _KNOWN:
        raise ValueError(f"{name} is not a known failpoint")
    if name not in _left:
        return
    _left[name] -= 1
    if _left[name] == 0:
        log = os.environ.get(_LOG)
        if log:
            with Path(log).open("a") as stream:
                stream.write(f"{name}\n")
        os.kill(os.getpid(), signal.SIGKILL)
