"""The coordinator keeps what devices say about themselves, bounded, and lets it change nothing else."""

import random

import pytest

from broker_link.link import Incoming
from coordinator import population as population_module
from coordinator.fleet import FleetCoordinator
from coordinator.population import Population
from coordinator.round_policy import RoundPolicy
from simulators.virtual_run import linear_task
from wire_protocol.messages import DeviceHealth, DeviceMode, encode_message
from wire_protocol.topics import device_up

POLICY = RoundPolicy(report_goal=2, min_reports=1)


def _health(mode, reason=""):
    return DeviceHealth(mode=mode, reason=reason, bytes_written_last_hour=1, uptime_s=2.0, num_rounds_accepted=3)


def test_the_last_message_of_each_device_is_kept_and_modes_are_counted():
    population = Population(POLICY)
    population.note_health("a", _health(DeviceMode.OK))
    population.note_health("b", _health(DeviceMode.INELIGIBLE, "on battery"))
    population.note_health("a", _health(DeviceMode.SAFE_MODE, "bad starts"))
    assert population.health("a").reason == "bad starts"
    assert population.health("nobody") is None
    assert population.num_by_mode == {DeviceMode.OK: 0, DeviceMode.INELIGIBLE: 1, DeviceMode.SAFE_MODE: 1}


def test_made_up_devices_push_out_the_silent_ones_and_the_counts_stay_true(monkeypatch):
    monkeypatch.setattr(population_module, "_MAX_HEALTHS", 3)
    population = Population(POLICY)
    for index in range(10):
        population.note_health(f"made-up-{index}", _health(DeviceMode.OK))
        population.note_health("real", _health(DeviceMode.INELIGIBLE, "too hot"))
    assert population.health("real").reason == "too hot"
    assert sum(population.num_by_mode.values()) == 3
    assert population.num_by_mode[DeviceMode.INELIGIBLE] == 1


@pytest.fixture
def fleet():
    rng = random.Random(1)
    return FleetCoordinator(population="p", bundle=linear_task(4, 2), policy=POLICY, rng=rng, token=rng.randbytes)


def test_a_health_message_is_kept_and_answered_by_nothing(fleet):
    wire = encode_message(_health(DeviceMode.INELIGIBLE, "metered network"))
    assert fleet.handle(Incoming(topic=device_up("p", "d1", "health"), payload=wire), now=0.0) == []
    assert fleet.population.health("d1").reason == "metered network"
    assert fleet.population.num_waiting == 0


def test_a_kind_that_the_coordinator_does_not_know_is_counted_and_ignored(fleet):
    assert fleet.handle(Incoming(topic=device_up("p", "d1", "a-later-kind"), payload=b"FW\x01"), now=0.0) == []
    assert fleet.num_undecodable == {"unknown_kind": 1}
