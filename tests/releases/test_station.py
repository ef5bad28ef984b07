"""The release station among strangers: what they send is bounded, what they retain is emptied, and nothing ends it."""

from pathlib import Path

import pytest

from broker_link.link import Incoming, LinkUp
from broker_link.memory_broker import MemoryBroker
from coordinator.errors import ReleaseError
from coordinator.releases.report_guard import AnyReports
from coordinator.releases.rollout_book import RolloutBook
from coordinator.releases.rollouts import Rollouts
from coordinator.releases.station import ReleaseStation
from tests.releases.conftest import Channel, Clock
from wire_protocol.messages import encode_message
from wire_protocol.release_report import ReleaseReport, ReleaseState
from wire_protocol.topics import release_file


def _report(name: str = "digits") -> ReleaseReport:
    return ReleaseReport(name=name, serial=1, number=1, state=ReleaseState.SETTLED, current=1)


class _Served:
    """A station on an in-memory broker."""

    def __init__(self, channel: Channel, book: RolloutBook, clock: Clock) -> None:
        self.now = 0.0
        self.book = book
        self.broker = MemoryBroker(schedule=lambda _delay, deliver: deliver())
        self.station = ReleaseStation(
            population="digits", repository=channel.repository, rollouts=Rollouts(channel.repository, book, now=clock),
            book=book, guard=AnyReports(), now=clock,
        )  # fmt: skip
        self.link = self.broker.link(
            subscriptions=self.station.subscriptions, sink=lambda event: self.station.handle(event, self.now)
        )

    def turns(self, num: int = 8) -> None:
        for _ in range(num):
            self.now += 3.0
            self.station.turn(self.link, self.now)

    def say(self, device_id: str, report: ReleaseReport) -> None:
        topic = f"fw/v1/digits/d/{device_id}/up/release-report"
        self.station.handle(Incoming(topic=topic, payload=encode_message(report)), self.now)

    def retained(self) -> dict[str, bytes]:
        heard: dict[str, bytes] = {}

        def sink(event: object) -> None:
            if isinstance(event, Incoming):
                heard[event.topic] = event.payload

        reader = self.broker.link(subscriptions=["fw/v1/digits/release/+"], sink=sink)
        reader.start()
        reader.stop()
        return heard


@pytest.fixture
def book(tmp_path: Path) -> RolloutBook:
    return RolloutBook(tmp_path / "rollouts.sqlite")


@pytest.fixture
def served(channel: Channel, book: RolloutBook, clock: Clock) -> _Served:
    return _Served(channel, book, clock)


def test_nothing_is_kept_of_models_that_have_no_release(served: _Served) -> None:
    served.turns()
    for index in range(50):
        served.say("stranger", _report(f"model-{index}"))
    served.say("pi-1", _report())
    served.turns()
    assert served.station.refused["unknown_model"] == 50
    assert served.book._db.execute("SELECT device_id FROM reports").fetchall() == [("pi-1",)]


def test_one_who_speaks_for_many_devices_does_not_fill_the_disk(book: RolloutBook) -> None:
    reports = [(f"d{index}", _report()) for index in range(30)]
    assert book.note_reports(reports, now=1.0, max_devices=10) == 20
    assert book.note_reports(reports, now=2.0, max_devices=10) == 20, "those that are known are heard again"
    assert len(book.reports("digits")) == 10


def test_what_an_earlier_life_left_on_the_broker_is_emptied(
    served: _Served, channel: Channel, clock: Clock, book: RolloutBook
) -> None:
    served.link.start()
    served.turns()
    served.link.stop()
    before = served.retained()
    channel.release(2)
    again = _Served(channel, book, clock)
    again.broker = served.broker
    again.link = served.broker.link(
        subscriptions=again.station.subscriptions, sink=lambda event: again.station.handle(event, again.now)
    )
    again.link.start()
    again.turns()
    wanted = {release_file("digits", name): data for name, data in channel.files().items()}
    assert before.keys() - wanted.keys()
    assert again.retained() == wanted


def test_a_file_that_somebody_else_retained_is_replaced(served: _Served, channel: Channel) -> None:
    served.link.start()
    served.turns()
    served.broker.publish(release_file("digits", "timestamp.json"), b"forged", retain=True)
    served.broker.publish(release_file("digits", "7.junk.json"), b"junk", retain=True)
    served.turns()
    assert served.retained() == {release_file("digits", name): data for name, data in channel.files().items()}


def test_reports_outlive_a_book_that_a_command_keeps_for_a_while(
    served: _Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.turns()

    def busy(*_args: object, **_more: object) -> int:
        raise ReleaseError("database is locked")

    with monkeypatch.context() as patched:
        patched.setattr(served.book, "note_reports", busy)
        served.say("pi-1", _report())
        served.turns()
    served.turns()
    assert list(served.book.reports("digits")) == ["pi-1"]


@pytest.mark.parametrize("error", [ReleaseError("changed"), FileNotFoundError("9.snapshot.json")])
def test_a_channel_that_cannot_be_read_for_a_moment_is_published_later(
    served: _Served, channel: Channel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken() -> dict[str, bytes]:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(channel.repository, "files", broken)
        served.link.start()
        served.turns()
        assert not served.station.is_published
    served.turns()
    assert served.station.is_published
    assert served.retained() == {release_file("digits", name): data for name, data in channel.files().items()}


@pytest.mark.parametrize("topic", ["fw/v1/digits/d/x/up/release-report", "fw/v1/digits/d//up/x", "nonsense", ""])
@pytest.mark.parametrize("payload", [b"", b"\x00" * 100, b"[" * 5000, b"fw"])
def test_garbage_is_counted(served: _Served, topic: str, payload: bytes) -> None:
    served.station.handle(LinkUp(), 0.0)
    served.station.handle(Incoming(topic=topic, payload=payload), 0.0)
    assert served.station.refused.total() == 1
