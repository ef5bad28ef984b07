"""The in-memory broker keeps MQTT's promises about topics, retained messages and wills."""

import pytest

from broker_link.link import Incoming, LinkDown, LinkEvent, LinkUp, Will, topic_matches
from broker_link.memory_broker import MemoryBroker


def _broker(delays=None):
    run = lambda delay_s, deliver: deliver()  # noqa: E731 - a one-line schedule
    return MemoryBroker(schedule=run) if delays is None else MemoryBroker(schedule=run, delays=delays)


def _messages(events: list[LinkEvent]) -> list[tuple[str, bytes]]:
    return [(event.topic, event.payload) for event in events if isinstance(event, Incoming)]


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+/c", "a/b/c", True),
        ("a/#", "a/b/c", True),
        ("+/+", "a/b/c", False),
    ],
)
def test_filters_match_as_in_mqtt_section_4_7(topic_filter, topic, matches):
    assert topic_matches(topic_filter, topic) is matches
    events: list[LinkEvent] = []
    broker = _broker()
    broker.link(subscriptions=[topic_filter], sink=events.append).start()
    broker.publish(topic, b"x")
    assert bool(_messages(events)) is matches


def test_a_retained_message_reaches_a_later_subscriber_and_an_empty_one_forgets_it():
    broker = _broker()
    broker.publish("t/1", b"kept", retain=True)
    exact: list[LinkEvent] = []
    wild: list[LinkEvent] = []
    broker.link(subscriptions=["t/1"], sink=exact.append).start()
    broker.link(subscriptions=["t/+"], sink=wild.append).start()
    assert exact == [LinkUp(), Incoming(topic="t/1", payload=b"kept")]
    assert _messages(wild) == [("t/1", b"kept")]
    broker.publish("t/1", b"", retain=True)
    late: list[LinkEvent] = []
    broker.link(subscriptions=["t/1"], sink=late.append).start()
    assert _messages(late) == []


def test_a_will_is_published_on_a_lost_connection_and_not_on_a_goodbye():
    broker = _broker()
    seen: list[LinkEvent] = []
    broker.link(subscriptions=["s"], sink=seen.append).start()
    own: list[LinkEvent] = []
    link = broker.link(subscriptions=[], sink=own.append, will=Will(topic="s", payload=b"gone"))
    link.start()
    link.stop()
    assert _messages(seen) == []
    link.start()
    link.lose("cut")
    assert _messages(seen) == [("s", b"gone")]
    assert own[-1] == LinkDown(reason="cut")


def test_what_was_under_way_when_a_connection_died_is_not_delivered_to_the_next_one():
    waiting = []
    broker = MemoryBroker(schedule=lambda delay_s, deliver: waiting.append(deliver))
    events: list[LinkEvent] = []
    link = broker.link(subscriptions=["t"], sink=events.append)
    link.start()
    broker.publish("t", b"x")
    link.lose("cut")
    link.start()
    for deliver in waiting:
        deliver()
    assert _messages(events) == []


def test_loss_and_duplication_are_the_owners():
    events: list[LinkEvent] = []
    broker = _broker(delays=lambda topic, num_bytes: {"lost": (), "twice": (0.0, 1.0)}[topic])
    broker.link(subscriptions=["lost", "twice"], sink=events.append).start()
    broker.publish("lost", b"x")
    broker.publish("twice", b"y")
    assert _messages(events) == [("twice", b"y"), ("twice", b"y")]
    assert broker.num_lost == 1


def test_at_link_up_a_link_hears_already_what_its_owner_says_at_once():
    broker = _broker()
    seen: list[LinkEvent] = []

    def sink(event: LinkEvent) -> None:
        seen.append(event)
        if isinstance(event, LinkUp):
            link.publish("t", b"at once")

    link = broker.link(subscriptions=["t"], sink=sink)
    link.start()
    assert seen == [LinkUp(), Incoming(topic="t", payload=b"at once")]
