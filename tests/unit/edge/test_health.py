"""What a device says about itself, and how often."""

import pytest

from broker_link.link import Incoming
from edge_client.counts import DeviceCount
from edge_client.events import HealthChanged
from edge_client.health import HealthReporter
from wire_protocol.messages import CheckIn, DeviceMode
from wire_protocol.topics import device_down

INELIGIBLE, SAFE_MODE = DeviceMode.INELIGIBLE, DeviceMode.SAFE_MODE


def _change(bench, mode, reason):
    bench.handle(HealthChanged(mode=mode, reason=reason))


def test_a_device_says_how_it_does_when_it_connects_and_then_about_hourly(bench):
    bench.connect()
    [first] = bench.healths
    assert (first.mode, first.reason, first.uptime_s, first.num_rounds_accepted) == (DeviceMode.OK, "", 0.0, 0)
    said_at, began = bench.now, bench.now
    for _ in range(5):
        bench.tick(bench.agent.next_wakeup() - bench.now)
        assert 3240 <= bench.now - said_at <= 3960
        said_at = bench.now
    assert len(bench.healths) == 6
    assert bench.healths[-1].uptime_s == bench.now - began


def test_a_reconnection_alone_brings_no_health_message(bench):
    bench.connect()
    for _ in range(3):
        bench.disconnect()
        bench.now += 100.0
        bench.connect()
    assert len(bench.healths) == 1


def test_another_reason_is_told_at_once_but_never_twice_within_a_minute(bench):
    bench.connect()
    bench.now += 60.0
    _change(bench, INELIGIBLE, "on battery")
    assert [health.reason for health in bench.healths] == ["", "on battery"]
    for second in range(59):
        bench.now += 1.0
        _change(bench, INELIGIBLE, f"{second} % battery")
    assert len(bench.healths) == 2
    bench.tick(1.0)
    assert [health.reason for health in bench.healths[2:]] == ["58 % battery"]


def test_what_was_left_again_before_anybody_heard_of_it_is_not_told(bench):
    bench.connect()
    bench.now += 10.0
    _change(bench, INELIGIBLE, "too hot")
    _change(bench, INELIGIBLE, "")
    bench.tick(100.0)
    assert len(bench.healths) == 1


def test_nothing_is_said_without_a_connection_and_the_news_with_the_next_one(bench):
    _change(bench, SAFE_MODE, "5 bad starts in a row")
    bench.tick(100.0)
    assert bench.healths == []
    bench.connect()
    assert [(health.mode, health.reason) for health in bench.healths] == [(SAFE_MODE, "5 bad starts in a row")]


def test_safe_mode_hides_ineligible_and_the_end_of_one_does_not_end_the_other(bench):
    health = bench.agent.health
    _change(bench, INELIGIBLE, "on battery")
    _change(bench, SAFE_MODE, "bad starts")
    assert (health.mode, health.reason) == (SAFE_MODE, "bad starts")
    _change(bench, INELIGIBLE, "")
    assert health.mode is SAFE_MODE
    _change(bench, INELIGIBLE, "too hot")
    _change(bench, SAFE_MODE, "")
    assert (health.mode, health.reason) == (INELIGIBLE, "too hot")
    _change(bench, INELIGIBLE, "")
    assert (health.mode, health.reason) == (DeviceMode.OK, "")


def test_accepted_rounds_and_written_bytes_are_told(make_bench):
    bench = make_bench(bytes_written=lambda: 4321)
    assignment = bench.reach_training()
    bench.finish()
    bench.receipt(assignment)
    bench.tick(4000.0)
    assert bench.healths[-1].num_rounds_accepted == 1
    assert bench.healths[-1].bytes_written_last_hour == 4321


def test_a_reason_that_is_too_long_is_cut_and_an_uptime_beyond_the_message_is_capped():
    health = HealthReporter(uniform=lambda low, high: low)
    health.start(0.0)
    health.change(SAFE_MODE, "x" * 1000)
    message = health.message(1e12, bytes_written=0, num_rounds_accepted=0)
    assert message.reason == "x" * 200
    assert message.uptime_s == 1e8


def test_a_kind_that_a_device_does_not_know_is_counted_and_ignored(bench):
    bench.check_in()
    bench.handle(Incoming(topic=device_down("p", "d1", "a-later-kind"), payload=b"FW\x01\x81\xa4type\xa5later"))
    assert bench.agent.counts[DeviceCount.UNDECODABLE] == 1
    bench.tick_when_due()
    assert len(bench.take(CheckIn)) == 1


@pytest.mark.parametrize("mode", [DeviceMode.OK, INELIGIBLE, SAFE_MODE])
def test_an_empty_reason_enters_no_mode(bench, mode):
    _change(bench, mode, "")
    assert bench.agent.health.mode is DeviceMode.OK
