"""Stands between the broker link and the coordinator: lets through what an enrolled device signed, and nothing else.

What comes out is what the coordinator has always read: a topic, and a message without its envelope. Refused bytes are
counted by reason and never decoded. Enrolments are answered here.
"""

import collections
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker_link.link import Incoming, LinkEvent
from coordinator.message_order import MessageOrder
from coordinator.refusals import NOBODY, GuardRefusal, RefusalTally
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

__all__ = ["DeviceGuard", "MakeGuard", "OpenGuard", "RosterGuard", "open_guard", "roster_guard"]

_LOG = logging.getLogger(__name__)
_REFRESH_S: Final = 2.0
_ENROL: Final = message_kind(Enrol)


class DeviceGuard(Protocol):
    """What the coordinator's owner asks about each event and, regularly, about the roster."""

    @property
    def refusals(self) -> Mapping[GuardRefusal, int]:
        """What has been refused since the start, by reason."""

    def screen(self, event: LinkEvent) -> LinkEvent | None:
        """The event as the coordinator may see it; None if it may not."""

    def refresh(self, *, now: float) -> list[str]:
        """Lets time pass, at monotonic ``now`` in seconds; returns the devices revoked since the last call."""

    def close(self) -> None:
        """Keeps what is to be kept."""


class OpenGuard:
    """Believes everybody; takes signed envelopes off without a look. For loopback and trials."""

    @property
    def refusals(self) -> Mapping[GuardRefusal, int]:
        """Nothing is refused."""
        return {}

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
    order: MessageOrder


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
        self._expelled_news: set[str] = set()
        self._data_version = roster.data_version
        self._refreshed_at = float("-inf")
        self._tally = RefusalTally()
        self.enrolments: collections.Counter[EnrolmentOutcome] = collections.Counter()
        self._load()

    @property
    def refusals(self) -> Mapping[GuardRefusal, int]:
        """What has been refused since the start, by reason."""
        return self._tally.totals

    def screen(self, event: LinkEvent) -> LinkEvent | None:
        """The event without its envelope, if its sender is who the topic says, is active, and says it for the first time."""
        if not isinstance(event, Incoming):
            return event
        found = self._screen(event)
        if isinstance(found, GuardRefusal):
            self._tally.note(found, self._enrolled_sender(event.topic))
            return None
        return found

    def refresh(self, *, now: float) -> list[str]:
        """Every two seconds: writes what has been accepted and refused, and reads what operators have changed.

        Returns:
            Devices that have been revoked, or whose id has another key, since the last call; at the first call, all
            that are revoked.

        Raises:
            RosterUnusable: It cannot be read or written: the coordinator must not go on without it.
        """
        if now - self._refreshed_at >= _REFRESH_S:
            self._refreshed_at = now
            self._save()
            self._log_refusals(now)
            version = self._roster.data_version
            if version != self._data_version:
                self._data_version = version
                self._load()
        news, self._expelled_news = sorted(self._expelled_news), set()
        return news

    def close(self) -> None:
        """Writes what has been accepted and refused, and closes the roster."""
        self._log_refusals(math.inf)
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
        if topic.direction == "status":
            refusal = known.order.take_presence(signed)
        else:
            refusal = known.order.take(signed)
            if refusal is None:
                self._dirty.add(topic.device_id)
        return refusal or Incoming(topic=event.topic, payload=signed.message)

    def _enrolled_sender(self, topic: str) -> str:
        """The device that a topic names, if it is enrolled. Whether it was the sender, nobody knows."""
        try:
            device_id = parse_device_topic(topic).device_id
        except WireError:
            return NOBODY
        return device_id if device_id in self._known else NOBODY

    def _log_refusals(self, now: float) -> None:
        for notice in self._tally.notices(now=now):
            _LOG.warning(
                "messages_refused reason=%s num=%d num_total=%d last_device_id=%s",
                *(notice.reason.value, notice.num, notice.num_total, notice.device_id or "(none that is enrolled)"),
            )

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
        self._save()  # what was counted of an earlier key with this id must not be laid at the door of the new one
        outcome = self._roster.enrol(record, population=self._population, now=now)
        known = self._known.get(topic.device_id)
        if outcome is EnrolmentOutcome.ACCEPTED and (known is None or known.public_key != record.public_key):
            self._load()
        return outcome

    def _save(self) -> None:
        marks = []
        for device_id in sorted(self._dirty):
            known = self._known[device_id]
            epoch, counter = known.order.position
            marks.append((device_id, known.public_key, HighWater(epoch=epoch, counter=counter)))
        refusals = {(device_id, reason.value): num for (device_id, reason), num in self._tally.take_unsaved().items()}
        if marks or refusals:
            self._roster.keep(self._population, marks, refusals, now=self._wall_clock())
        self._dirty.clear()

    def _load(self) -> None:
        """Takes the roster as it is now; of a device that has kept its key, the higher mark stands."""
        before, self._known = self._known, {}
        for record in self._roster.devices(self._population):
            old = before.get(record.device_id)
            is_same_key = old is not None and old.public_key == record.public_key
            order = old.order if old is not None and is_same_key else MessageOrder((0, 0))
            order.position = max(order.position, (record.high_water.epoch, record.high_water.counter))
            is_active = record.state is DeviceState.ACTIVE
            self._known[record.device_id] = _Known(
                public_key=record.public_key,
                key=Ed25519PublicKey.from_public_bytes(record.public_key),
                is_active=is_active,
                order=order,
            )
            if old is not None and not is_same_key:
                # What the old key has checked in for, or has half sent, is not the new one's.
                self._expelled_news.add(record.device_id)
            elif not is_active and (old is None or old.is_active):
                self._expelled_news.add(record.device_id)
        self._dirty &= self._known.keys()


MakeGuard: TypeAlias = Callable[[Callable[[str, bytes], None]], DeviceGuard]
"""Makes a guard, given how to send an answer to an enrolment: (topic, payload)."""


def open_guard(publish: Callable[[str, bytes], None]) -> DeviceGuard:
    """A guard that believes everybody."""
    del publish
    _LOG.warning("devices_not_authenticated: whoever can publish at the broker can report as any device")
    return OpenGuard()


def roster_guard(roster_file: Path, *, population: str, wall_clock: Callable[[], float]) -> MakeGuard:
    """What makes a guard over a roster file.

    Args:
        roster_file: The roster.
        population: The coordinator's population.
        wall_clock: Time of day, in seconds since 1970.
    """
    return lambda publish: RosterGuard(
        Roster(roster_file), population=population, publish=publish, wall_clock=wall_clock
    )


def _is_signed_by(key: Ed25519PublicKey, topic: str, signed: SignedMessage) -> bool:
    covered = bytes_to_sign(topic, epoch=signed.epoch, counter=signed.counter, message=signed.message)
    return _is_valid(key, signed.signature, covered)


def _is_valid(key: Ed25519PublicKey, signature: bytes, data: bytes) -> bool:
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True
