"""What a device believes of what is said to it in the coordinator's name.

With a pinned key it hears only what that key has signed, for the very topic; what the broker makes up, alters, or says
for another device is counted and dropped. Replays: an assignment, a refusal and a receipt answer a nonce of this
device's own, so an old one fits nothing; an old task would, so the position of the newest task is kept on disk.
Without a pinned key envelopes are taken off unread.
"""

import collections
import json
import logging
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker_link.link import EventSink, Incoming, LinkEvent
from edge_client.channel import DeviceChannel
from edge_client.config import EdgeConfig
from edge_client.state_writer import StateWriter
from wire_protocol.errors import WireError
from wire_protocol.messages import Piece, PieceList, message_kind
from wire_protocol.signed import COORDINATOR_DOMAIN, bytes_to_sign, is_signed, parse_signed
from wire_protocol.topics import device_down, population_round, population_task

__all__ = ["CoordinatorVoice", "voice_of"]

_LOG = logging.getLogger(__name__)
_UNSIGNED: Final = frozenset({message_kind(Piece), message_kind(PieceList)})
"""Kinds whose content is checked by hashes that a signed message named."""
_MAX_POSITION_BYTES: Final = 100


class CoordinatorVoice:
    """Screens what comes on the coordinator's topics.

    Args:
        population: The population's name.
        device_id: The device's id.
        key: The coordinator's public key, 32 bytes; None believes everybody.
        position_path: Where the position of the newest task is kept.
        writer: Writes it.
    """

    def __init__(
        self, *, population: str, device_id: str, key: bytes | None, position_path: Path, writer: StateWriter
    ) -> None:
        self._key = None if key is None else Ed25519PublicKey.from_public_bytes(key)
        self._task_topic = population_task(population)
        self._round_topic = population_round(population)
        self._down_prefix = device_down(population, device_id, "")
        self._path = position_path
        self._writer = writer
        self._newest_task = (0, 0) if key is None else self._load()
        self.refused: collections.Counter[str] = collections.Counter()
        """``unsigned``, ``bad_signature`` or ``old_task`` -> how often."""

    def screen(self, event: LinkEvent) -> LinkEvent | None:
        """The event without its envelope; None if it is not to be believed."""
        if not isinstance(event, Incoming) or not self._is_the_coordinators(event.topic):
            return event
        if self._key is None:
            return Incoming(topic=event.topic, payload=_unwrapped(event.payload))
        kind = event.topic.removeprefix(self._down_prefix) if event.topic.startswith(self._down_prefix) else ""
        if kind in _UNSIGNED or (not event.payload and event.topic == self._task_topic):
            return event
        return self._verified(event, self._key)

    def sink(self, sink: EventSink) -> EventSink:
        """A sink for a link that hands on what may be believed. Called from the link's thread, as the sink itself."""

        def screened(event: LinkEvent) -> None:
            believed = self.screen(event)
            if believed is not None:
                sink(believed)

        return screened

    def _verified(self, event: Incoming, key: Ed25519PublicKey) -> Incoming | None:
        if not is_signed(event.payload):
            self._refuse("unsigned", event.topic)
            return None
        try:
            signed = parse_signed(event.payload)
            statement = bytes_to_sign(
                event.topic,
                epoch=signed.epoch,
                counter=signed.counter,
                message=signed.message,
                domain=COORDINATOR_DOMAIN,
            )
            key.verify(signed.signature, statement)
        except (WireError, InvalidSignature):
            self._refuse("bad_signature", event.topic)
            return None
        if event.topic == self._task_topic:
            if signed.position < self._newest_task:
                self._refuse("old_task", event.topic)
                return None
            if signed.position > self._newest_task:
                self._newest_task = signed.position
                self._store()
        return Incoming(topic=event.topic, payload=signed.message)

    def _is_the_coordinators(self, topic: str) -> bool:
        return topic in {self._task_topic, self._round_topic} or topic.startswith(self._down_prefix)

    def _refuse(self, why: str, topic: str) -> None:
        self.refused[why] += 1
        if self.refused[why] == 1:
            _LOG.error("coordinator_not_believed why=%s topic=%s (said once per cause)", why, topic)

    def _load(self) -> tuple[int, int]:
        data = self._writer.read(self._path, max_bytes=_MAX_POSITION_BYTES)
        if data is None:
            return (0, 0)
        try:
            epoch, counter = json.loads(data)
            return int(epoch), int(counter)
        except (ValueError, TypeError) as error:
            self._writer.quarantine(self._path, error)
            return (0, 0)

    def _store(self) -> None:
        try:
            self._writer.write(self._path, json.dumps(self._newest_task).encode())
        except OSError as error:
            # A broker could bring an older task back after the next start; nothing else is lost.
            _LOG.error("task_position_not_kept error=%r", str(error))


def _unwrapped(payload: bytes) -> bytes:
    if not is_signed(payload):
        return payload
    try:
        return parse_signed(payload).message
    except WireError:
        return payload


def voice_of(config: EdgeConfig, channel: DeviceChannel, *, position_path: Path) -> CoordinatorVoice:
    """What a device believes, by its configuration. Its writer is its own: it writes from the link's thread."""
    return CoordinatorVoice(
        population=channel.population,
        device_id=channel.device_id,
        key=config.broker.coordinator_key_bytes,
        position_path=position_path,
        writer=StateWriter(),
    )
