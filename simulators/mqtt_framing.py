"""Where one MQTT packet ends and the next begins: the fixed header alone, and what a small client needs to write.

MQTT 3.1.1, section 2.2: a byte of type and flags, then the remaining length in one to four bytes of seven bits each.
"""

import dataclasses
from typing import Final

__all__ = ["Packet", "PacketSplitter", "PacketType", "encode_packet", "encode_string"]

_MAX_LENGTH_BYTES: Final = 4
_CONTINUES: Final = 0x80


class PacketType:
    """Control packet types, the upper half of a packet's first byte."""

    CONNECT: Final = 1
    CONNACK: Final = 2
    PUBLISH: Final = 3
    PUBACK: Final = 4
    SUBSCRIBE: Final = 8
    SUBACK: Final = 9
    UNSUBSCRIBE: Final = 10
    PINGREQ: Final = 12
    PINGRESP: Final = 13
    DISCONNECT: Final = 14


@dataclasses.dataclass(frozen=True, slots=True)
class Packet:
    """One control packet, its parts not looked into."""

    data: bytes
    """All of it, fixed header included."""
    body_at: int
    """Where the variable header begins."""

    @property
    def type(self) -> int:
        """Which of ``PacketType``."""
        return self.data[0] >> 4

    @property
    def flags(self) -> int:
        """The lower half of the first byte."""
        return self.data[0] & 0x0F

    @property
    def body(self) -> memoryview:
        """Variable header and payload."""
        return memoryview(self.data)[self.body_at :]


class PacketSplitter:
    """Cuts a byte stream into packets.

    Raises:
        ValueError: From ``feed``: a remaining length of more than four bytes; this is no MQTT.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Packet]:
        """Takes bytes as they come; returns the packets that are complete now."""
        self._buffer += data
        packets: list[Packet] = []
        start = 0
        while (extent := self._extent(start)) is not None:
            body_at, stop = extent
            if stop > len(self._buffer):
                break
            packets.append(Packet(bytes(self._buffer[start:stop]), body_at - start))
            start = stop
        del self._buffer[:start]
        return packets

    def _extent(self, start: int) -> tuple[int, int] | None:
        """Where the body of the packet at ``start`` begins and ends; None if its header is not all here."""
        length = 0
        for index in range(_MAX_LENGTH_BYTES):
            position = start + 1 + index
            if position >= len(self._buffer):
                return None
            length |= (self._buffer[position] & ~_CONTINUES) << (7 * index)
            if not self._buffer[position] & _CONTINUES:
                return position + 1, position + 1 + length
        raise ValueError("a remaining length of more than four bytes: this is no MQTT")


def encode_packet(packet_type: int, flags: int, *parts: bytes) -> bytes:
    """A packet from its parts."""
    length = sum(map(len, parts))
    encoded = bytearray([packet_type << 4 | flags])
    while True:
        length, digit = length >> 7, length & ~_CONTINUES & 0xFF
        encoded.append(digit | (_CONTINUES if length else 0))
        if not length:
            return bytes(encoded) + b"".join(parts)


def encode_string(text: str | bytes) -> bytes:
    """A string, or a payload in CONNECT, with its length of two bytes before it."""
    data = text.encode() if isinstance(text, str) else text
    return len(data).to_bytes(2, "big") + data
