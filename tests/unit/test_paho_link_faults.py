"""The paho link outlives a broker, an operator and an owner that do the wrong thing. The broker is a few scripted bytes."""

import queue
import socket
import threading
import time

import pytest

from broker_link.link import Incoming, LinkUp
from broker_link.paho_link import PahoLink

WAIT_S = 20
_CONNACK = b"\x20\x02\x00\x00"
_GRANTED, _REFUSED = b"\x01", b"\x80"


def _publish(topic: bytes, payload: bytes) -> bytes:
    return bytes([0x30, 2 + len(topic) + len(payload), 0, len(topic)]) + topic + payload


class ScriptedBroker:
    """Accepts connections, and answers each subscription as scripted; sends what it is told to if it granted one."""

    def __init__(self, *answers: bytes, then: bytes = b"") -> None:
        self._answers = list(answers)
        self._then = then
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            connection, _ = self._listener.accept()
            try:
                self._packet(connection)
                connection.sendall(_CONNACK)
                message_id = self._packet(connection)[:2]
                connection.sendall(b"\x90\x03" + message_id + answer + (self._then if answer == _GRANTED else b""))
                while connection.recv(4096):
                    pass
            except OSError:
                pass

    @staticmethod
    def _packet(connection: socket.socket) -> bytes:
        """The body of one packet of less than 128 bytes."""
        head = connection.recv(2, socket.MSG_WAITALL)
        return connection.recv(head[1], socket.MSG_WAITALL)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def connect():
    """Makes started links that are stopped at the end."""
    made = []

    def make(broker, **settings):
        events: queue.Queue = queue.Queue()
        link = PahoLink(url=broker.url, client_id="x", subscriptions=["t/+"], sink=events.put, **settings)
        made.extend((broker, link))
        link.start()
        return link, events

    yield make
    for thing in reversed(made):
        thing.stop() if isinstance(thing, PahoLink) else thing.close()


def test_a_subscription_that_is_refused_is_tried_again_and_no_link_up_until_it_is_granted(connect):
    _, events = connect(ScriptedBroker(_REFUSED, _GRANTED, then=_publish(b"t/a", b"hello")))
    seen = []
    while not seen or not isinstance(seen[-1], Incoming):
        seen.append(events.get(timeout=WAIT_S))
    ups = [index for index, event in enumerate(seen) if isinstance(event, LinkUp)]
    assert ups == [len(seen) - 2]


def test_a_topic_that_is_no_utf8_is_dropped_and_the_link_stays_up(connect):
    _, events = connect(ScriptedBroker(_GRANTED, then=_publish(b"t/\xff", b"bad") + _publish(b"t/a", b"good")))
    assert isinstance(events.get(timeout=WAIT_S), LinkUp)
    assert events.get(timeout=WAIT_S) == Incoming(topic="t/a", payload=b"good")


def test_a_ca_file_that_cannot_be_read_is_logged_and_tried_again(tmp_path, caplog):
    missing = tmp_path / "ca.pem"
    link = PahoLink(
        url="mqtts://127.0.0.1:9", client_id="x", subscriptions=[], sink=lambda _: None, ca_file=str(missing)
    )
    link.start()
    give_up_at = time.monotonic() + WAIT_S
    while "FileNotFoundError" not in caplog.text and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert "link_down" in caplog.text
    assert link._thread.is_alive()
    link.stop()
    assert not link._thread.is_alive()


def test_a_stop_at_the_very_beginning_of_a_connection_is_not_forgotten(connect):
    class StopsFirst(threading.Event):
        """The owner calls `stop` just before the supervisor gets ready for a connection."""

        def clear(self) -> None:
            link._stopping.set()
            self.set()
            super().clear()

    broker = ScriptedBroker(_GRANTED)
    link = PahoLink(url=broker.url, client_id="x", subscriptions=["t"], sink=lambda _: None)
    link._over = StopsFirst()
    link.start()
    link._thread.join(3)
    assert not link._thread.is_alive()
    broker.close()
