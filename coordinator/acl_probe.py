"""Asks a real broker whether its rights hold: every login tries to hear and to say what is another's.

N x N: each device subscribes to whatever it can think of and publishes on everybody's topics, in a population made up
for this; the coordinator's login says on each device's topics what that device alone may hear. What arrives where it
must not, or is taken where it must be refused, is a leak; what does not arrive where it must is missing. A broker that
speaks MQTT 5 says what it refuses; of an older one only what arrives is seen.
"""

import contextlib
import dataclasses
import enum
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Self

from broker_link.broker_probe import BrokerProbe
from broker_link.errors import ProbeFailed
from broker_link.link import topic_matches
from broker_link.tls import ClientCertificate
from coordinator.errors import InvalidConfig
from wire_protocol.identifiers import checked_identifier
from wire_protocol.topics import (
    device_down,
    device_status,
    device_up,
    population_round,
    population_task,
    status_filter,
    up_filter,
)

__all__ = ["AclFinding", "AclReport", "BrokerLogin", "Fault", "probe_acl"]

_COORDINATOR: Final = "coordinator"
_KIND: Final = "acl-probe"
_PATIENCE_S: Final = 10.0
_SETTLE_S: Final = 0.5
_NAME_BYTES: Final = 64


class Fault(enum.Enum):
    """What is wrong with one right."""

    HEARS = "hears"
    """A leak: it was given what is another's."""
    SAYS = "says"
    """A leak: what it may not say was taken or delivered."""
    CANNOT_HEAR = "cannot_hear"
    """Missing: what it must hear did not come."""
    CANNOT_SAY = "cannot_say"
    """Missing: what it must be able to say was refused, or did not come."""

    @property
    def is_leak(self) -> bool:
        """Whether somebody has more than his rights, not less."""
        return self in {Fault.HEARS, Fault.SAYS}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BrokerLogin:
    """How one client connects."""

    url: str
    """With user and password in it, if that is how."""
    ca_file: str | None = None
    certificate: ClientCertificate | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AclFinding:
    """One wrong right."""

    login: str
    fault: Fault
    topic: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AclReport:
    """What came out."""

    findings: tuple[AclFinding, ...]
    num_attempts: int
    """Messages that were sent where they must not go."""
    is_version_5: bool
    """Whether the broker said what it refused."""

    @property
    def has_leak(self) -> bool:
        """Whether any login has more than its rights."""
        return any(finding.fault.is_leak for finding in self.findings)


def probe_acl(logins: Mapping[str, BrokerLogin], *, population: str, wait_s: float = 5.0) -> AclReport:
    """Probes a broker.

    Args:
        logins: By name: the coordinator's, and at least two devices'. While the probe runs, a broker that knows one
            connection per login ends those of others with the same one.
        population: One that nobody uses: its topics are written to.
        wait_s: How long what must be heard may take to come.

    Raises:
        InvalidConfig: Fewer than two devices, or no coordinator.
        ProbeFailed: The broker cannot be reached, or a login is refused.
    """
    checked_identifier(population, kind="population")
    devices = sorted(set(logins) - {_COORDINATOR})
    if len(devices) < 2 or _COORDINATOR not in logins:  # noqa: PLR2004 - one has no other to disturb
        raise InvalidConfig("the probe needs the coordinator's login and those of two devices or more")
    for device in devices:
        checked_identifier(device, kind="device")
    with contextlib.ExitStack() as stack:
        clients = {name: stack.enter_context(_Client(name, login)) for name, login in logins.items()}
        report = _Probe(clients, devices, population).run(wait_s=wait_s)
    return report  # noqa: RET504 - an ExitStack may swallow, as far as the type checker knows


class _Client:
    """One login's connection; made again if the broker ends it for what was tried, as some do."""

    def __init__(self, name: str, login: BrokerLogin) -> None:
        self.name = name
        self._login = login
        self._filters: Sequence[str] = ()
        self._probe = self._new()
        self.heard: list[tuple[str, bytes]] = []

    def __enter__(self) -> Self:
        self._probe.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._probe.__exit__(None, None, None)

    @property
    def is_version_5(self) -> bool:
        return self._probe.is_version_5

    def subscribe(self, filters: Sequence[str]) -> None:
        """Asks for each filter by itself: one that is refused must not cost the others."""
        for topic_filter in filters:
            try:
                self._probe.subscribe([topic_filter])
            except ProbeFailed:
                self._again()
            else:
                self._filters = (*self._filters, topic_filter)

    def say(self, topic: str) -> bool:
        """Whether a message was taken, as far as the broker says."""
        try:
            return not self._probe.publish(topic, self.name.encode()).refusal
        except ProbeFailed:
            self._again()
            return False

    def listen(self, wait_s: float) -> None:
        """Keeps what has come; of others' messages, which a leak may bring, no more than a name would take."""
        self.heard += [(message.topic, message.payload[:_NAME_BYTES]) for message in self._probe.heard(wait_s=wait_s)]

    def _again(self) -> None:
        self.listen(0.0)
        self._probe.__exit__(None, None, None)
        self._probe = self._new()
        self._probe.__enter__()
        for topic_filter in self._filters:
            self._probe.subscribe([topic_filter])

    def _new(self) -> BrokerProbe:
        login = self._login
        return BrokerProbe(
            url=login.url,
            client_id=f"{_KIND}-{self.name}",
            ca_file=login.ca_file,
            certificate=login.certificate,
            timeout_s=_PATIENCE_S,
        )


class _Probe:
    """One run over connected clients."""

    def __init__(self, clients: Mapping[str, _Client], devices: Sequence[str], population: str) -> None:
        self._clients = clients
        self._devices = devices
        self._population = population
        self._findings: set[AclFinding] = set()
        self._refused: set[str] = set()
        self._num_attempts = 0

    def run(self, *, wait_s: float) -> AclReport:
        """Subscribes, tries everything, says what is right, and looks at what has come."""
        self._clients[_COORDINATOR].subscribe((up_filter(self._population), status_filter(self._population)))
        for device in self._devices:
            self._clients[device].subscribe(tuple(self._greedy()))
        for device in self._devices:
            self._trespass(device)
        for device in self._devices:
            for topic in self._own(device):
                self._say(device, topic)
        for device in self._devices:
            self._say(_COORDINATOR, self._down(device))
        for topic in (population_task(self._population), population_round(self._population)):
            self._say(_COORDINATOR, topic)
        self._collect(wait_s)
        return AclReport(
            findings=tuple(sorted(self._findings, key=lambda found: (found.login, found.topic, found.fault.value))),
            num_attempts=self._num_attempts,
            is_version_5=all(client.is_version_5 for client in self._clients.values()),
        )

    def _greedy(self) -> Iterator[str]:
        """What a curious device asks for. Mosquitto grants all, and must deliver only what is right."""
        yield from ("#", "fw/#", "fw/v1/+/d/+/+/+", "fw/v1/+/d/+/status", "+/+/+/+/+/+/+")
        yield f"$share/{_KIND}/{up_filter(self._population)}"
        for device in self._devices:
            yield from (*self._own(device), self._down(device))
        yield from (population_task(self._population), population_round(self._population))

    def _own(self, device: str) -> tuple[str, ...]:
        return device_up(self._population, device, _KIND), device_status(self._population, device)

    def _down(self, device: str) -> str:
        return device_down(self._population, device, _KIND)

    def _trespass(self, device: str) -> None:
        """One device says everything that it must not."""
        topics = [population_task(self._population), population_round(self._population), self._down(device)]
        topics += ["fw/v1/x", f"{_KIND}/elsewhere"]
        for other in self._devices:
            if other != device:
                topics += [*self._own(other), self._down(other)]
        client = self._clients[device]
        for topic in topics:
            self._num_attempts += 1
            if client.say(topic) and client.is_version_5:
                self._note(device, Fault.SAYS, topic)

    def _say(self, name: str, topic: str) -> None:
        if not self._clients[name].say(topic):
            self._refused.add(topic)
            self._note(name, Fault.CANNOT_SAY, topic)

    def _collect(self, wait_s: float) -> None:
        """Waits until everybody has heard what is his, and a little longer, and judges what else has come."""
        ends_at = time.monotonic() + wait_s
        while self._missing() and time.monotonic() < ends_at:
            for client in self._clients.values():
                client.listen(0.05)
        for client in self._clients.values():
            client.listen(_SETTLE_S / len(self._clients))
        for name, topic in self._missing():
            self._note(name, Fault.CANNOT_HEAR, topic)
        for name, client in self._clients.items():
            for topic, payload in client.heard:
                self._judge(name, topic, payload.decode(errors="replace"))

    def _missing(self) -> list[tuple[str, str]]:
        """(who, topic) of what was taken from who may say it, must be heard and has not been."""
        shared = [population_task(self._population), population_round(self._population)]
        wanted = [(device, topic, _COORDINATOR) for device in self._devices for topic in [*shared, self._down(device)]]
        wanted += [(_COORDINATOR, topic, device) for device in self._devices for topic in self._own(device)]
        return [
            (name, topic)
            for name, topic, sender in wanted
            if topic not in self._refused and (topic, sender.encode()) not in self._clients[name].heard
        ]

    def _judge(self, name: str, topic: str, sender: str) -> None:
        if name != _COORDINATOR and not self._may_hear(name, topic):
            self._note(name, Fault.HEARS, topic)
        if sender in self._devices and topic not in self._own(sender):
            self._note(sender, Fault.SAYS, topic)

    @staticmethod
    def _may_hear(device: str, topic: str) -> bool:
        filters = ("fw/v1/+/task", "fw/v1/+/round", f"fw/v1/+/d/{device}/down/+")
        return any(topic_matches(topic_filter, topic) for topic_filter in filters)

    def _note(self, name: str, fault: Fault, topic: str) -> None:
        self._findings.add(AclFinding(login=name, fault=fault, topic=topic))
