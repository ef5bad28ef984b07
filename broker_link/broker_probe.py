"""One short connection that asks a broker questions, for whoever examines it. With `paho_link`, all that imports paho.

It speaks MQTT 5, whose answers say what is forbidden and which packets are too large; with a broker that has only
3.1.1 it speaks that, and knows less.
"""

import dataclasses
import queue
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from broker_link.broker_url import parse_broker_url
from broker_link.errors import ProbeFailed
from broker_link.link import Incoming
from broker_link.tls import ClientCertificate, client_context

__all__ = ["BrokerProbe", "PublishAnswer"]

_LOGIN_REFUSALS: Final = {"Bad user name or password", "Not authorized", "Banned", "Client identifier not valid"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PublishAnswer:
    """What the broker said to one message at QoS 1."""

    refusal: str
    """Why it was refused; empty if it was taken, or if the broker (MQTT 3.1.1) does not say."""
    round_trip_s: float


class BrokerProbe:
    """A connection for a ``with`` block.

    Args:
        url: As `PahoLink` takes it.
        client_id: MQTT client id.
        ca_file: PEM file of the CA; the system's if None.
        certificate: Ours, if the broker asks for one.
        timeout_s: Patience with each answer.

    Raises:
        InvalidBrokerUrl: The address cannot be understood.
        ProbeFailed: On entering, or at a question: there is no connection, or no answer.
    """

    def __init__(
        self,
        *,
        url: str,
        client_id: str,
        ca_file: str | None = None,
        certificate: ClientCertificate | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._url = parse_broker_url(url)
        self._client_id = client_id
        self._ca_file = ca_file
        self._certificate = certificate
        self._timeout_s = timeout_s
        self._answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._incoming: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._client: mqtt.Client | None = None
        self.is_version_5 = True
        """Whether the broker speaks MQTT 5, and so says what it refuses."""
        self.max_packet_bytes: int | None = None
        """The largest packet that the broker takes, if it names one."""

    def __enter__(self) -> Self:
        try:
            self._connect(mqtt.MQTTv5)
        except ProbeFailed as error:
            if error.is_login_refused:
                raise
            self.is_version_5 = False
            self._connect(mqtt.MQTTv311)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def subscribe(self, filters: Sequence[str]) -> list[bool]:
        """Whether each subscription was granted. Mosquitto grants all, and delivers only what may be read."""
        self._wanted().subscribe([(topic_filter, 1) for topic_filter in filters])
        return [not code.is_failure for code in self._answer("subscribed")]

    def publish(self, topic: str, payload: bytes) -> PublishAnswer:
        """Sends one message at QoS 1, not retained, and waits for the broker's answer."""
        began = time.monotonic()
        self._wanted().publish(topic, payload, qos=1)
        code: ReasonCode = self._answer("published")
        refusal = str(code) if code.is_failure else ""
        return PublishAnswer(refusal=refusal, round_trip_s=time.monotonic() - began)

    def heard(self, *, wait_s: float) -> list[Incoming]:
        """What has come since last asked, and comes within ``wait_s``."""
        ends_at, found = time.monotonic() + wait_s, []
        while True:
            try:
                found.append(self._incoming.get(timeout=max(ends_at - time.monotonic(), 0.0)))
            except queue.Empty:
                return found

    def _connect(self, version: MQTTProtocolVersion) -> None:
        self._close()
        client = self._client = self._new_client(version)
        try:
            if self._url.is_tls:
                client.tls_set_context(client_context(self._ca_file, self._certificate))
            client.connect(self._url.host, self._url.port)
        except (OSError, ValueError) as error:
            raise ProbeFailed(f"{type(error).__name__}: {error}") from error
        client.loop_start()
        code, properties = self._answer("connected")
        if code.is_failure:
            raise ProbeFailed(f"the broker refused us: {code}", is_login_refused=str(code) in _LOGIN_REFUSALS)
        self.max_packet_bytes = getattr(properties, "MaximumPacketSize", None)

    def _new_client(self, version: MQTTProtocolVersion) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=self._client_id, protocol=version, reconnect_on_failure=False
        )
        client.connect_timeout = self._timeout_s
        if self._url.username is not None:
            client.username_pw_set(self._url.username, self._url.password)
        client.on_connect = lambda _c, _u, _flags, code, properties: self._answers.put(
            ("connected", (code, properties))
        )
        client.on_subscribe = lambda _c, _u, _mid, codes, _properties: self._answers.put(("subscribed", codes))
        client.on_publish = lambda _c, _u, _mid, code, _properties: self._answers.put(("published", code))
        client.on_disconnect = lambda _c, _u, _flags, code, _properties: self._answers.put(("lost", code))
        client.on_message = lambda _c, _u, message: self._incoming.put(
            Incoming(topic=message.topic, payload=bytes(message.payload))
        )
        return client

    def _wanted(self) -> mqtt.Client:
        if self._client is None or not self._client.is_connected():
            raise ProbeFailed("the connection is gone")
        return self._client

    def _answer(self, kind: str) -> Any:
        """The next answer, which must be of this kind."""
        try:
            found, value = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            raise ProbeFailed(f"the broker did not answer within {self._timeout_s:g} s") from None
        if found != kind:
            raise ProbeFailed(f"the broker ended the connection: {value}")
        return value

    def _close(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None
            self._answers = queue.SimpleQueue()
