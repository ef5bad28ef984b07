"""The real link: paho-mqtt under a supervisor of our own. With `broker_probe`, all that imports paho.

paho's own thread may die (paho.mqtt.python#894: after a long disconnection; any callback that raises), and its
reconnection has no jitter. So a supervisor thread owns a fresh paho client per connection: it connects, waits until
that connection is over for any reason, waits with full jitter, and starts anew. Sessions are clean; what was not
delivered is repeated by the protocol above, which trusts no PUBACK anyway.
"""

import dataclasses
import logging
import os
import random
import threading
from collections.abc import Collection, Sequence

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from broker_link.backoff import FullJitterBackoff
from broker_link.broker_url import BrokerUrl, parse_broker_url
from broker_link.link import EventSink, Incoming, LinkDown, LinkUp, Will, topic_matches
from broker_link.tls import ClientCertificate, client_context, proved_unix_s

__all__ = ["LinkTiming", "PahoLink"]

_LOG = logging.getLogger(__name__)
_INFLIGHT_MESSAGES = 16
_GOODBYE_S = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinkTiming:
    """How patient a link is."""

    keepalive_s: int = 30
    """A silent connection is asked after this, and given up after as long again without an answer."""
    connect_timeout_s: float = 10.0
    liveness_check_s: float = 5.0
    """How often the link looks whether paho's own thread is alive."""
    backoff_base_s: float = 0.5
    """The first wait before a new connection is drawn from 0 to this; the bound doubles with every failure."""
    backoff_cap_s: float = 60.0

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            ValueError: One is out of its range.
        """
        if not 1 <= self.keepalive_s <= 65535 or min(self.connect_timeout_s, self.liveness_check_s) <= 0:  # noqa: PLR2004 - two bytes of MQTT
            raise ValueError("keepalive_s must be 1 to 65535, connect_timeout_s and liveness_check_s positive")
        if not 0 < self.backoff_base_s <= self.backoff_cap_s:
            raise ValueError("need 0 < backoff_base_s <= backoff_cap_s")


class PahoLink:
    """Keeps one MQTT 3.1.1 connection up.

    Args:
        url: ``mqtt://`` or ``mqtts://`` address (see ``broker_link.broker_url``).
        client_id: MQTT client id; one connection per id exists at a broker.
        subscriptions: Topic filters, subscribed to at QoS 1 on every connection before ``LinkUp`` is reported.
        sink: Receives every event, from the link's threads.
        will: Published by the broker, retained, if the connection dies.
        ca_file: PEM file with the CA to trust for ``mqtts://``; the system's CAs if None.
        certificate: Ours, for a broker that asks for one over ``mqtts://``.
        timing: How patient it is.

    Raises:
        InvalidBrokerUrl: The address cannot be understood.
    """

    def __init__(
        self,
        *,
        url: str,
        client_id: str,
        subscriptions: Sequence[str],
        sink: EventSink,
        will: Will | None = None,
        ca_file: str | None = None,
        certificate: ClientCertificate | None = None,
        timing: LinkTiming | None = None,
    ) -> None:
        self._url: BrokerUrl = parse_broker_url(url)
        self._client_id = client_id
        self._subscriptions = tuple(subscriptions)
        self._sink = sink
        self._will = will
        self._ca_file = ca_file
        self._certificate = certificate
        self._timing = timing or LinkTiming()
        self._client: mqtt.Client | None = None
        self._followed: frozenset[str] = frozenset()
        self._following = threading.Lock()
        self._first_mid = 0
        self._over = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._backoff = FullJitterBackoff(
            base_s=self._timing.backoff_base_s,
            cap_s=self._timing.backoff_cap_s,
            uniform=random.SystemRandom().uniform,
        )

    @property
    def is_supervised(self) -> bool:
        """Whether the supervisor's thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Starts the supervisor; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._supervise, name=f"link-{self._client_id}", daemon=True)
            self._thread.start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Sends at QoS 1 if connected; drops otherwise."""
        client = self._client
        if client is not None and client.is_connected():
            client.publish(topic, payload, qos=1, retain=retain)

    def follow(self, filters: Collection[str]) -> None:
        """Names the filters to hear beside the link's own subscriptions."""
        with self._following:
            wanted = frozenset(filters)
            new, gone = wanted - self._followed, self._followed - wanted
            self._followed = wanted
            client = self._client
            if client is not None and client.is_connected():
                _subscribe(client, new)
                if gone:
                    client.unsubscribe(sorted(gone))

    def stop(self) -> None:
        """Sends what was published, says goodbye (no will) and ends the supervisor."""
        self._stopping.set()
        client = self._client
        if client is not None and client.is_connected():
            _drain(client)
            client.disconnect()
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_GOODBYE_S)

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            self._over.clear()
            if self._stopping.is_set():  # `stop` came between the two lines above
                return
            reason = self._run_connection()
            if self._stopping.is_set():
                return
            wait_s = self._backoff.next_wait_s()
            _LOG.warning("link_down broker=%s reason=%r retry_in_s=%.1f", self._url, reason, wait_s)
            self._stopping.wait(wait_s)

    def _run_connection(self) -> str:
        """Makes one connection and stays until it is over; returns why (a CA file that cannot be read, for one)."""
        try:
            client = self._new_client()
            client.connect(self._url.host, self._url.port, keepalive=self._timing.keepalive_s)
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        self._client = client
        client.loop_start()
        # The liveness check is for paho's own thread, whose death reports nothing.
        while not self._over.wait(self._timing.liveness_check_s):
            if not _loop_is_alive(client):
                self._sink(LinkDown(reason="paho's network thread died"))
                break
        self._client = None
        client.loop_stop()
        return "connection over"

    def _new_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=True,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = self._timing.connect_timeout_s
        client.max_inflight_messages_set(_INFLIGHT_MESSAGES)
        if self._url.username is not None:
            client.username_pw_set(self._url.username, self._url.password)
        if self._url.is_tls:
            client.tls_set_context(client_context(self._ca_file, self._certificate))
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _on_connect(
        self, client: mqtt.Client, userdata: object, flags: object, reason_code: ReasonCode, properties: object
    ) -> None:
        del userdata, flags, properties
        if reason_code.is_failure:
            _LOG.error("link_refused broker=%s reason=%s", self._url, reason_code)
            self._over.set()
        elif self._subscriptions:
            _, mid = client.subscribe([(topic_filter, 1) for topic_filter in self._subscriptions])
            self._first_mid = mid or 0
        else:
            self._up(client)

    def _on_subscribe(
        self, client: mqtt.Client, userdata: object, mid: int, reasons: Sequence[ReasonCode], properties: object
    ) -> None:
        del userdata, properties
        if mid != self._first_mid:
            if any(reason.is_failure for reason in reasons):
                _LOG.error("followed_topic_refused broker=%s", self._url)
            return
        refused = [topic for topic, reason in zip(self._subscriptions, reasons, strict=False) if reason.is_failure]
        if refused:
            # No link is up that cannot hear: its owner would wait for ever for answers. The broker's rights may change.
            _LOG.error("subscription_refused broker=%s filters=%s", self._url, refused)
            client.disconnect()
        else:
            self._up(client)

    def _up(self, client: mqtt.Client) -> None:
        self._backoff.reset()
        _LOG.info("link_up broker=%s pid=%d", self._url, os.getpid())
        self._sink(LinkUp(proved_unix_s=proved_unix_s(client.socket())))
        with self._following:
            _subscribe(client, self._followed)

    def _on_disconnect(
        self, client: mqtt.Client, userdata: object, flags: object, reason_code: ReasonCode, properties: object
    ) -> None:
        del client, userdata, flags, properties
        self._sink(LinkDown(reason=str(reason_code)))
        self._over.set()

    def _on_message(self, client: mqtt.Client, userdata: object, message: mqtt.MQTTMessage) -> None:
        del client, userdata
        try:
            topic = message.topic
        except UnicodeDecodeError:
            _LOG.warning("link_topic_undecodable broker=%s", self._url)
            return
        if not any(topic_matches(topic_filter, topic) for topic_filter in (*self._subscriptions, *self._followed)):
            _LOG.warning("link_message_unasked broker=%s", self._url)
            return
        try:
            self._sink(Incoming(topic=topic, payload=bytes(message.payload)))
        except Exception:  # noqa: BLE001 - a raising callback would end paho's thread without a word
            _LOG.exception("link_sink_failed topic_bytes=%d", len(topic))


def _subscribe(client: mqtt.Client, topics: Collection[str]) -> None:
    if topics:
        client.subscribe([(topic, 1) for topic in sorted(topics)])


def _loop_is_alive(client: mqtt.Client) -> bool:
    thread = client._thread  # noqa: SLF001 - paho offers no public way to see that its thread died
    return thread is not None and thread.is_alive()


def _drain(client: mqtt.Client) -> None:
    """Waits, for a moment, until paho has handed over what it queued."""
    for _ in range(int(_GOODBYE_S / 0.05)):
        if not client.want_write() and not client._out_messages:  # noqa: SLF001 - no public "nothing in flight"
            return
        threading.Event().wait(0.05)
