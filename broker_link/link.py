"""The seam between the parts that speak the protocol and a message broker.

A link delivers what happens as values on its owner's queue and takes publications from any thread. It owns
reconnection: after each ``LinkUp`` all subscriptions are in place again, and whatever was published while the link
was down is the owner's to repeat (the protocol's own receipts decide, not the broker's).
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Protocol, TypeAlias

__all__ = ["BrokerLink", "EventSink", "Incoming", "LinkDown", "LinkEvent", "LinkUp", "Will", "topic_matches"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinkUp:
    """Connected, and subscribed to everything asked for."""

    max_packet_bytes: int | None = None
    """The broker's limit on a packet from us, if it named one (MQTT 5 CONNACK)."""
    proved_unix_s: float | None = None
    """A time, in seconds since 1970 UTC, that is certainly past: the beginning of the broker's verified certificate."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinkDown:
    """The connection is gone; the link is already trying to get it back."""

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Incoming:
    """One message."""

    topic: str
    payload: bytes


LinkEvent: TypeAlias = LinkUp | LinkDown | Incoming
EventSink: TypeAlias = Callable[[LinkEvent], None]
"""Where a link puts its events; called from the link's own thread, must not block or raise."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Will:
    """What the broker publishes, retained, when the connection dies without a goodbye."""

    topic: str
    payload: bytes


class BrokerLink(Protocol):
    """A connection to a broker that is kept up by itself."""

    @property
    def is_supervised(self) -> bool:
        """Whether whatever keeps the connection up still lives: if not, the link is dead for good. True once started."""

    def start(self) -> None:
        """Begins connecting. Returns at once; ``LinkUp`` follows on the sink."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Sends at QoS 1 if connected; drops otherwise. Never blocks, never raises for a lost connection."""

    def follow(self, filters: Collection[str]) -> None:
        """Names the topic filters to hear beside the link's own, from now on and on every later connection.

        Those not named before are subscribed to, so that what is retained on them arrives; those named no more are
        left. A refusal by the broker is logged and changes nothing else. From any thread; never blocks.
        """

    def stop(self) -> None:
        """Disconnects cleanly, after what was published before has been handed to the network. Idempotent."""


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Whether an MQTT topic filter (with ``+`` and a final ``#``) matches a topic."""
    filter_parts = topic_filter.split("/")
    topic_parts = topic.split("/")
    for index, part in enumerate(filter_parts):
        if part == "#":
            return True
        if index >= len(topic_parts) or part not in {"+", topic_parts[index]}:
            return False
    return len(filter_parts) == len(topic_parts)
