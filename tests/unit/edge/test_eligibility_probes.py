"""What the probes make of a machine: made-up trees under tmp_path, and once the real one."""

import dataclasses
import time
from pathlib import Path

import pytest

from edge_client.eligibility.heat import probe_temperature_c, probe_throttling
from edge_client.eligibility.machine import Machine, Unknown
from edge_client.eligibility.network import NetworkCost, probe_network
from edge_client.eligibility.policy import EligibilitySection
from edge_client.eligibility.power import PowerSource, probe_battery_percent, probe_power
from edge_client.eligibility.readings import Readings
from edge_client.eligibility.survey import OwnWork, Survey
from edge_client.eligibility.workload import (
    OwnLoad,
    probe_free_disk_mb,
    probe_free_memory_mb,
    probe_load_per_core,
    probe_memory_pressure_percent,
    probe_process_memory_mb,
)
from edge_client.time_floor import ClockUntrusted, WallTime

SUPPLY = "sys/class/power_supply"
ZONE = "sys/class/thermal/thermal_zone"


def _machine(root, files=None, run=None, num_cores=4):
    (root / SUPPLY).mkdir(parents=True, exist_ok=True)
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return Machine(root=root, run=run or (lambda command: Unknown("no such program")), num_cores=num_cores)


def _battery(name="BAT0", **files):
    return {f"{SUPPLY}/{name}/{key}": value for key, value in ({"type": "Battery", "present": "1"} | files).items()}


def _plug(online, kind="Mains", name="AC"):
    return {f"{SUPPLY}/{name}/type": kind, f"{SUPPLY}/{name}/online": online}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (_plug("1"), PowerSource.MAINS),
        (_plug("1", kind="USB"), PowerSource.MAINS),
        (_plug("0") | _battery(status="Discharging"), PowerSource.BATTERY),
        (_plug("0") | _battery(status="Unknown"), PowerSource.BATTERY),
        (_plug("1") | _battery(status="Discharging"), PowerSource.MAINS),
        (_battery(status="Charging"), PowerSource.MAINS),
        (_battery(status="Full"), PowerSource.MAINS),
        (_plug("0") | _battery(status="Full"), PowerSource.BATTERY),
    ],
)
def test_power_is_what_the_supplies_say(tmp_path, files, expected):
    assert probe_power(_machine(tmp_path, files)) is expected


@pytest.mark.parametrize(
    "files",
    [
        {},
        _plug("0"),
        _plug("banana"),
        _battery(status="Not charging"),
        _battery(status="Charging", present="0"),
        _battery(name="mouse", status="Charging", scope="Device"),
        {f"{SUPPLY}/AC/online": "1"},
    ],
)
def test_power_that_no_supply_vouches_for_is_unknown_not_mains(tmp_path, files):
    assert isinstance(probe_power(_machine(tmp_path, files)), Unknown)


def test_the_emptiest_battery_counts_and_nonsense_does_not(tmp_path):
    files = _battery(capacity="80") | _battery("BAT1", capacity="30") | _battery("BAT2", capacity="250")
    assert probe_battery_percent(_machine(tmp_path, files)) == 30.0
    assert isinstance(probe_battery_percent(_machine(tmp_path / "none")), Unknown)


def test_the_hottest_processor_sensor_counts_before_all_others(tmp_path):
    zones = {f"{ZONE}0/type": "acpitz", f"{ZONE}0/temp": "95000", f"{ZONE}1/type": "cpu-thermal", f"{ZONE}1/temp": "48312",
             f"{ZONE}2/type": "soc_thermal", f"{ZONE}2/temp": "51000"}  # fmt: skip
    assert probe_temperature_c(_machine(tmp_path, zones)) == 51.0
    others = {name: text for name, text in zones.items() if "zone0" in name}
    assert probe_temperature_c(_machine(tmp_path / "b", others)) == 95.0


def test_hwmon_serves_where_there_is_no_readable_zone(tmp_path):
    files = {f"{ZONE}0/type": "cpu", f"{ZONE}0/temp": "-274000", "sys/class/hwmon/hwmon3/name": "coretemp",
             "sys/class/hwmon/hwmon3/temp1_input": "61500", "sys/class/hwmon/hwmon1/name": "nvme",
             "sys/class/hwmon/hwmon1/temp1_input": "79000"}  # fmt: skip
    assert probe_temperature_c(_machine(tmp_path, files)) == 61.5


@pytest.mark.parametrize("text", ["", "hot", "1e9", "999999"])
def test_a_sensor_that_talks_nonsense_is_unknown(tmp_path, text):
    assert isinstance(probe_temperature_c(_machine(tmp_path, {f"{ZONE}0/type": "cpu", f"{ZONE}0/temp": text})), Unknown)


FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({FIRMWARE: "0"}, ()),
        ({FIRMWARE: "50000"}, ()),  # since the start, not now
        ({FIRMWARE: "50005"}, ("under-voltage", "throttled")),
        ({FIRMWARE: "0x2"}, ("frequency capped",)),
        ({FIRMWARE: "8"}, ()),  # the soft limit is the temperature's business
        (
            {"sys/class/hwmon/hwmon1/name": "rpi_volt", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1"},
            ("under-voltage",),
        ),
        ({"sys/class/hwmon/hwmon1/name": "rpi_volt", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0"}, ()),
    ],
)
def test_throttling_is_what_the_pi_says_now(tmp_path, files, expected):
    assert probe_throttling(_machine(tmp_path, files)) == expected


def test_vcgencmd_is_asked_last_and_its_absence_is_unknown(tmp_path):
    asked = []
    machine = _machine(tmp_path, run=lambda command: asked.append(command) or "throttled=0x50005\n")
    assert probe_throttling(machine) == ("under-voltage", "throttled")
    assert asked == [("vcgencmd", "get_throttled")]
    _machine(tmp_path, {FIRMWARE: "0"})
    assert probe_throttling(machine) == ()
    assert len(asked) == 1
    assert isinstance(probe_throttling(_machine(tmp_path / "b")), Unknown)
    assert isinstance(probe_throttling(_machine(tmp_path / "c", {FIRMWARE: "zz"})), Unknown)


def test_load_is_per_core(tmp_path):
    machine = _machine(tmp_path, {"proc/loadavg": "2.00 1.50 1.00 1/100 12345"})
    assert probe_load_per_core(machine) == 0.5
    for text in ("", "nan 0 0", "-1 0 0", "x"):
        assert isinstance(probe_load_per_core(_machine(tmp_path, {"proc/loadavg": text})), Unknown)


def test_memory_is_what_the_kernel_calls_available(tmp_path):
    text = "MemTotal:  1000000 kB\nMemFree:  10 kB\nMemAvailable:  409600 kB"
    assert probe_free_memory_mb(_machine(tmp_path, {"proc/meminfo": text})) == 400.0
    assert isinstance(probe_free_memory_mb(_machine(tmp_path, {"proc/meminfo": "MemFree: 1 kB"})), Unknown)


def test_memory_pressure_is_the_ten_second_share(tmp_path):
    text = "some avg10=12.50 avg60=1.00 avg300=0.00 total=9\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=1"
    assert probe_memory_pressure_percent(_machine(tmp_path, {"proc/pressure/memory": text})) == 12.5
    assert isinstance(probe_memory_pressure_percent(_machine(tmp_path, {"proc/pressure/memory": "some"})), Unknown)
    assert isinstance(probe_memory_pressure_percent(_machine(tmp_path / "old")), Unknown)


def test_disk_space_is_that_of_the_nearest_directory_there_is(tmp_path):
    assert probe_free_disk_mb(tmp_path / "not" / "yet" / "made") > 0


def _nmcli(*devices):
    return lambda command: (
        "\n\n".join("\n".join(device) for device in devices) + "\n" if command[0] == "nmcli" else None
    )


ETHERNET, WIFI, MODEM = ("ethernet", "100 (connected)"), ("wifi", "100 (connected)"), ("gsm", "100 (connected)")
LOOPBACK = ("loopback", "100 (connected (externally))", "unknown")


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([(*ETHERNET, "no (guessed)"), LOOPBACK], NetworkCost.UNMETERED),
        ([(*WIFI, "yes (guessed)"), LOOPBACK], NetworkCost.METERED),
        ([(*ETHERNET, "no"), (*MODEM, "yes")], NetworkCost.METERED),
        ([(*WIFI, "no"), ("gsm", "30 (disconnected)", "unknown")], NetworkCost.UNMETERED),
        ([("bridge", "100 (connected (externally))", "unknown"), (*WIFI, "no")], NetworkCost.UNMETERED),
    ],
)
def test_the_network_is_metered_if_any_connected_device_is(tmp_path, devices, expected):
    assert probe_network(_machine(tmp_path, run=_nmcli(*devices))) is expected


@pytest.mark.parametrize(
    "devices", [[], [LOOPBACK], [(*WIFI, "unknown")], [(*WIFI, "unknown"), (*ETHERNET, "no")], [("garbage",)]]
)
def test_a_network_that_is_not_known_to_be_free_is_unknown(tmp_path, devices):
    assert isinstance(probe_network(_machine(tmp_path, run=_nmcli(*devices))), Unknown)


def test_without_networkmanager_the_network_is_unknown_and_says_so(tmp_path):
    reading = probe_network(_machine(tmp_path))
    assert "no such program" in reading.why


def test_our_own_training_is_taken_out_of_the_load_as_the_kernel_puts_it_in():
    own = OwnLoad()
    assert own.update(0.0, 2) == 0.0
    rising = [own.update(5.0 * step, 2) for step in range(1, 61)]
    assert rising == sorted(rising)
    assert rising[11] == pytest.approx(2 * (1 - 2.718281828 ** (-1)), rel=1e-6)
    assert rising[-1] == pytest.approx(2.0, abs=0.02)
    own.update(300.0, 0)
    assert own.update(360.0, 0) == pytest.approx(2.0 / 2.718281828, abs=0.02)
    assert own.update(300.0, 0) >= 0  # time never runs backwards here, and if it did


def _survey(machine, tmp_path, policy=EligibilitySection(), clock=lambda: WallTime(unix_s=0.0), **options):  # noqa: B008
    return Survey(machine, policy=policy, state_dir=tmp_path, wall_clock=clock, **options)


def test_what_the_device_uses_itself_is_not_held_against_it(tmp_path):
    files = {
        "proc/loadavg": "1.0 0 0 1/1 1",
        "proc/meminfo": "MemAvailable: 102400 kB",
        "proc/77/statm": "99999 25600 1",
    }
    machine = _machine(tmp_path, files, num_cores=2)
    own = OwnWork(trainer_pid=77, num_busy_threads=1)
    survey = _survey(machine, tmp_path)
    survey.read(0.0, own)
    readings = survey.read(600.0, own)
    assert readings.load_per_core == pytest.approx(0.0, abs=1e-3)
    assert readings.free_memory_mb == 100.0 + probe_process_memory_mb(machine, 77)
    assert isinstance(probe_process_memory_mb(machine, 78), Unknown)
    assert survey.read(601.0, OwnWork(trainer_pid=78)).free_memory_mb == 100.0


def test_the_owners_word_about_power_and_network_wins_over_the_probes(tmp_path):
    machine = _machine(tmp_path, _plug("0") | _battery(status="Discharging"), run=_nmcli((*WIFI, "no")))
    policy = EligibilitySection(power="mains", network="metered")
    readings = _survey(machine, tmp_path, policy).read(0.0, OwnWork())
    assert (readings.power, readings.network) == (PowerSource.MAINS, NetworkCost.METERED)


def test_a_program_that_nobody_needs_is_not_run(tmp_path):
    asked = []
    machine = _machine(tmp_path, {FIRMWARE: "0"}, run=lambda command: asked.append(command) or Unknown("no"))
    for policy in (EligibilitySection(metered_network="allow"), EligibilitySection(network="unmetered")):
        _survey(machine, tmp_path, policy).read(0.0, OwnWork())
    assert asked == []
    _survey(machine, tmp_path).read(0.0, OwnWork())
    assert [command[0] for command in asked] == ["nmcli"]


def test_slow_programs_are_asked_again_in_the_background_and_news_is_told(tmp_path):
    answers = iter(["no", "yes"])
    told = []

    def run(command):
        return _nmcli((*WIFI, next(answers)))(command)

    machine = _machine(tmp_path, {FIRMWARE: "0"}, run=run)
    survey = _survey(machine, tmp_path, on_news=lambda: told.append(True))
    assert survey.read(0.0, OwnWork()).network is NetworkCost.UNMETERED
    assert survey.read(30.0, OwnWork()).network is NetworkCost.UNMETERED
    survey.network_changed()
    survey.read(31.0, OwnWork())
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert survey.read(32.0, OwnWork()).network is NetworkCost.METERED


def test_a_probe_that_raises_after_all_has_read_nothing(tmp_path):
    def run(command):
        raise RuntimeError("driver fell over")

    def clock():
        raise OverflowError("no such year")

    readings = _survey(_machine(tmp_path, run=run), tmp_path, clock=clock).read(0.0, OwnWork())
    assert readings.network.why == "RuntimeError: driver fell over"
    assert readings.local_time.why == "OverflowError: no such year"


def test_an_untrusted_clock_makes_the_local_time_unknown(tmp_path):
    clock = lambda: ClockUntrusted(why="the clock says 1970-01-01")  # noqa: E731
    assert _survey(_machine(tmp_path), tmp_path, clock=clock).read(0.0, OwnWork()).local_time.why.endswith("1970-01-01")


def test_on_this_very_machine_no_probe_raises_and_each_gives_a_value_or_says_why(tmp_path):
    readings = _survey(Machine.this(), tmp_path).read(0.0, OwnWork())
    for field in dataclasses.fields(Readings):
        value = getattr(readings, field.name)
        assert value is not None, field.name
        assert not isinstance(value, Unknown) or value.why, field.name
        assert value != Unknown("not read"), field.name


def test_a_program_that_hangs_fails_or_is_missing_is_unknown(monkeypatch):
    from edge_client.eligibility import machine as module

    monkeypatch.setattr(module, "_COMMAND_TIMEOUT_S", 0.2)
    run = Machine.this().run
    assert run(("echo", "hello")) == "hello\n"
    assert "did not answer" in run(("sleep", "60")).why
    assert "exit code 1" in run(("false",)).why
    assert "no program" in run(("flockwise-no-such-program",)).why


def test_a_machine_has_a_core():
    with pytest.raises(ValueError, match="num_cores"):
        Machine(root=Path("/"), run=lambda command: "", num_cores=0)
