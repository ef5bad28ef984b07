"""What `doctor` checks by logging in: the broker's answers to what a device must, and must not be able to, do.

While the daemon runs these checks are skipped: many brokers know one connection per login, and would end the daemon's.
Nothing that is sent here is retained, and a coordinator counts it as a message it does not know.
"""

import functools
import secrets
import time
from typing import Final

from broker_link.broker_probe import BrokerProbe
from broker_link.broker_url import parse_broker_url
from broker_link.errors import LinkError, ProbeFailed
from edge_client.broker_access import broker_url_with_login, client_certificate
from edge_client.channel import DeviceChannel
from edge_client.checks.network import port_problem
from edge_client.checks.state import daemon_pid, state_path
from edge_client.doctor import Check, Finding, Subject, fail, ok, skip, warn
from edge_client.errors import ConfigError
from wire_protocol.errors import WireError
from wire_protocol.limits import DEFAULT_PIECE_BYTES, PIECE_OVERHEAD_BYTES
from wire_protocol.messages import TaskAnnouncement, decode_message
from wire_protocol.signed import SIGNED_OVERHEAD_BYTES
from wire_protocol.topics import device_down, device_down_filter, device_up, population_task, status_filter, up_filter

__all__ = ["BROKER_CHECKS"]

_ANSWER_S: Final = 10.0
_TASK_S: Final = 1.0
_ECHO_S: Final = 1.0
_SLOW_S: Final = 1.0
_NUM_TRIPS: Final = 3
_KIND: Final = "doctor"
_NEEDED_BYTES: Final = DEFAULT_PIECE_BYTES + PIECE_OVERHEAD_BYTES + SIGNED_OVERHEAD_BYTES
_ACL_REMEDY: Final = "give the broker an ACL by pattern: deploy/mosquitto/acl of the source tree is one"
_LOGIN_REMEDY: Final = "check broker.username, password_file, cert_file and ca_file, and the broker's own log"


def _obstacle(subject: Subject) -> str:
    """Why there can be no login now; empty if there can."""
    pid = daemon_pid(subject)
    if pid is not None:
        return f"the daemon (process {pid or '?'}) uses this login; stop it to check more"
    return "the port takes no connections" if port_problem(subject) else ""


def _probe(subject: Subject) -> BrokerProbe:
    section = subject.config.broker
    return BrokerProbe(
        url=broker_url_with_login(section),
        client_id=f"{subject.config.device.population}-doctor-{secrets.token_hex(4)}",
        ca_file=section.ca_file or None,
        certificate=client_certificate(section),
        timeout_s=_ANSWER_S,
    )


def _device_id(subject: Subject) -> str:
    """The configured id, the one that was made up, or one for now. None is kept."""
    if subject.config.device.id:
        return subject.config.device.id
    try:
        return (state_path(subject) / "device_id").read_text().strip() or "doctor"
    except OSError:
        return "doctor"


def check_broker_login(subject: Subject) -> Finding:
    """Whether the broker speaks MQTT with us, lets us in, and lets us subscribe to what a device must hear."""
    obstacle = _obstacle(subject)
    if obstacle:
        return skip(obstacle)
    channel = DeviceChannel(
        population=subject.config.device.population, device_id=_device_id(subject), client_version=_KIND
    )
    try:
        with _probe(subject) as probe:
            granted = probe.subscribe(channel.subscriptions)
            version = "MQTT 5" if probe.is_version_5 else "MQTT 3.1.1"
    except (ConfigError, LinkError) as error:
        return fail(str(error), _LOGIN_REMEDY)
    refused = [name for name, is_granted in zip(channel.subscriptions, granted, strict=True) if not is_granted]
    if refused:
        return fail(f"the broker lets us not hear {', '.join(refused)}", _ACL_REMEDY)
    return ok(f"logged in to {parse_broker_url(subject.config.broker.url)}, {version}")


def check_round_trip(subject: Subject) -> Finding:
    """Whether the broker takes what a device must send, and how long its answers take."""
    topic = device_up(subject.config.device.population, _device_id(subject), _KIND)
    try:
        with _probe(subject) as probe:
            answers = [probe.publish(topic, b"") for _ in range(_NUM_TRIPS)]
    except (ConfigError, LinkError) as error:
        return fail(f"{topic}: {error}", _LOGIN_REMEDY)
    if answers[0].refusal:
        return fail(f"the broker does not let us publish to {topic}: {answers[0].refusal}", _ACL_REMEDY)
    best_s = min(answer.round_trip_s for answer in answers)
    detail = f"an answer takes {best_s * 1000:.0f} ms"
    if best_s < _SLOW_S:
        return ok(detail)
    return warn(detail, "the network is slow: rounds with a short deadline will miss this device's reports")


def check_isolation(subject: Subject) -> Finding:
    """Whether this login can write or read another device's topics. It must not."""
    population = subject.config.device.population
    other = f"doctor-{secrets.token_hex(6)}"
    forged = (device_up(population, other, _KIND), device_down(population, other, _KIND))
    own = device_up(population, _device_id(subject), _KIND)
    try:
        with _probe(subject) as probe:
            probe.subscribe((up_filter(population), status_filter(population), device_down_filter(population, other)))
            taken = [topic for topic in forged if not probe.publish(topic, b"").refusal]
            probe.publish(own, b"")
            heard = [message.topic for message in probe.heard(wait_s=_ECHO_S)]
            says_refusals = probe.is_version_5
    except (ConfigError, LinkError) as error:
        return fail(str(error), _LOGIN_REMEDY)
    leaks = [f"may read {heard[0]}"] if heard else []
    leaks += [f"may write {taken[0]}"] if taken and (says_refusals or taken[0] in heard) else []
    if leaks:
        return warn(f"this login {' and '.join(leaks)}", _ACL_REMEDY)
    if not says_refusals:
        return ok("nothing of other devices was heard; what may be written the broker (MQTT 3.1.1) does not say")
    return ok("other devices' topics are out of reach")


def check_packet_size(subject: Subject) -> Finding:
    """Whether the broker takes a message as large as a piece: it says so, and is sent one."""
    topic = device_up(subject.config.device.population, _device_id(subject), _KIND)
    remedy = f"let the broker take packets of {_NEEDED_BYTES:,} bytes (mosquitto: max_packet_size, message_size_limit)"
    try:
        with _probe(subject) as probe:
            limit = probe.max_packet_bytes
            if limit is not None and limit < _NEEDED_BYTES + len(topic):
                return fail(f"the broker takes packets of {limit:,} bytes at most", remedy)
            refusal = probe.publish(topic, bytes(_NEEDED_BYTES)).refusal
    except ProbeFailed as error:
        return fail(f"a message of {_NEEDED_BYTES:,} bytes: {error}", remedy)
    if refusal:
        return fail(f"a message of {_NEEDED_BYTES:,} bytes is refused: {refusal}", remedy)
    return ok(f"a message of {_NEEDED_BYTES:,} bytes was taken; the limit is {limit or 'not told'}")


def check_task(subject: Subject) -> Finding:
    """Whether a coordinator has announced a task for this population."""
    population = subject.config.device.population
    with _probe(subject) as probe:
        probe.subscribe((population_task(population),))
        ends_at = time.monotonic() + _TASK_S
        heard = probe.heard(wait_s=0.1)
        while not heard and time.monotonic() < ends_at:
            heard = probe.heard(wait_s=0.1)
    if not heard or not heard[0].payload:
        detail = f"no coordinator has announced a task for population {population!r}"
        return warn(detail, "start the coordinator, or check device.population")
    try:
        task = decode_message(heard[0].payload, TaskAnnouncement)
    except WireError as error:
        return fail(str(error), "does the coordinator have another version? install the same on both sides")
    return ok(f"task {task.task_id} is announced")


def _when_let_in(check: Check) -> Check:
    """The check, if the broker lets us in at all; otherwise the login's own check says why not."""

    @functools.wraps(check)
    def guarded(subject: Subject) -> Finding:
        obstacle = _obstacle(subject)
        if obstacle:
            return skip(obstacle)
        try:
            with _probe(subject):
                pass
        except (ConfigError, LinkError):
            return skip("the broker does not let us in: see the check 'broker_login'")
        return check(subject)

    return guarded


BROKER_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("broker_login", check_broker_login),
    ("round_trip", _when_let_in(check_round_trip)),
    ("isolation", _when_let_in(check_isolation)),
    ("packet_size", _when_let_in(check_packet_size)),
    ("task", _when_let_in(check_task)),
)
"""Name and function of each check, in the order in which they are made."""
