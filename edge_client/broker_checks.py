"""What `doctor` checks about the connection: the broker's port, its answer to a login, the coordinator's task."""

import contextlib
import logging
import queue
import secrets
import socket
import time
from collections.abc import Iterator
from typing import Final, TypeAlias

from broker_link.broker_url import parse_broker_url
from broker_link.link import Incoming, LinkDown, LinkEvent, LinkUp
from broker_link.paho_link import PahoLink
from edge_client.broker_access import broker_url_with_login, client_certificate
from edge_client.config import EdgeConfig
from edge_client.doctor import Check, CheckStatus, Finding
from edge_client.errors import ConfigError
from wire_protocol.errors import WireError
from wire_protocol.messages import TaskAnnouncement, decode_message
from wire_protocol.topics import population_task

__all__ = ["BROKER_CHECKS"]

_CONNECT_S: Final = 5.0
_LOGIN_S: Final = 10.0
_TASK_S: Final = 2.0

_LINK_LOG: Final = logging.getLogger("broker_link")
_Events: TypeAlias = "queue.SimpleQueue[LinkEvent]"


def check_broker_port(config: EdgeConfig) -> Finding:
    """Whether the broker's port takes a connection."""
    url = parse_broker_url(config.broker.url)
    try:
        _connect(config).close()
    except OSError as error:
        remedy = "is the broker running, the name right, a firewall in between? set broker.url"
        return Finding(name="broker_port", status=CheckStatus.FAIL, detail=f"{url}: {error}", remedy=remedy)
    return Finding(name="broker_port", status=CheckStatus.OK, detail=f"{url} takes connections")


def _connect(config: EdgeConfig) -> socket.socket:
    url = parse_broker_url(config.broker.url)
    return socket.create_connection((url.host, url.port), timeout=_CONNECT_S)


def check_broker_login(config: EdgeConfig) -> Finding:
    """Whether the broker speaks MQTT with us and lets us subscribe."""
    with _probe(config) as (_, problem):
        if problem:
            return _refused("broker_login", problem)
    detail = f"logged in to {parse_broker_url(config.broker.url)}"
    return Finding(name="broker_login", status=CheckStatus.OK, detail=detail)


def check_task(config: EdgeConfig) -> Finding:
    """Whether a coordinator has announced a task for this population."""
    with _probe(config) as (events, problem):
        return _refused("task", problem) if problem else _find_task(events, config.device.population)


@contextlib.contextmanager
def _probe(config: EdgeConfig) -> Iterator[tuple[_Events, str]]:
    """A connection that listens for the task; the text says why there is none, or is empty."""
    events: _Events = queue.SimpleQueue()
    try:
        url = broker_url_with_login(config.broker)
        _connect(config).close()
    except (ConfigError, OSError) as error:
        yield events, str(error)
        return
    link = PahoLink(
        url=url,
        client_id=f"{config.device.population}-doctor-{secrets.token_hex(4)}",
        subscriptions=(population_task(config.device.population),),
        sink=events.put,
        ca_file=config.broker.ca_file or None,
        certificate=client_certificate(config.broker),
    )
    ear = _Ear(events)
    _LINK_LOG.addHandler(ear)
    _LINK_LOG.propagate = False
    link.start()
    try:
        yield events, _wait_for_login(events)
    finally:
        link.stop()
        _LINK_LOG.propagate = True
        _LINK_LOG.removeHandler(ear)


class _Ear(logging.Handler):
    """Hears why the link was refused: only its log says so, for to the daemon it is one more reason to try again."""

    def __init__(self, events: _Events) -> None:
        super().__init__(level=logging.ERROR)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        """Turns an error of the link into an event."""
        self._events.put(LinkDown(reason=record.getMessage()))


def _refused(name: str, problem: str) -> Finding:
    remedy = "check broker.username, password_file and ca_file, and the broker's own log"
    return Finding(name=name, status=CheckStatus.FAIL, detail=problem, remedy=remedy)


def _wait_for_login(events: _Events) -> str:
    """Why there is no connection; empty if there is one."""
    try:
        event = events.get(timeout=_LOGIN_S)
    except queue.Empty:
        return f"the broker did not let us in within {_LOGIN_S:g} s"
    match event:
        case LinkUp():
            return ""
        case LinkDown():
            return f"the broker refused us: {event.reason}"
        case Incoming():
            # A retained task may overtake the answer to the subscription; it says as much.
            events.put(event)
            return ""


def _find_task(events: _Events, population: str) -> Finding:
    ends_at = time.monotonic() + _TASK_S
    while (left_s := ends_at - time.monotonic()) > 0:
        try:
            event = events.get(timeout=left_s)
        except queue.Empty:
            break
        if isinstance(event, Incoming) and event.payload:
            try:
                task = decode_message(event.payload, TaskAnnouncement)
            except WireError as error:
                remedy = "does the coordinator have another version?"
                return Finding(name="task", status=CheckStatus.FAIL, detail=str(error), remedy=remedy)
            return Finding(name="task", status=CheckStatus.OK, detail=f"task {task.task_id} is announced")
    detail = f"no coordinator has announced a task for population {population!r}"
    remedy = "start the coordinator, or check device.population"
    return Finding(name="task", status=CheckStatus.WARN, detail=detail, remedy=remedy)


BROKER_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("broker_port", check_broker_port),
    ("broker_login", check_broker_login),
    ("task", check_task),
)
"""Name and function of each check, in the order in which they are made."""
