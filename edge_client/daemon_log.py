"""The daemon's lines about events and rounds."""

import logging
from typing import Final

from broker_link.link import LinkDown, LinkUp
from edge_client.counts import RoundOutcome
from edge_client.events import DeviceEvent, TrainingFailed, TrainingFinished
from edge_client.state_writer import StateWriter

__all__ = ["HourlyLine", "log_event", "log_outcome"]

_LOG = logging.getLogger("edge_client.daemon")  # whoever filters or greps knows these lines as the daemon's
_HOUR_S: Final = 3600.0


class HourlyLine:
    """A line an hour about what the SD card had to bear.

    Args:
        writer: Counts it.
        now: Monotonic time in seconds, here and below.
    """

    __slots__ = ("_due_at", "_writer")

    def __init__(self, writer: StateWriter, *, now: float) -> None:
        self._writer = writer
        self._due_at = now + _HOUR_S

    def tick(self, now: float) -> None:
        """Writes the line if it is due."""
        if now < self._due_at:
            return
        self._due_at = now + _HOUR_S
        written = self._writer.num_bytes_in_the_last_hour
        _LOG.info(
            "state_written bytes_last_hour=%d num_files=%d num_failures=%d",
            written,
            self._writer.num_files,
            self._writer.num_failures,
        )


def log_event(event: DeviceEvent) -> None:
    """What is worth a line: never a message's content, never a tensor."""
    match event:
        case LinkUp():
            _LOG.info("connected")
        case LinkDown():
            _LOG.warning("disconnected reason=%r", event.reason)
        case TrainingFinished():
            _LOG.info(
                "job_finished round_id=%d num_examples=%d duration_s=%.2f",
                event.round_id,
                event.result.num_examples,
                event.result.duration_s,
            )
        case TrainingFailed():
            _LOG.error("job_failed round_id=%d reason=%s detail=%r", event.round_id, event.reason.value, event.detail)
        case _:
            pass


def log_outcome(outcome: RoundOutcome) -> None:
    """How a round ended."""
    reason = outcome.reason.value if outcome.reason is not None else "none"
    _LOG.info("round_over round_id=%d ending=%s reason=%s", outcome.round_id, outcome.ending.value, reason)
