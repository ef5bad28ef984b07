"""The MQTT topic tree. No other module spells a topic.

    fw/v1/<population>/task                        retained: the current task announcement
    fw/v1/<population>/round                       round closed notices, to everyone
    fw/v1/<population>/d/<device>/status           retained presence, and the device's last will
    fw/v1/<population>/d/<device>/up/<kind>        device -> coordinator
    fw/v1/<population>/d/<device>/down/<kind>      coordinator -> device

At most six slashes (AWS IoT Core allows seven). ``kind`` is the message's tag, so that an ACL or a person
with ``mosquitto_sub`` can tell messages apart without decoding them; a decoder checks that tag and topic agree.
"""

import dataclasses
from typing import Final

from wire_protocol.errors import MalformedMessage
from wire_protocol.identifiers import checked_identifier

__all__ = [
    "TOPIC_ROOT",
    "DeviceTopic",
    "device_down",
    "device_down_filter",
    "device_status",
    "device_up",
    "parse_device_topic",
    "population_round",
    "population_task",
    "status_filter",
    "up_filter",
]

TOPIC_ROOT: Final = "fw/v1"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DeviceTopic:
    """What a device's topic says. The coordinator takes the sender's id from here, never from a payload."""

    population: str
    device_id: str
    direction: str
    """``up``, ``down`` or ``status``."""
    kind: str
    """The message's tag; empty for ``status``."""


def population_task(population: str) -> str:
    """Topic of the retained task announcement."""
    return f"{TOPIC_ROOT}/{checked_identifier(population, kind='population')}/task"


def population_round(population: str) -> str:
    """Topic on which the end of a round is told to every device."""
    return f"{TOPIC_ROOT}/{checked_identifier(population, kind='population')}/round"


def _device(population: str, device_id: str) -> str:
    population = checked_identifier(population, kind="population")
    return f"{TOPIC_ROOT}/{population}/d/{checked_identifier(device_id, kind='device')}"


def device_status(population: str, device_id: str) -> str:
    """Topic of a device's retained presence and last will."""
    return f"{_device(population, device_id)}/status"


def device_up(population: str, device_id: str, kind: str) -> str:
    """Topic of one kind of message from a device."""
    return f"{_device(population, device_id)}/up/{kind}"


def device_down(population: str, device_id: str, kind: str) -> str:
    """Topic of one kind of message to a device."""
    return f"{_device(population, device_id)}/down/{kind}"


def device_down_filter(population: str, device_id: str) -> str:
    """Subscription filter for everything sent to one device."""
    return f"{_device(population, device_id)}/down/+"


def up_filter(population: str) -> str:
    """Subscription filter for everything the devices of a population send."""
    return f"{TOPIC_ROOT}/{checked_identifier(population, kind='population')}/d/+/up/+"


def status_filter(population: str) -> str:
    """Subscription filter for the presence of every device of a population."""
    return f"{TOPIC_ROOT}/{checked_identifier(population, kind='population')}/d/+/status"


def parse_device_topic(topic: str) -> DeviceTopic:
    """Splits a device's topic into its parts.

    Raises:
        MalformedMessage: The topic is not one of this tree's device topics.
        InvalidIdentifier: An id in it is not allowed.
    """
    parts = topic.split("/")
    match parts:
        case ["fw", "v1", population, "d", device_id, "status"]:
            direction, kind = "status", ""
        case ["fw", "v1", population, "d", device_id, ("up" | "down") as direction, kind]:
            pass
        case _:
            raise MalformedMessage(f"not a device topic: {topic[:200]!r}")
    return DeviceTopic(
        population=checked_identifier(population, kind="population"),
        device_id=checked_identifier(device_id, kind="device"),
        direction=direction,
        kind=kind,
    )
