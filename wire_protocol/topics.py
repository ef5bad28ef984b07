"""The MQTT topic tree. No other module spells a topic.

    fw/v1/<population>/task                        retained: the current task announcement
    fw/v1/<population>/round                       round closed notices, to everyone
    fw/v1/<population>/release/<file>              retained: signed release metadata, by the file's name
    fw/v1/<population>/piece/<sha256>/<index>      retained: one piece of a released blob; ``list`` for its digests
    fw/v1/<population>/d/<device>/status           retained presence, and the device's last will
    fw/v1/<population>/d/<device>/up/<kind>        device -> coordinator
    fw/v1/<population>/d/<device>/down/<kind>      coordinator -> device

At most six slashes (AWS IoT Core allows seven). ``kind`` is the message's tag, so that an ACL or a person
with ``mosquitto_sub`` can tell messages apart without decoding them; a decoder checks that tag and topic agree.
"""

import dataclasses
import re
from typing import Final

from wire_protocol.blobs import DIGEST_BYTES
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
    "parse_release_piece",
    "population_round",
    "population_task",
    "release_file",
    "release_file_filter",
    "release_file_name",
    "release_piece",
    "release_piece_list",
    "release_piece_prefix",
    "status_filter",
    "up_filter",
]

TOPIC_ROOT: Final = "fw/v1"
_PIECE_LIST: Final = "list"
_RELEASE_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,6}")


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


def release_file(population: str, file_name: str) -> str:
    """Topic of one signed release file, such as ``timestamp.json``.

    Raises:
        InvalidIdentifier: The population may not be part of a topic.
        MalformedMessage: The name may not.
    """
    if not _RELEASE_FILE.fullmatch(file_name):
        raise MalformedMessage(f"not the name of a release file: {file_name[:200]!r}")
    return f"{TOPIC_ROOT}/{checked_identifier(population, kind='population')}/release/{file_name}"


def release_file_filter(population: str) -> str:
    """Subscription filter for all signed release files."""
    return f"{TOPIC_ROOT}/{checked_identifier(population, kind='population')}/release/+"


def release_file_name(topic: str) -> str:
    """The file's name in a release topic.

    Raises:
        MalformedMessage: The topic is not one of a release file.
    """
    match topic.split("/"):
        case ["fw", "v1", _, "release", name] if _RELEASE_FILE.fullmatch(name):
            return name
    raise MalformedMessage(f"not a release topic: {topic[:200]!r}")


def release_piece_prefix(population: str) -> str:
    """How every topic of a released blob begins."""
    return f"{TOPIC_ROOT}/{checked_identifier(population, kind='population')}/piece/"


def release_piece(population: str, sha256: bytes, index: int) -> str:
    """Topic of one piece of a released blob."""
    return f"{_blob(population, sha256)}/{index}"


def release_piece_list(population: str, sha256: bytes) -> str:
    """Topic of the piece digests of a released blob."""
    return f"{_blob(population, sha256)}/{_PIECE_LIST}"


def parse_release_piece(topic: str) -> tuple[bytes, int | None]:
    """The blob's hash and the piece's index in a topic; None for the list of digests.

    Raises:
        MalformedMessage: The topic is not one of a released blob.
    """
    match topic.split("/"):
        case ["fw", "v1", _, "piece", digest, index] if re.fullmatch(f"[0-9a-f]{{{2 * DIGEST_BYTES}}}", digest):
            if index == _PIECE_LIST:
                return bytes.fromhex(digest), None
            if _INDEX.fullmatch(index):
                return bytes.fromhex(digest), int(index)
    raise MalformedMessage(f"not a topic of a released blob: {topic[:200]!r}")


def _blob(population: str, sha256: bytes) -> str:
    return f"{release_piece_prefix(population)}{sha256.hex()}"
