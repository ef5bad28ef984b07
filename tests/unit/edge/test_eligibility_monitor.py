"""When the daemon looks at its machine, and what is news. The sensor is made up."""

import pytest

from edge_client.config import EligibilitySection
from edge_client.eligibility.conditions import IneligibleReason
from edge_client.eligibility.machine import Machine, Unknown
from edge_client.eligibility.monitor import EligibilityMonitor
from edge_client.eligibility.survey import OwnWork, Survey
from edge_client.eligibility.verdict import Eligible
from edge_client.time_floor import WallTime


class Sensor:
    """A machine with one thermal zone."""

    def __init__(self, root, run=lambda command: Unknown("no such program")):
        self.zone = root / "sys/class/thermal/thermal_zone0"
        self.zone.mkdir(parents=True)
        (self.zone / "type").write_text("cpu-thermal\n")
        self.machine = Machine(root=root, run=run, num_cores=4)
        self.root = root
        self.show(50)

    def show(self, celsius):
        part = self.zone / "part"
        part.write_text(f"{celsius * 1000:.0f}\n")
        part.replace(self.zone / "temp")

    def break_down(self):
        (self.zone / "temp").unlink()

    def monitor(self, **policy):
        section = EligibilitySection(**policy)
        survey = Survey(self.machine, policy=section, state_dir=self.root, wall_clock=lambda: WallTime(unix_s=0.0))
        return EligibilityMonitor(policy=section, survey=survey)


@pytest.fixture
def sensor(tmp_path):
    return Sensor(tmp_path / "machine")


def _look(monitor, now):
    changed = monitor.look(now, OwnWork())
    return changed.verdict if changed is not None else None


def test_a_change_is_told_once(sensor):
    monitor = sensor.monitor()
    assert _look(monitor, 0.0) is None
    sensor.show(81)
    assert _look(monitor, 5.0).reason is IneligibleReason.TOO_HOT
    sensor.show(84)
    assert _look(monitor, 10.0) is None
    sensor.show(77)
    assert _look(monitor, 15.0) is None
    sensor.show(74)
    assert _look(monitor, 20.0) == Eligible()


def test_a_sensor_that_breaks_down_ends_what_its_owner_demanded(sensor):
    monitor = sensor.monitor(max_temperature_c=70.0)
    assert _look(monitor, 0.0) is None
    sensor.break_down()
    assert _look(monitor, 5.0).reason is IneligibleReason.TEMPERATURE_UNKNOWN


def test_the_hard_limit_waits_for_no_slow_probe_and_for_no_policy(tmp_path):
    asked = []
    sensor = Sensor(tmp_path / "m", run=lambda command: asked.append(command) or Unknown("after a very long time"))
    sensor.show(91)
    monitor = sensor.monitor(max_temperature_c="none")
    assert _look(monitor, 0.0).reason is IneligibleReason.MUCH_TOO_HOT
    assert asked == []
    sensor = Sensor(tmp_path / "other")
    monitor = sensor.monitor(max_temperature_c="none")
    sensor.show(91)
    assert _look(monitor, 0.0).reason is IneligibleReason.MUCH_TOO_HOT
    sensor.show(86)
    assert _look(monitor, 5.0) is None
    sensor.show(84)
    assert _look(monitor, 10.0) == Eligible()


def test_a_working_device_looks_every_few_seconds_and_an_idle_one_twice_a_minute(sensor):
    monitor = sensor.monitor()
    assert monitor.next_wakeup(is_working=False) == 0.0
    _look(monitor, 100.0)
    assert monitor.next_wakeup(is_working=True) == 105.0
    assert monitor.next_wakeup(is_working=False) == 130.0
    assert monitor.is_fresh(101.0)
    assert not monitor.is_fresh(103.0)
    monitor.network_changed()
    assert monitor.next_wakeup(is_working=False) == 0.0
    assert not monitor.is_fresh(101.0)


def test_nothing_enforced_looks_at_nothing(sensor):
    monitor = sensor.monitor(enforce=False)
    assert monitor.next_wakeup(is_working=True) == float("inf")
    assert monitor.is_fresh(1e9)
