"""What the sans-I/O coordinator asks its surroundings to do."""

import dataclasses
from typing import TypeAlias

from coordinator.aggregation import ClientUpdate
from coordinator.round_table import Round
from wire_protocol.messages import Message, Metrics, RoundKind, encode_message, message_kind
from wire_protocol.topics import device_down

__all__ = ["Action", "CohortAssigned", "Fold", "FoldMetrics", "Publish", "RoundEnded", "RoundOrder", "to_device"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Publish:
    """Send this message."""

    topic: str
    payload: bytes
    retain: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """Journal this admitted update, so that it counts, then call ``FleetCoordinator.folded``; add it to the round's sum."""

    device_id: str
    update: ClientUpdate
    encoded: bytes
    """The ``model_delta`` as it came, for the journal."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FoldMetrics:
    """The same for an admitted evaluation."""

    device_id: str
    metrics: Metrics


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CohortAssigned:
    """The cohort is drawn: make it durable before the assignments, which follow, go out."""

    round: Round


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RoundEnded:
    """The round takes no more reports: aggregate it, or it has been abandoned (``round.state`` says)."""

    round: Round


Action: TypeAlias = Publish | CohortAssigned | Fold | FoldMetrics | RoundEnded


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RoundOrder:
    """A round to be run."""

    round_id: int
    kind: RoundKind
    checkpoint: bytes
    """The encoded weights that the cohort starts from."""
    clipping_norm: float | None = None
    """The round's clip, of a task whose clip adapts."""
    only: frozenset[str] | None = None
    """If given, the cohort is these devices, and no others."""


def to_device(population: str, device_id: str, message: Message) -> Publish:
    """A message for one device."""
    topic = device_down(population, device_id, message_kind(message))
    return Publish(topic=topic, payload=encode_message(message))
