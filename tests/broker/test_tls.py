"""TLS with a real Mosquitto: who is let in, who is not, and what the link says about it."""

import datetime as dt
import logging
import queue

import pytest

from broker_link.link import Incoming, LinkUp
from broker_link.paho_link import PahoLink
from coordinator.private_ca import make_authority

pytestmark = pytest.mark.broker

WAIT_S = 20
DAY = dt.timedelta(days=1)


def _now():
    return dt.datetime.now(dt.UTC)


def _attempt(caplog, broker, certificate, *, ca_file=None, host="127.0.0.1"):
    """Connects; returns whether the link came up and what its log said until then."""
    events: queue.Queue = queue.Queue()
    link = PahoLink(
        url=f"mqtts://{host}:{broker.port}", client_id="dev-1", subscriptions=("fw/v1/p/task",), sink=events.put,
        ca_file=ca_file or broker.ca_file, certificate=certificate,
    )  # fmt: skip
    refused = queue.Queue()
    handler = logging.Handler()
    handler.emit = lambda record: refused.put(record.getMessage())
    logger = logging.getLogger("broker_link")
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, logger="broker_link")
    link.start()
    try:
        text = refused.get(timeout=WAIT_S)
        if "link_up" in text:
            assert isinstance(events.get(timeout=WAIT_S), LinkUp)
            return True, text
        return False, text
    finally:
        logger.removeHandler(handler)
        link.stop()


def test_a_device_with_the_right_ca_and_certificate_is_let_in(secure_mosquitto, caplog):
    is_up, text = _attempt(caplog, secure_mosquitto, secure_mosquitto.login("dev-1"))
    assert is_up, text


def test_a_verified_broker_proves_that_its_certificate_has_begun(make_secure_mosquitto):
    began = (_now() - DAY / 2).replace(microsecond=0)
    with make_secure_mosquitto(began=began, valid=DAY).running() as broker:
        events: queue.Queue = queue.Queue()
        link = PahoLink(
            url=broker.url, client_id="dev-1", subscriptions=("fw/v1/p/task",), sink=events.put,
            ca_file=broker.ca_file, certificate=broker.login("dev-1"),
        )  # fmt: skip
        link.start()
        try:
            proved = events.get(timeout=WAIT_S).proved_unix_s
            assert 0 <= began.timestamp() - proved <= 600  # the authority dates certificates back a little
        finally:
            link.stop()


def test_a_broker_of_another_ca_is_refused(secure_mosquitto, caplog, tmp_path):
    (tmp_path / "other.crt").write_bytes(make_authority("other", now=_now()).pem.certificate)
    login = secure_mosquitto.login("dev-1")
    is_up, text = _attempt(caplog, secure_mosquitto, login, ca_file=str(tmp_path / "other.crt"))
    assert not is_up
    assert "CERTIFICATE_VERIFY_FAILED" in text


def test_a_broker_under_another_name_is_refused(secure_mosquitto, caplog):
    is_up, text = _attempt(caplog, secure_mosquitto, secure_mosquitto.login("dev-1"), host="localhost")
    assert not is_up
    assert "localhost" in text


def test_a_brokers_expired_certificate_is_refused(make_secure_mosquitto, caplog):
    with make_secure_mosquitto(began=_now() - 3 * DAY, valid=DAY).running() as broker:
        login = broker.login("dev-1")
        is_up, text = _attempt(caplog, broker, login)
    assert not is_up
    assert "expired" in text


@pytest.mark.parametrize("fault", ["none", "expired", "another CA's"])
def test_a_device_whose_certificate_is_missing_or_bad_is_not_let_in(secure_mosquitto, caplog, fault):
    login = {
        "none": lambda: None,
        "expired": lambda: secure_mosquitto.login("dev-7", began=_now() - 3 * DAY, valid=DAY),
        "another CA's": lambda: secure_mosquitto.login("dev-8", authority=make_authority("other", now=_now())),
    }[fault]()
    is_up, text = _attempt(caplog, secure_mosquitto, login)
    assert not is_up, text


DEVICES = ("dev-1", "dev-10", "dev-100", "dev", "Dev-1", "dev-1_")
KINDS = ("up/report", "up/check-in", "status", "down/assignment")


def test_no_device_reads_or_writes_anothers_topics_nor_the_coordinators(make_secure_mosquitto):
    """N x N: every device subscribes to everything it can think of and publishes everywhere."""
    with make_secure_mosquitto().running() as broker:
        _probe(broker)


def _probe(broker):
    population = "p"
    trees = {name: f"fw/v1/{population}/d/{name}" for name in DEVICES}
    greedy = ("#", "fw/#", "fw/v1/+/d/+/+/+", "fw/v1/+/d/+/status", "+/+/+/+/+/+/+", "$share/g/fw/v1/+/d/+/up/+",
              *(f"{tree}/{kind}" for tree in trees.values() for kind in KINDS))  # fmt: skip
    heard: dict[str, queue.Queue] = {name: queue.Queue() for name in (*DEVICES, "coordinator")}
    links = {}
    for name in (*DEVICES, "coordinator"):
        own = (f"fw/v1/{population}/d/+/up/+", f"fw/v1/{population}/d/+/status")
        links[name] = PahoLink(
            url=broker.url, client_id=name, subscriptions=own if name == "coordinator" else greedy,
            sink=heard[name].put, ca_file=broker.ca_file, certificate=broker.login(name),
        )  # fmt: skip
        links[name].start()
        assert isinstance(heard[name].get(timeout=WAIT_S), LinkUp)
    try:
        for sender in DEVICES:
            for topic in (f"fw/v1/{population}/task", f"fw/v1/{population}/round", "$SYS/broker/x", "elsewhere"):
                links[sender].publish(topic, sender.encode())
            for tree in trees.values():
                for kind in KINDS:
                    links[sender].publish(f"{tree}/{kind}", sender.encode())
        for name in DEVICES:
            links["coordinator"].publish(f"{trees[name]}/down/assignment", b"coordinator")
        links["coordinator"].publish(f"fw/v1/{population}/round", b"end")

        for name in DEVICES:
            got = _until(heard[name], b"end")
            expected = {(f"{trees[name]}/down/assignment", b"coordinator"), (f"fw/v1/{population}/round", b"end")}
            assert {(message.topic, message.payload) for message in got} == expected, name
        allowed = {(f"{trees[name]}/{kind}", name.encode()) for name in DEVICES for kind in KINDS if "down" not in kind}
        for name in DEVICES:  # each connection is in order: after this nothing more can come
            links[name].publish(f"{trees[name]}/up/report", b"last")
        seen = []
        while sum(message.payload == b"last" for message in seen) < len(DEVICES):
            seen.append(heard["coordinator"].get(timeout=WAIT_S))
        assert {(message.topic, message.payload) for message in seen if message.payload != b"last"} == allowed
    finally:
        for link in links.values():
            link.stop()


def _until(events, payload) -> list[Incoming]:
    got = []
    while not got or got[-1].payload != payload:
        got.append(events.get(timeout=WAIT_S))
    return got
