"""Stands between the broker link and the coordinator: lets through what an enrolled device signed, and nothing else.

What comes out is what the coordinator has always read: a topic, and a message without its envelope. Refused bytes are
counted by reason and never decoded. Enrolments are answered here.
"""

import collections
import dataclasses
import enum
from collections.abc import Callable
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker_link.link import Incoming, LinkEvent
from coordinator.roster import DeviceRecord, DeviceState, HighWater, Roster
from wire_protocol.enrolment import EnrolmentOutcome, enrolment_statement
from wire_protocol.errors import WireError
from wire_protocol.messages import (
    Enrol,
    Enrolled,
    Message,
    decode_message,
    encode_message,
    message_kind,
)
from wire_protocol.signed import SignedMessage, bytes_to_sign, is_signed, parse_signed
from wire_protocol.topics import DeviceTopic, device_down, parse_device_topic

__all__ = ["DeviceGuard", "GuardRefusal", "OpenGuard", "RosterGuard"]

_REFRESH_S: Final = 2.0
_ENROL: Final = message_kind(Enrol)


class GuardRefusal(enum.Enum):
    """Why bytes were refused before they were decoded."""

    UNSIGNED = "unsigned"
    MALFORMED = "malformed"
    """A topic that is no device's of this population, or a damaged envelope."""
    UNKNOWN_DEVICE = "unknown_device"
    REVOKED = "revoked"
    BAD_SIGNATURE = "bad_signature"
    """Another key, another topic, or altered bytes."""
    STALE = "stale"
    """Not after what was accepted last: a repetition, or a replay."""
    FALLING_EPOCH = "falling_epoch"
    """Signed in an epoch that is over: a replay, or a second machine with the same key."""


class DeviceGuard(Protocol):
    """What the coordinator's owner asks about each event and, regularly, about the roster."""

    def screen(self, event: LinkEvent) -> LinkEvent | None:
        """The event as the coordinator may see it; None if it may not."""

    def refresh(self, *, now: float) -> list[str]:
        """Lets time pass, at monotonic ``now`` in seconds; returns the devices revoked since the last call."""

    def close(self) -> None:
        """Keeps what is to be kept."""


class OpenGuard:
    """Believes everybody; takes signed envelopes off without a look. For loopback and trials."""

    def screen(self, event: LinkEvent) -> LinkEvent | None:
        """The event, without its envelope if it has a whole one."""
        if not isinstance(event, Incoming) or not is_signed(event.payload):
            return event
        try:
            return Incoming(topic=event.topic, payload=parse_signed(event.payload).message)
        except WireError:
            return event  # the coordinator counts it as what it is

    def refresh(self, *, now: float) -> list[str]:
        """Nobody is ever revoked."""
        del now
        return []

    def close(self) -> None:
        """Nothing to keep."""


@dataclasses.dataclass(kw_only=True, slots=True)
class _Known:
    """An enrolled device in memory."""

    public_key: bytes
    key: Ed25519PublicKey
    is_active: bool
    position: tuple[int, int]
    num_falling_epochs: int


class RosterGuard:
    """Checks everything against a roster.

    What has been accepted is written to the roster at the latest ``_REFRESH_S`` after it came and when the guard is
    closed. A coordinator that is killed may take again what came in its last two seconds; see
    ``docs/explanation/identity.md`` for why that does no harm.

    Args:
        roster: The roster.
        population: The coordinator's population.
        publish: Sends an answer to an enrolment: (topic, payload).
        wall_clock: Time of day, in seconds since 1970, for tokens.

    Raises:
        RosterUnusable: It cannot be read.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        population: str,
        publish: Callable[[str, bytes], None],
        wall_clock: Callable[[], float],
    ) -> None:
        self._roster = roster
        self._population = population
        self._publish = publish
        self._wall_clock = wall_clock
        self._known: dict[str, _Known] = {}
        self._dirty: set[str] = set()
        self._revoked_news: set[str] = set()
        self._data_version = roster.data_version
        self._refreshed_at = float("-inf")
        self.refusals: collections.Counter[GuardRefusal] = collections.Counter()
        self.enrolments: collections.Counter[EnrolmentOutcome] = collections.Counter()
        self._load()

    def screen(self, event: LinkEvent) -> LinkEvent | None:
        """The event without its envelope, if its sender is who the topic says, is active, and says it for the first time."""
        if not isinstance(event, Incoming):
            return event
        refusal = self._screen(event)
        if isinstance(refusal, GuardRefusal):
            self.refusals[refusal] += 1
            return None
        return refusal

    def refresh(self, *, now: float) -> list[str]:
        """Every two seconds: writes what has been accepted, and reads what operators have changed.

        Returns:
            Devices that have been revoked since the last call; at the first call, all that are.

        Raises:
            RosterUnusable: It cannot be read or written: the coordinator must not go on without it.
        """
        if now - self._refreshed_at >= _REFRESH_S:
            self._refreshed_at = now
            self._save()
            version = self._roster.data_version
            if version != self._data_version:
                self._data_version = version
                self._load()
        news, self._revoked_news = sorted(self._revoked_news), set()
        return news

    def close(self) -> None:
        """Writes what has been accepted, and closes the roster."""
        self._save()
        self._roster.close()

    def _screen(self, event: Incoming) -> Incoming | GuardRefusal | None:
        try:
            topic = parse_device_topic(event.topic)
            if topic.population != self._population or topic.direction == "down":
                return GuardRefusal.MALFORMED
            if not is_signed(event.payload):
                return GuardRefusal.UNSIGNED
            signed = parse_signed(event.payload)
        except WireError:
            return GuardRefusal.MALFORMED
        if topic.direction == "up" and topic.kind == _ENROL:
            return self._enrol(topic, event.topic, signed)
        known = self._known.get(topic.device_id)
        if known is None:
            return GuardRefusal.UNKNOWN_DEVICE
        if not known.is_active:
            return GuardRefusal.REVOKED
        if not _is_signed_by(known.key, event.topic, signed):
            return GuardRefusal.BAD_SIGNATURE
        refusal = self._presence(known, signed) if topic.direction == "status" else self._advance(topic, known, signed)
        return refusal or Incoming(topic=event.topic, payload=signed.message)

    def _advance(self, topic: DeviceTopic, known: _Known, signed: SignedMessage) -> GuardRefusal | None:
        """Moves the device's high-water mark, or says why not."""
        if signed.position > known.position:
            known.position = signed.position
            self._dirty.add(topic.device_id)
            return None
        if signed.epoch < known.position[0]:
            known.num_falling_epochs += 1
            self._dirty.add(topic.device_id)
            return GuardRefusal.FALLING_EPOCH
        return GuardRefusal.STALE

    @staticmethod
    def _presence(known: _Known, signed: SignedMessage) -> GuardRefusal | None:
        """Presence is signed before its time (a last will) and kept by the broker: only its epoch can be asked for."""
        return GuardRefusal.STALE if signed.epoch < known.position[0] else None

    def _enrol(self, topic: DeviceTopic, name: str, signed: SignedMessage) -> GuardRefusal | None:
        try:
            request = decode_message(signed.message, Enrol)
        except WireError:
            return GuardRefusal.MALFORMED
        key = Ed25519PublicKey.from_public_bytes(request.public_key)
        if not _is_signed_by(key, name, signed):
            return GuardRefusal.BAD_SIGNATURE
        outcome = self._judge(topic, request, signed)
        self.enrolments[outcome] += 1
        answer: Message = Enrolled(nonce=request.nonce, outcome=outcome)
        down = device_down(self._population, topic.device_id, message_kind(answer))
        self._publish(down, encode_message(answer))
        return None

    def _judge(self, topic: DeviceTopic, request: Enrol, signed: SignedMessage) -> EnrolmentOutcome:
        token = self._roster.token(request.token_id)
        if token is None:
            return EnrolmentOutcome.UNKNOWN_TOKEN
        statement = enrolment_statement(
            population=self._population,
            device_id=topic.device_id,
            token_id=request.token_id,
            public_key=request.public_key,
            nonce=request.nonce,
        )
        if not _is_valid(Ed25519PublicKey.from_public_bytes(token.public_key), request.proof, statement):
            return EnrolmentOutcome.UNKNOWN_TOKEN
        now = self._wall_clock()
        record = DeviceRecord(
            device_id=topic.device_id,
            public_key=request.public_key,
            state=DeviceState.ACTIVE,
            enrolled_at=now,
            token_id=request.token_id,
            revoked_at=None,
            high_water=HighWater(epoch=signed.epoch, counter=signed.counter),
        )
        outcome = self._roster.enrol(record, population=self._population, now=now)
        if outcome is EnrolmentOutcome.ACCEPTED:
            self._load()
        return outcome

    def _save(self) -> None:
        marks = []
        for device_id in sorted(self._dirty):
            known = self._known[device_id]
            epoch, counter = known.position
            mark = HighWater(epoch=epoch, counter=counter, num_falling_epochs=known.num_falling_epochs)
            marks.append((device_id, known.public_key, mark))
        if marks:
            self._roster.raise_high_water(self._population, marks)
        self._dirty.clear()

    def _load(self) -> None:
        """Takes the roster as it is now; of a device that has kept its key, the higher mark stands."""
        before, self._known = self._known, {}
        for record in self._roster.devices(self._population):
            mark, old = record.high_water, before.get(record.device_id)
            position, num_falling = (mark.epoch, mark.counter), mark.num_falling_epochs
            if old is not None and old.public_key == record.public_key:
                position, num_falling = max(position, old.position), max(num_falling, old.num_falling_epochs)
            is_active = record.state is DeviceState.ACTIVE
            self._known[record.device_id] = _Known(
                public_key=record.public_key,
                key=Ed25519PublicKey.from_public_bytes(record.public_key),
                is_active=is_active,
                position=position,
                num_falling_epochs=num_falling,
            )
            if not is_active and (old is None or old.is_active):
                self._revoked_news.add(record.device_id)
            elif is_active:
                self._revoked_news.discard(record.device_id)
        self._dirty &= self._known.keys()


def _is_signed_by(key: Ed25519PublicKey, topic: str, signed: SignedMessage) -> bool:
    covered = bytes_to_sign(topic, epoch=signed.epoch, counter=signed.counter, message=signed.message)
    return _is_valid(key, signed.signature, covered)


def _is_valid(key: Ed25519PublicKey, signature: bytes, data: bytes) -> bool:
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True
