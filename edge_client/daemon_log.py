"""The daemon's lines about events and rounds."""

import logging

from broker_link.link import LinkDown, LinkUp
from edge_client.counts import RoundOutcome
from edge_client.events import DeviceEvent, TrainingFailed, TrainingFinished

__all__ = ["log_event", "log_outcome"]

_LOG = logging.getLogger("edge_client.daemon")  # whoever filters or greps knows these lines as the daemon's


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
