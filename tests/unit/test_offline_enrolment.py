"""Simulated devices are enrolled as real ones are."""

import stat

import pytest

from broker_link.link import Incoming
from coordinator.device_guard import RosterGuard
from coordinator.roster import DeviceState, Roster
from edge_client.identity import IdentityStore
from edge_client.state_writer import StateWriter
from simulators.errors import FleetFailed
from simulators.offline_enrolment import enrol_offline, num_heard
from wire_protocol.topics import device_up

POPULATION = "p"


def test_every_device_gets_a_key_of_its_own_that_the_guard_believes(tmp_path):
    roster_file = tmp_path / "roster.sqlite"
    state_dirs = {f"d{index}": tmp_path / f"d{index}" / "state" for index in range(5)}
    enrol_offline(roster_file, state_dirs, population=POPULATION)
    assert num_heard(roster_file, population=POPULATION) == 0
    roster = Roster(roster_file)
    records = roster.devices(POPULATION)
    assert {record.device_id for record in records} == set(state_dirs)
    assert {record.state for record in records} == {DeviceState.ACTIVE}
    assert len({record.public_key for record in records}) == 5
    guard = RosterGuard(roster, population=POPULATION, publish=lambda *_: None, wall_clock=lambda: 0.0)
    for device_id, state_dir in list(state_dirs.items())[:3]:
        assert stat.S_IMODE((state_dir / "identity.key").stat().st_mode) == 0o600
        identity = IdentityStore.of_this_process(state_dir, writer=StateWriter()).load()
        topic = device_up(POPULATION, device_id, "check-in")
        for _ in range(2):
            assert guard.screen(Incoming(topic=topic, payload=identity.seal(topic, b"m"))).payload == b"m"
    guard.close()
    assert num_heard(roster_file, population=POPULATION) == 3


def test_a_device_that_another_key_has_the_name_of_is_told_of(tmp_path):
    roster_file = tmp_path / "roster.sqlite"
    enrol_offline(roster_file, {"d1": tmp_path / "a"}, population=POPULATION)
    with pytest.raises(FleetFailed, match="only 1 of 2"):
        enrol_offline(roster_file, {"d1": tmp_path / "b", "d2": tmp_path / "c"}, population=POPULATION)
