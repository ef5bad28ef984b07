"""A light MQTT 3.1.1 client for fleets: one asyncio task per device, no thread, some kilobytes each.

A thousand paho clients are a thousand threads (and stop at 339 in one process: `select`). This one does what
`broker_link.paho_link` does for a device, no more: clean sessions, QoS 1, a will, keepalive, and full-jitter back-off of
the same bounds. A test holds it to the same scenarios on real brokers.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Final

from broker_link.backoff import FullJitterBackoff
from broker_link.link import EventSink, Incoming, LinkDown, LinkUp, Will
from simulators.mqtt_framing import Packet, PacketSplitter, PacketType, encode_packet, encode_string

__all__ = ["LightLink"]

_READ_BYTES: Final = 65536
_CONNECT_TIMEOUT_S: Final = 10.0
_PROTOCOL: Final = encode_string("MQTT") + b"\x04"
_CLEAN_SESSION: Final = 0x02
_RETAINED_WILL_QOS_1: Final = 0x04 | 0x08 | 0x20
_QOS_1: Final = 0x02
_RETAIN: Final = 0x01
_HIGHEST_ID: Final = 65535


class LightLink:
    """Keeps one connection up, in the running event loop. A `broker_link.link.BrokerLink`.

    Args:
        host: The broker's address.
        port: Its port.
        client_id: MQTT client id.
        subscriptions: Topic filters, subscribed to at QoS 1 before ``LinkUp`` is reported.
        sink: Receives every event, in the event loop.
        uniform: Randomness of the waits before new connections.
        will: Published by the broker, retained, if the connection dies.
        keepalive_s: A silent connection is asked after this, and given up after as long again.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        client_id: str,
        subscriptions: Sequence[str],
        sink: EventSink,
        uniform: Callable[[float, float], float],
        will: Will | None = None,
        keepalive_s: int = 30,
    ) -> None:
        self._address = (host, port)
        self._client_id = client_id
        self._subscriptions = tuple(subscriptions)
        self._sink = sink
        self._will = will
        self._keepalive_s = keepalive_s
        self._backoff = FullJitterBackoff(base_s=0.5, cap_s=60.0, uniform=uniform)
        self._writer: asyncio.StreamWriter | None = None
        self._is_up = False
        self._followed: frozenset[str] = frozenset()
        self._ids = itertools.cycle(range(1, _HIGHEST_ID + 1))
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins connecting."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._supervise())

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Sends at QoS 1 if connected; drops otherwise."""
        if self._writer is not None and self._is_up:
            self._send(
                PacketType.PUBLISH,
                _QOS_1 | (_RETAIN if retain else 0),
                encode_string(topic),
                next(self._ids).to_bytes(2, "big"),
                payload,
            )

    def follow(self, filters: Collection[str]) -> None:
        """Names the filters to hear beside the link's own subscriptions."""
        wanted = frozenset(filters)
        new, gone = sorted(wanted - self._followed), sorted(self._followed - wanted)
        self._followed = wanted
        if self._is_up:
            self._subscribe(new)
            if gone:
                names = b"".join(encode_string(topic) for topic in gone)
                self._send(PacketType.UNSUBSCRIBE, 2, next(self._ids).to_bytes(2, "big"), names)

    def stop(self) -> None:
        """Says goodbye after what was published before, and ends."""
        if self._writer is not None:
            self._send(PacketType.DISCONNECT, 0)
            self._writer.close()
        if self._task is not None:
            self._task.cancel()

    async def _supervise(self) -> None:
        while True:
            reason = "connection closed"
            try:
                await self._run_connection()
            except (OSError, TimeoutError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
            if self._is_up:
                self._is_up = False
                self._sink(LinkDown(reason=reason))
            await asyncio.sleep(self._backoff.next_wait_s())

    async def _run_connection(self) -> None:
        """Makes one connection and stays until it is over."""
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            reader, self._writer = await asyncio.open_connection(*self._address)
        try:
            self._say_hello()
            splitter, is_asked = PacketSplitter(), False
            while True:
                try:
                    async with asyncio.timeout(self._keepalive_s):
                        data = await reader.read(_READ_BYTES)
                except TimeoutError:
                    if is_asked:
                        raise
                    is_asked = True
                    self._send(PacketType.PINGREQ, 0)
                    continue
                if not data:
                    return
                is_asked = False
                for packet in splitter.feed(data):
                    self._take(packet)
        finally:
            self._writer.close()
            self._writer = None

    def _say_hello(self) -> None:
        flags, payload = _CLEAN_SESSION, encode_string(self._client_id)
        if self._will is not None:
            flags |= _RETAINED_WILL_QOS_1
            payload += encode_string(self._will.topic) + encode_string(self._will.payload)
        self._send(PacketType.CONNECT, 0, _PROTOCOL, bytes([flags]), self._keepalive_s.to_bytes(2, "big"), payload)

    def _take(self, packet: Packet) -> None:
        match packet.type:
            case PacketType.CONNACK:
                if packet.body[1] != 0:
                    raise ValueError(f"the broker refused the connection: {packet.body[1]}")
                self._subscribe(self._subscriptions)
            case PacketType.SUBACK if not self._is_up:
                if any(code & 0x80 for code in packet.body[2:]):
                    raise ValueError("the broker refused a subscription")
                self._is_up = True
                self._backoff.reset()
                self._sink(LinkUp())
                self._subscribe(sorted(self._followed))
            case PacketType.PUBLISH:
                self._take_publish(packet)

    def _subscribe(self, topics: Sequence[str]) -> None:
        if topics:
            filters = b"".join(encode_string(topic) + b"\x01" for topic in topics)
            self._send(PacketType.SUBSCRIBE, 2, next(self._ids).to_bytes(2, "big"), filters)

    def _take_publish(self, packet: Packet) -> None:
        body = packet.body
        stop = 2 + int.from_bytes(body[:2], "big")
        topic = bytes(body[2:stop]).decode()
        if packet.flags & _QOS_1:
            self._send(PacketType.PUBACK, 0, bytes(body[stop : stop + 2]))
            stop += 2
        self._sink(Incoming(topic=topic, payload=bytes(body[stop:])))

    def _send(self, packet_type: int, flags: int, *parts: bytes) -> None:
        # One write per packet: packets of one connection never mix.
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.write(encode_packet(packet_type, flags, *parts))
