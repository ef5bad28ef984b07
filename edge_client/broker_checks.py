"""What `doctor` checks about the connection: the broker's port, its answer to a login, the coordinator's task."""

import queue
import socket
import time
from typing import Final

from broker_link.broker_url import parse_broker_url
from broker_link.link import Incoming, LinkDown, LinkEvent, LinkUp
from edge_client.broker_access import broker_url_with_login
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


def check_broker_port(config: EdgeConfig) -> Finding:
    """Whether the broker's port takes a connection."""
    url = parse_broker_url(config.broker.url)
    try:
        socket.create_connection((url.host, url.port), timeout=_CONNECT_S).close()
    except OSError as error:
        remedy = "is the broker running, the name right, a firewall in between? set broker.url"
        return Finding(name="broker_port", status=CheckStatus.FAIL, detail=f"{url}: {error}", remedy=remedy)
    return Finding(name="broker_port", status=CheckStatus.OK, detail=f"{url} takes connections")


def check_broker_login(config: EdgeConfig) -> Finding:
    """Whether the broker speaks MQTT with us and lets us subscribe."""
    return _ask_broker(config, wants_task=False)


def check_task(config: EdgeConfig) -> Finding:
    """Whether a coordinator has announced a task for this population."""
    return _ask_broker(config, wants_task=True)


def _ask_broker(config: EdgeConfig, *, wants_task: bool) -> Finding:
    from broker_link.paho_link import PahoLink

    name = "task" if wants_task else "broker_login"
    events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
    topic = population_task(config.device.population)
    try:
        link = PahoLink(
            url=broker_url_with_login(config.broker),
            client_id=f"{config.device.population}-doctor-{time.time_ns() % 10**9}",
            subscriptions=(topic,),
            sink=events.put,
            ca_file=config.broker.ca_file or None,
        )
        link.start()
    except (ConfigError, OSError) as error:
        return Finding(name=name, status=CheckStatus.FAIL, detail=str(error), remedy="see the configuration")
    try:
        problem = _wait_for_login(events)
        if problem:
            remedy = "check broker.username, password_file, ca_file, and the broker's own log"
            return Finding(name=name, status=CheckStatus.FAIL, detail=problem, remedy=remedy)
        if not wants_task:
            detail = f"logged in to {parse_broker_url(config.broker.url)}"
            return Finding(name=name, status=CheckStatus.OK, detail=detail)
        return _find_task(events, config.device.population)
    finally:
        link.stop()


def _wait_for_login(events: "queue.SimpleQueue[LinkEvent]") -> str:
    """Why there is no connection; empty if there is one."""
    try:
        event = events.get(timeout=_LOGIN_S)
    except queue.Empty:
        return f"the broker did not let us in within {_LOGIN_S:g} s"
    match event:
        case LinkUp():
            return ""
        case LinkDown():
            return f"the broker closed the connection: {event.reason}"
        case Incoming():
            # A retained task may overtake the answer to the subscription; it says as much.
            events.put(event)
            return ""


def _find_task(events: "queue.SimpleQueue[LinkEvent]", population: str) -> Finding:
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
