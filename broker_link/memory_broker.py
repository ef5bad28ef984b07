"""An MQTT-like broker inside one process, on whatever clock its owner keeps.

The second real implementation of the link seam: the fleets of ``simulators`` run on it, thousands of devices to a
process. It keeps topics, retained messages and last wills as MQTT has them. Time, delay, loss and duplication are
the owner's: the broker asks ``schedule`` to run a delivery later and ``delays`` how often and when each one arrives.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from broker_link.link import EventSink, Incoming, LinkDown, LinkUp, Will, topic_matches

__all__ = ["Delays", "MemoryBroker", "MemoryLink", "Schedule", "instantly"]

Schedule: TypeAlias = Callable[[float, Callable[[], None]], None]
"""``schedule(delay_s, deliver)``: run ``deliver`` after ``delay_s``."""

Delays: TypeAlias = Callable[[str, int], Sequence[float]]
"""``delays(topic, num_bytes)``: when each copy of a message arrives, in seconds; empty if it is lost."""


def instantly(topic: str, num_bytes: int) -> Sequence[float]:
    """A perfect network: one copy, at once."""
    del topic, num_bytes
    return (0.0,)


@dataclasses.dataclass(slots=True)
class _Node:
    """One level of the subscription tree."""

    children: dict[str, "_Node"] = dataclasses.field(default_factory=dict)
    links: "dict[MemoryLink, None]" = dataclasses.field(default_factory=dict)
    hash_links: "dict[MemoryLink, None]" = dataclasses.field(default_factory=dict)


class MemoryBroker:
    """Routes messages between ``MemoryLink`` objects."""

    def __init__(self, *, schedule: Schedule, delays: Delays = instantly) -> None:
        self._schedule = schedule
        self._delays = delays
        self._root = _Node()
        self._retained: dict[str, bytes] = {}
        self.num_delivered = 0
        self.num_lost = 0

    def link(self, *, subscriptions: Sequence[str], sink: EventSink, will: Will | None = None) -> "MemoryLink":
        """Makes a link; it connects on ``start``."""
        return MemoryLink(self, tuple(subscriptions), sink, will)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Routes one message to every subscribed link, and keeps it if ``retain``; an empty payload forgets."""
        if retain and payload:
            self._retained[topic] = payload
        elif retain:
            self._retained.pop(topic, None)
        for link in self._subscribers(self._root, topic.split("/")):
            self._deliver(link, topic, payload)

    def _deliver(self, link: "MemoryLink", topic: str, payload: bytes) -> None:
        arrivals = self._delays(topic, len(payload))
        if not arrivals:
            self.num_lost += 1
        arrive = functools.partial(self._arrive, link, link.connection, topic, payload)
        for delay_s in arrivals:
            self._schedule(delay_s, arrive)

    def _arrive(self, link: "MemoryLink", connection: int, topic: str, payload: bytes) -> None:
        if link.is_up and link.connection == connection:
            self.num_delivered += 1
            link.sink(Incoming(topic=topic, payload=payload))

    def _subscribers(self, node: _Node, parts: list[str]) -> "list[MemoryLink]":
        found = list(node.hash_links)
        if not parts:
            return found + list(node.links)
        for part in (parts[0], "+"):
            child = node.children.get(part)
            if child is not None:
                found += self._subscribers(child, parts[1:])
        return found

    def _links(self, topic_filter: str) -> "dict[MemoryLink, None]":
        node = self._root
        for part in topic_filter.split("/"):
            if part == "#":
                return node.hash_links
            node = node.children.setdefault(part, _Node())
        return node.links

    def attach(self, link: "MemoryLink") -> None:
        """Adds a link's subscriptions."""
        self.add(link, link.every_subscription)

    def add(self, link: "MemoryLink", filters: Collection[str]) -> None:
        """Adds subscriptions to a link."""
        for topic_filter in filters:
            self._links(topic_filter)[link] = None

    def remove(self, link: "MemoryLink", filters: Collection[str]) -> None:
        """Takes subscriptions from a link."""
        for topic_filter in filters:
            self._links(topic_filter).pop(link, None)

    def send_retained(self, link: "MemoryLink", filters: Collection[str]) -> None:
        """Sends a link what is retained for some of its subscriptions."""
        for topic_filter in filters:
            for topic in self._retained_for(topic_filter):
                self._deliver(link, topic, self._retained[topic])

    def _retained_for(self, topic_filter: str) -> list[str]:
        if "+" in topic_filter or "#" in topic_filter:
            return [topic for topic in self._retained if topic_matches(topic_filter, topic)]
        return [topic_filter] if topic_filter in self._retained else []

    def detach(self, link: "MemoryLink") -> None:
        """Removes a link's subscriptions."""
        self.remove(link, link.every_subscription)


class MemoryLink:
    """A device's or the coordinator's connection to a ``MemoryBroker``."""

    def __init__(
        self, broker: MemoryBroker, subscriptions: tuple[str, ...], sink: EventSink, will: Will | None
    ) -> None:
        self._broker = broker
        self._will = will
        self._followed: frozenset[str] = frozenset()
        self.subscriptions = subscriptions
        self.sink = sink
        self.is_up = False
        self.connection = 0
        """Counts connections: what was under way when a connection died is not delivered to the next one."""

    @property
    def is_supervised(self) -> bool:
        """True: nothing here can die alone."""
        return True

    def start(self) -> None:
        """Connects at once."""
        if self.is_up:
            return
        self.is_up = True
        self.connection += 1
        self._broker.attach(self)
        self.sink(LinkUp())
        self._broker.send_retained(self, self.every_subscription)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Sends if connected; drops otherwise."""
        if self.is_up:
            self._broker.publish(topic, payload, retain=retain)

    @property
    def every_subscription(self) -> tuple[str, ...]:
        """Its own subscriptions, then the topics it follows."""
        return (*self.subscriptions, *sorted(self._followed - set(self.subscriptions)))

    def follow(self, filters: Collection[str]) -> None:
        """Names the filters to hear beside its own subscriptions."""
        wanted = frozenset(filters)
        new, gone = sorted(wanted - self._followed), self._followed - wanted
        self._followed = wanted
        if self.is_up:
            self._broker.remove(self, gone)
            self._broker.add(self, new)
            self._broker.send_retained(self, new)

    def stop(self) -> None:
        """Disconnects with a goodbye: the will is not published."""
        self._disconnect()

    def lose(self, reason: str) -> None:
        """Breaks the connection as a network would: the will is published and the owner told."""
        if self.is_up:
            self._disconnect()
            if self._will is not None:
                self._broker.publish(self._will.topic, self._will.payload, retain=True)
            self.sink(LinkDown(reason=reason))

    def _disconnect(self) -> None:
        if self.is_up:
            self.is_up = False
            self._broker.detach(self)
