"""Enrols this device: makes its key, shows the coordinator its token's signature over it, and waits for the answer."""

import os
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_link.link import Incoming, LinkEvent, LinkUp
from edge_client.channel import DeviceChannel
from edge_client.config import EdgeConfig
from edge_client.device_link import MakeLink, client_version, paho_link
from edge_client.errors import EnrolmentRefused
from edge_client.identity import DeviceIdentity, IdentityStore
from edge_client.state_dir import StateDir
from edge_client.state_writer import StateWriter
from wire_protocol.enrolment import EnrolmentOutcome, EnrolmentToken, enrolment_statement
from wire_protocol.errors import WireError
from wire_protocol.messages import Enrol, Enrolled, decode_message, encode_message, message_kind
from wire_protocol.topics import device_down, device_up

__all__ = ["REMEDIES", "enrol", "enrolment_request"]

_REPEAT_S: Final = 2.0

REMEDIES: Final = {
    EnrolmentOutcome.UNKNOWN_TOKEN: "copy the token whole, and check device.population",
    EnrolmentOutcome.TOKEN_USED: "ask for a new token",
    EnrolmentOutcome.TOKEN_EXPIRED: "ask for a new token",
    EnrolmentOutcome.OTHER_DEVICE: "set device.id to the id that the token was made for",
    EnrolmentOutcome.ALREADY_ENROLLED: "another key has this id: choose another, or have it revoked",
    EnrolmentOutcome.REVOKED: "delete identity.key from the state directory, and ask for a token made for this device id",
}
"""What the device's owner can do about a refusal."""


def enrolment_request(
    token: EnrolmentToken, *, population: str, device_id: str, public_key: bytes, nonce: bytes
) -> Enrol:
    """The message that asks for enrolment."""
    statement = enrolment_statement(
        population=population, device_id=device_id, token_id=token.token_id, public_key=public_key, nonce=nonce
    )
    proof = Ed25519PrivateKey.from_private_bytes(token.secret).sign(statement)
    return Enrol(nonce=nonce, token_id=token.token_id, public_key=public_key, proof=proof)


def enrol(config: EdgeConfig, token: EnrolmentToken, *, timeout_s: float, make_link: MakeLink = paho_link) -> str:
    """Enrols the device and returns its id. The daemon must not be running.

    Raises:
        EnrolmentRefused: The coordinator said no, or nothing within ``timeout_s``.
        StorageError: The state directory cannot be used, or a daemon is using it.
        IdentityError: The key that is there cannot be used.
    """
    state_dir = StateDir(Path(config.device.state_dir))
    state_dir.lock()
    try:
        store = IdentityStore.of_this_process(Path(config.device.state_dir), writer=StateWriter())
        identity = store.load_or_make()
        channel = DeviceChannel(
            population=config.device.population,
            device_id=state_dir.device_id(config.device.id),
            client_version=client_version(),
        )
        channel.seal = identity.seal
        outcome = _ask(config, channel, _request(token, channel, identity), timeout_s, make_link)
    finally:
        state_dir.unlock()
    if outcome is not EnrolmentOutcome.ACCEPTED:
        raise EnrolmentRefused(f"not enrolled: {outcome.value}; {REMEDIES[outcome]}")
    return channel.device_id


def _request(token: EnrolmentToken, channel: DeviceChannel, identity: DeviceIdentity) -> Enrol:
    return enrolment_request(
        token,
        population=channel.population,
        device_id=channel.device_id,
        public_key=identity.public_key,
        nonce=os.urandom(16),
    )


def _ask(
    config: EdgeConfig, channel: DeviceChannel, request: Enrol, timeout_s: float, make_link: MakeLink
) -> EnrolmentOutcome:
    events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    link = make_link(config, channel, events.put)
    topic = device_up(channel.population, channel.device_id, message_kind(request))
    link.start()
    try:
        return _wait(
            events,
            answer_topic=device_down(channel.population, channel.device_id, message_kind(Enrolled)),
            nonce=request.nonce,
            send=lambda: link.publish(topic, channel.seal(topic, encode_message(request))),
            ends_at=time.monotonic() + timeout_s,
        )
    finally:
        link.stop()


def _wait(
    events: "queue.SimpleQueue[LinkEvent]", *, answer_topic: str, nonce: bytes, send: Callable[[], None], ends_at: float
) -> EnrolmentOutcome:
    is_connected = False
    while (left_s := ends_at - time.monotonic()) > 0:
        try:
            event = events.get(timeout=min(left_s, _REPEAT_S))
        except queue.Empty:
            send()
            continue
        if isinstance(event, LinkUp):
            is_connected = True
            send()
        elif isinstance(event, Incoming) and event.topic == answer_topic:
            try:
                answer = decode_message(event.payload, Enrolled)
            except WireError:
                continue
            if answer.nonce == nonce:
                return answer.outcome
    if not is_connected:
        raise EnrolmentRefused("the broker could not be reached: run flockwise edge doctor")
    raise EnrolmentRefused("no coordinator answered: is it running, with a roster, for this population?")
