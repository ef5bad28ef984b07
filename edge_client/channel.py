"""One device's topics: which message comes on which, and where its own go. No I/O."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias, cast

from broker_link.link import Incoming, Will
from edge_client.events import Publish
from wire_protocol.errors import MalformedMessage
from wire_protocol.messages import (
    Assignment,
    CoordinatorMessage,
    DeviceMessage,
    DeviceStatus,
    Message,
    Piece,
    PieceList,
    Receipt,
    Refusal,
    RoundClosed,
    TaskAnnouncement,
    decode_message,
    encode_message,
    message_kind,
)
from wire_protocol.topics import (
    device_down,
    device_down_filter,
    device_status,
    device_up,
    population_round,
    population_task,
)

__all__ = ["DeviceChannel", "Seal", "unsealed"]

Seal: TypeAlias = Callable[[str, bytes], bytes]
"""``seal(topic, message)``: the bytes to publish."""


def unsealed(topic: str, message: bytes) -> bytes:
    """The message as it is."""
    del topic
    return message


_DOWN_MESSAGES: Final[tuple[type[Message], ...]] = (Assignment, Refusal, PieceList, Piece, Receipt)
_DOWN_KINDS: Final[Mapping[str, type[Message]]] = {message_kind(kind): kind for kind in _DOWN_MESSAGES}


class DeviceChannel:
    """Encodes and decodes for one device.

    Args:
        population: The population's name.
        device_id: The device's id.
        client_version: Goes into the status message.

    Raises:
        InvalidIdentifier: A name that may not be part of a topic.
    """

    __slots__ = ("_down_prefix", "_round_topic", "_task_topic", "client_version", "device_id", "population", "seal")

    def __init__(self, *, population: str, device_id: str, client_version: str) -> None:
        self.population = population
        self.device_id = device_id
        self.client_version = client_version
        self.seal: Seal = unsealed
        """What a message goes through last, on its way out and in the last will; a signing identity puts itself here."""
        self._task_topic = population_task(population)
        self._round_topic = population_round(population)
        self._down_prefix = device_down(population, device_id, "")

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """Topic filters for everything this device must hear."""
        return self._task_topic, self._round_topic, device_down_filter(self.population, self.device_id)

    def is_down(self, prefix: str) -> bool:
        """Whether messages of the coordinator to this device come under this prefix of a topic (without the last slash)."""
        return f"{prefix}/" == self._down_prefix

    @property
    def will(self) -> Will:
        """What the broker is to say when this device vanishes."""
        offline = self.status(is_online=False)
        return Will(topic=offline.topic, payload=self.seal(offline.topic, offline.payload))

    def status(self, *, is_online: bool) -> Publish:
        """The retained presence message."""
        status = DeviceStatus(presence="online" if is_online else "offline", client_version=self.client_version)
        topic = device_status(self.population, self.device_id)
        return Publish(topic=topic, payload=encode_message(status), retain=True)

    def publish(self, message: DeviceMessage) -> Publish:
        """A message to the coordinator."""
        topic = device_up(self.population, self.device_id, message_kind(message))
        return Publish(topic=topic, payload=encode_message(message))

    def decode(self, incoming: Incoming) -> CoordinatorMessage | None:
        """Decodes what came.

        Returns:
            The message, or None if the retained task was deleted.

        Raises:
            WireError: No message of the protocol, or on a topic that is not this device's.
        """
        topic = incoming.topic
        if topic.startswith(self._down_prefix):
            kind = _DOWN_KINDS.get(topic[len(self._down_prefix) :])
            if kind is not None:
                return cast("CoordinatorMessage", decode_message(incoming.payload, kind))
        elif topic == self._round_topic:
            return decode_message(incoming.payload, RoundClosed)
        elif topic == self._task_topic:
            return decode_message(incoming.payload, TaskAnnouncement) if incoming.payload else None
        raise MalformedMessage(f"not a topic of this device: {topic[:200]!r}")
