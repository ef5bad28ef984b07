"""The paho link on real brokers: delivers, keeps retained messages and wills, and comes back by itself."""

import queue
import uuid

import pytest

from broker_link.broker_url import parse_broker_url
from broker_link.errors import InvalidBrokerUrl
from broker_link.link import Incoming, LinkDown, LinkUp, Will
from broker_link.paho_link import PahoLink

pytestmark = pytest.mark.broker

WAIT_S = 30


@pytest.fixture
def connect(broker_url):
    """Makes started links that are stopped at the end."""
    links = []

    def make(*subscriptions, will=None):
        events: queue.Queue = queue.Queue()
        link = PahoLink(
            url=broker_url, client_id=uuid.uuid4().hex, subscriptions=subscriptions, sink=events.put, will=will
        )
        links.append(link)
        link.start()
        assert isinstance(events.get(timeout=WAIT_S), LinkUp)
        return link, events

    yield make
    for link in links:
        link.stop()


def _topic() -> str:
    return f"test/{uuid.uuid4().hex}"


def test_a_large_message_arrives_whole(connect):
    topic, payload = _topic(), bytes(range(256)) * 480
    _, events = connect(topic)
    sender, _ = connect()
    sender.publish(topic, payload)
    assert events.get(timeout=WAIT_S) == Incoming(topic=topic, payload=payload)


def test_a_wildcard_subscription_gets_what_was_retained_before_it(connect):
    base = _topic()
    sender, _ = connect()
    sender.publish(f"{base}/a/status", b"kept", retain=True)
    sender.stop()
    _, events = connect(f"{base}/+/status")
    assert events.get(timeout=WAIT_S) == Incoming(topic=f"{base}/a/status", payload=b"kept")


def test_everything_published_before_stop_is_delivered(connect):
    topic = _topic()
    _, events = connect(topic)
    sender, _ = connect()
    for number in range(50):
        sender.publish(topic, bytes([number]) * 1000)
    sender.stop()
    assert [events.get(timeout=WAIT_S).payload[0] for _ in range(50)] == list(range(50))


def test_a_lost_connection_publishes_the_will_and_the_link_returns_with_its_subscriptions(connect):
    status, topic = _topic(), _topic()
    _, watcher = connect(status)
    link, events = connect(topic, will=Will(topic=status, payload=b"offline"))
    # The socket is cut under paho's feet, as a network does it.
    link._client.socket().shutdown(2)
    assert watcher.get(timeout=WAIT_S) == Incoming(topic=status, payload=b"offline")
    seen = [events.get(timeout=WAIT_S), events.get(timeout=WAIT_S)]
    assert isinstance(seen[0], LinkDown)
    assert isinstance(seen[1], LinkUp)
    sender, _ = connect()
    sender.publish(topic, b"again")
    assert events.get(timeout=WAIT_S) == Incoming(topic=topic, payload=b"again")


def test_followed_topics_bring_what_is_retained_and_are_followed_again_after_a_break(connect):
    base = _topic()
    sender, _ = connect()
    for name in ("a", "b"):
        sender.publish(f"{base}/{name}", name.encode(), retain=True)
    sender.stop()
    link, events = connect(_topic())
    link.follow([f"{base}/a"])
    assert events.get(timeout=WAIT_S) == Incoming(topic=f"{base}/a", payload=b"a")
    link.follow([f"{base}/b"])
    assert events.get(timeout=WAIT_S) == Incoming(topic=f"{base}/b", payload=b"b")
    link._client.socket().shutdown(2)
    seen = [events.get(timeout=WAIT_S) for _ in range(3)]
    assert [type(event) for event in seen[:2]] == [LinkDown, LinkUp]
    assert seen[2] == Incoming(topic=f"{base}/b", payload=b"b")
    link.follow([])
    other, _ = connect()
    other.publish(f"{base}/b", b"new", retain=True)
    with pytest.raises(queue.Empty):
        events.get(timeout=0.5)


def test_a_goodbye_publishes_no_will(connect):
    status = _topic()
    _, watcher = connect(status)
    link, _ = connect(will=Will(topic=status, payload=b"offline"))
    link.stop()
    sender, _ = connect()
    sender.publish(status, b"marker")
    assert watcher.get(timeout=WAIT_S).payload == b"marker"


def test_the_death_of_pahos_own_thread_is_noticed_and_mended(connect):
    link, events = connect(_topic())
    link._client._thread_terminate = True  # ends the thread without any callback, as paho.mqtt.python#894 does
    kinds = [type(events.get(timeout=WAIT_S)), type(events.get(timeout=WAIT_S))]
    assert kinds == [LinkDown, LinkUp]


def test_a_sink_that_raises_does_not_end_the_link(broker_url):
    topic, seen = _topic(), queue.Queue()

    def sink(event):
        seen.put(event)
        if isinstance(event, Incoming) and event.payload == b"bad":
            raise RuntimeError("the owner's fault")

    link = PahoLink(url=broker_url, client_id=uuid.uuid4().hex, subscriptions=[topic], sink=sink)
    link.start()
    assert isinstance(seen.get(timeout=WAIT_S), LinkUp)
    link.publish(topic, b"bad")
    link.publish(topic, b"good")
    assert [seen.get(timeout=WAIT_S).payload for _ in range(2)] == [b"bad", b"good"]
    link.stop()


def test_nobody_listening_is_no_error_and_the_link_keeps_trying():
    events: queue.Queue = queue.Queue()
    link = PahoLink(url="mqtt://127.0.0.1:9", client_id="x", subscriptions=[], sink=events.put)
    link.start()
    link.publish("t", b"dropped")
    with pytest.raises(queue.Empty):
        events.get(timeout=1)
    link.stop()


@pytest.mark.parametrize(
    "url", ["", "localhost", "http://h", "mqtt://", "mqtt://h:0", "mqtt://h:99999", "mqtt://h/path", "mqtt://h:x"]
)
def test_an_address_that_makes_no_sense_says_what_would(url):
    with pytest.raises(InvalidBrokerUrl, match=r"mqtt://host:port"):
        parse_broker_url(url)


def test_an_address_never_prints_its_password():
    url = parse_broker_url("mqtts://me:secret@host")
    assert (url.port, url.username, url.password) == (8883, "me", "secret")
    assert "secret" not in f"{url} {url!r}"
    for bad in ("mqtt://me:secret@host:x", "http://me:secret@host", "mqtt://me:secret@host/path"):
        with pytest.raises(InvalidBrokerUrl) as caught:
            parse_broker_url(bad)
        assert "secret" not in str(caught.value)
