"""From policy and readings to a verdict: a table of every condition, hysteresis, and that unknown is never true."""

import dataclasses
import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.eligibility.conditions import Condition, IneligibleReason, Outcome
from edge_client.eligibility.hours import HoursWindow, LocalTime, local_time, parse_hours
from edge_client.eligibility.machine import Unknown
from edge_client.eligibility.network import NetworkCost
from edge_client.eligibility.policy import EligibilitySection, Stance
from edge_client.eligibility.power import PowerSource
from edge_client.eligibility.readings import Readings
from edge_client.eligibility.verdict import Eligible, Ineligible, assess, held_conditions, verdict

MONDAY_NOON = LocalTime(weekday=0, minute=720)
GOOD = Readings(
    power=PowerSource.BATTERY,
    battery_percent=100.0,
    temperature_c=20.0,
    throttling=(),
    load_per_core=0.0,
    free_memory_mb=4000.0,
    memory_pressure_percent=0.0,
    network=NetworkCost.UNMETERED,
    local_time=MONDAY_NOON,
    free_disk_mb=9000.0,
)
# Written without looking at the rules: the key that demands, the reading it needs, a bad reading, and the reason.
DEMANDS = [
    ({"require_mains": True}, "power", PowerSource.BATTERY, IneligibleReason.NOT_ON_MAINS),
    ({"min_battery_percent": 50.0}, "battery_percent", 49.0, IneligibleReason.BATTERY_LOW),
    ({"max_temperature_c": 70.0}, "temperature_c", 70.1, IneligibleReason.TOO_HOT),
    ({"throttling": "refuse"}, "throttling", ("under-voltage",), IneligibleReason.THROTTLED),
    ({"max_load_per_core": 0.5}, "load_per_core", 0.51, IneligibleReason.BUSY),
    ({"min_free_memory_mb": 300.0}, "free_memory_mb", 299.0, IneligibleReason.LITTLE_MEMORY),
    ({"max_memory_pressure_percent": 10.0}, "memory_pressure_percent", 11.0, IneligibleReason.MEMORY_PRESSURE),
    ({"metered_network": "refuse"}, "network", NetworkCost.METERED, IneligibleReason.METERED_NETWORK),
    ({"hours": ("12:00-13:00",)}, "local_time", LocalTime(weekday=0, minute=780), IneligibleReason.OUTSIDE_HOURS),
    ({"min_free_disk_mb": 100.0}, "free_disk_mb", 99.0, IneligibleReason.LITTLE_DISK),
]
IDS = [next(iter(keys)) for keys, *_ in DEMANDS]
NOTHING_ASKED = EligibilitySection(
    max_temperature_c="none", throttling="ignore", min_free_memory_mb="none", max_memory_pressure_percent="none",
    metered_network="allow", min_free_disk_mb="none",
)  # fmt: skip


def _with(reading, value, base=GOOD):
    return dataclasses.replace(base, **{reading: value})


def _demanding(keys, base=NOTHING_ASKED):
    return msgspec.structs.replace(base, **keys)


@pytest.mark.parametrize(("keys", "reading", "bad", "reason"), DEMANDS, ids=IDS)
def test_a_demand_is_met_or_broken_by_its_own_reading_alone(keys, reading, bad, reason):
    policy = _demanding(keys)
    good = _with("power", PowerSource.MAINS) if reading == "power" else GOOD
    assert verdict(policy, good) == Eligible()
    result = verdict(policy, _with(reading, bad, good))
    assert isinstance(result, Ineligible)
    assert result.reason is reason
    assert verdict(NOTHING_ASKED, _with(reading, bad, good)) == Eligible()
    nothing_else = Readings(**{reading: getattr(good, reading)})
    assert verdict(policy, nothing_else) == Eligible()


@pytest.mark.parametrize(("keys", "reading", "bad", "reason"), DEMANDS, ids=IDS)
def test_an_unknown_reading_breaks_its_demand_and_says_what_is_unknown_why_and_which_key_mends_it(
    keys, reading, bad, reason
):
    result = verdict(_demanding(keys), _with(reading, Unknown("the sensor is on holiday")))
    assert isinstance(result, Ineligible)
    assert result.reason.value.endswith("_unknown")
    assert "unknown (the sensor is on holiday)" in result.detail
    [key] = keys
    assert f"eligibility.{key}" in result.detail or "eligibility.power" in result.detail


READING_NAMES = [field.name for field in dataclasses.fields(Readings)]


@pytest.mark.parametrize(("keys", "reading", "bad", "reason"), DEMANDS, ids=IDS)
def test_no_combination_of_unknown_readings_makes_a_demand_true(keys, reading, bad, reason):
    others = [name for name in READING_NAMES if name != reading]
    policy = _demanding(keys)
    base = _with(reading, Unknown("?"))
    for size in range(len(others) + 1):
        for unknown in itertools.combinations(others, size):
            readings = dataclasses.replace(base, **dict.fromkeys(unknown, Unknown("?")))
            assert isinstance(verdict(policy, readings), Ineligible), unknown


_numbers = st.floats(allow_nan=True, allow_infinity=True)
_any_readings = st.fixed_dictionaries({
    "power": st.sampled_from(PowerSource),
    "battery_percent": _numbers,
    "temperature_c": _numbers,
    "throttling": st.sampled_from([(), ("throttled",)]),
    "load_per_core": _numbers,
    "free_memory_mb": _numbers,
    "memory_pressure_percent": _numbers,
    "network": st.sampled_from(NetworkCost),
    "local_time": st.builds(LocalTime, weekday=st.integers(0, 6), minute=st.integers(0, 1439)),
    "free_disk_mb": _numbers,
})  # fmt: skip


@given(
    values=_any_readings,
    unknown=st.sets(st.sampled_from(READING_NAMES)),
    demanded=st.sets(st.integers(0, len(DEMANDS) - 1)),
    held=st.sets(st.sampled_from(Condition)),
    defaults=st.booleans(),
)
def test_for_any_readings_any_demands_and_any_memory_an_unknown_demanded_reading_is_a_no(
    values, unknown, demanded, held, defaults
):
    policy = EligibilitySection() if defaults else NOTHING_ASKED
    for index in demanded:
        policy = _demanding(DEMANDS[index][0], policy)
    readings = Readings(**(values | dict.fromkeys(unknown, Unknown("?"))))
    result = verdict(policy, readings, held)
    needs = {DEMANDS[index][1] for index in demanded}
    if "battery_percent" in needs and readings.power is PowerSource.MAINS:
        needs.remove("battery_percent")  # "at least 50 %, or on mains": mains is known, and enough
    if needs & unknown:
        assert isinstance(result, Ineligible)
    if "network" in needs & unknown:
        assert result.is_network_barred


@given(values=_any_readings, unknown=st.sets(st.sampled_from(READING_NAMES)), name=st.sampled_from(READING_NAMES))
def test_knowing_less_never_helps_against_a_demand(values, unknown, name):
    policy = NOTHING_ASKED
    for keys, *_ in DEMANDS:
        policy = _demanding(keys, policy)
    readings = Readings(**(values | dict.fromkeys(unknown, Unknown("?"))))
    if isinstance(verdict(policy, readings), Ineligible):
        assert isinstance(verdict(policy, _with(name, Unknown("?"), readings)), Ineligible)


def test_the_defaults_are_precautions_heeded_where_there_is_a_reading():
    policy = EligibilitySection()
    assert verdict(policy, Readings()) == Eligible()
    assert verdict(policy, GOOD) == Eligible()
    for reading, bad in [("temperature_c", 80.5), ("free_memory_mb", 199.0), ("throttling", ("throttled",)),
                         ("network", NetworkCost.METERED), ("memory_pressure_percent", 26.0), ("free_disk_mb", 9.0)]:  # fmt: skip
        assert isinstance(verdict(policy, _with(reading, bad)), Ineligible), reading
    assert {each.stance for each in assess(policy, GOOD)} == {Stance.PRECAUTION, Stance.OFF}


def test_nothing_enforced_is_eligible_whatever_the_machine_says():
    policy = _demanding({"enforce": False} | {key: value for keys, *_ in DEMANDS for key, value in keys.items()})
    awful = dataclasses.replace(GOOD, temperature_c=119.0, free_memory_mb=0.0, network=NetworkCost.METERED)
    assert verdict(policy, awful) == verdict(policy, Readings()) == Eligible()


def test_the_hard_temperature_stays_when_the_owner_drops_the_other():
    result = verdict(NOTHING_ASKED, _with("temperature_c", 90.5))
    assert result.reason is IneligibleReason.MUCH_TOO_HOT


def test_a_number_that_is_none_breaks_a_limit():
    for reading in ("temperature_c", "free_memory_mb", "load_per_core"):
        policy = _demanding({"max_load_per_core": 1.0}, EligibilitySection())
        assert isinstance(verdict(policy, _with(reading, float("nan"))), Ineligible)


@pytest.mark.parametrize(
    ("keys", "reading", "series", "expected"),
    [
        ({"max_temperature_c": 80.0}, "temperature_c", [79, 80, 81, 79, 76, 75, 79, 80.5, 75.5, 74], "++---++--+"),
        ({"max_load_per_core": 1.0}, "load_per_core", [0.9, 1.1, 0.9, 0.8, 0.95], "+--++"),
        ({"min_free_memory_mb": 200.0}, "free_memory_mb", [201, 199, 230, 240, 201], "+--++"),
    ],
)
def test_a_device_at_its_limit_does_not_flap(keys, reading, series, expected):
    policy, held, seen = _demanding(keys), frozenset(), ""
    for value in series:
        readings = _with(reading, float(value))
        seen += "+" if verdict(policy, readings, held) == Eligible() else "-"
        held = held_conditions(assess(policy, readings, held))
    assert seen == expected


def test_only_what_the_network_breaks_bars_the_network():
    policy = EligibilitySection()
    metered_and_hot = dataclasses.replace(GOOD, temperature_c=85.0, network=NetworkCost.METERED)
    result = verdict(policy, metered_and_hot)
    assert (result.reason, result.is_network_barred) == (IneligibleReason.TOO_HOT, True)
    assert not verdict(policy, _with("temperature_c", 85.0)).is_network_barred


def test_what_is_not_asked_is_never_held():
    assessments = assess(NOTHING_ASKED, _with("free_memory_mb", 0.0))
    assert held_conditions(assessments) == frozenset()
    assert {each.outcome for each in assessments} == {Outcome.MET}


# -- hours


@pytest.mark.parametrize(
    ("texts", "inside", "outside"),
    [
        (["22:00-06:00"], ["mon 22:00", "mon 23:59", "tue 00:00", "tue 05:59"], ["mon 21:59", "tue 06:00", "mon 12:00"]),
        (["08:00-09:30"], ["sun 08:00", "sun 09:29"], ["sun 09:30", "sun 07:59"]),
        (["sat,sun 00:00-24:00"], ["sat 00:00", "sun 23:59"], ["fri 23:59", "mon 00:00"]),
        (["fri 22:00-06:00"], ["fri 22:00", "sat 05:59"], ["fri 05:59", "sat 22:00", "thu 23:00"]),
        (["mon-fri 20:00-24:00"], ["mon 20:00", "fri 23:59"], ["sat 20:00", "tue 00:00"]),
        (["sat-mon 01:00-2:00"], ["sat 01:00", "sun 01:30", "mon 01:59"], ["tue 01:30", "fri 01:30"]),
        (["sun 23:00-01:00"], ["sun 23:00", "mon 00:59"], ["sun 00:30", "mon 23:30"]),
        (["01:00-02:00", "03:00-04:00"], ["mon 01:00", "mon 03:59"], ["mon 02:30"]),
    ],
)  # fmt: skip
def test_hours_hold_what_they_say(texts, inside, outside):
    windows = parse_hours(texts)
    for text in inside:
        assert any(window.contains(_wall(text)) for window in windows), text
    for text in outside:
        assert not any(window.contains(_wall(text)) for window in windows), text


def _wall(text):
    day, clock = text.split()
    hour, minute = clock.split(":")
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    return LocalTime(weekday=days.index(day), minute=int(hour) * 60 + int(minute))


@pytest.mark.parametrize(
    "text", ["", "22-6", "25:00-26:00", "10:60-11:00", "24:00-01:00", "10:00-10:00", "mo 10:00-11:00", "mon- 10:00-11:00",
             "mon,, 10:00-11:00", "10:00-11:00 x", "-mon 1:00-2:00"]
)  # fmt: skip
def test_hours_that_cannot_be_understood_are_refused(text):
    with pytest.raises(ValueError, match="hours: "):
        parse_hours([text])


@settings(deadline=None)
@given(begin=st.integers(0, 1439), length=st.integers(1, 1439), weekday=st.integers(0, 6))
def test_a_window_of_one_day_is_open_for_exactly_its_length_each_week(begin, length, weekday):
    window = HoursWindow(days=frozenset({weekday}), begin=begin, end=(begin + length) % 1440)
    week = itertools.product(range(7), range(1440))
    assert sum(window.contains(LocalTime(weekday=day, minute=minute)) for day, minute in week) == length


def test_summer_time_moves_no_end_of_a_window():
    # Berlin, 2026-03-29: 02:00 becomes 03:00 at 01:00 UTC. 2026-10-25: 03:00 becomes 02:00 at 01:00 UTC.
    spring, autumn = 1774746000, 1792890000
    shown = lambda unix_s: str(local_time(unix_s, "Europe/Berlin"))  # noqa: E731
    assert (shown(spring - 60), shown(spring)) == ("sun 01:59", "sun 03:00")
    assert (shown(autumn - 60), shown(autumn)) == ("sun 02:59", "sun 02:00")
    [window] = parse_hours(["sat 22:00-06:00"])
    for change, hours_open in ((spring, 7), (autumn, 9)):
        begin = change - 86400
        minutes = [begin + 60 * step for step in range(2 * 1440)]
        is_open = [window.contains(local_time(unix_s, "Europe/Berlin")) for unix_s in minutes]
        assert sum(is_open) == hours_open * 60


def test_the_systems_zone_is_used_if_none_is_named(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "UTC-5")
    time.tzset()
    try:
        assert str(local_time(0.0)) == "thu 05:00"
    finally:
        monkeypatch.undo()
        time.tzset()
    with pytest.raises(ValueError, match="time zone"):
        local_time(0.0, "Mars/Olympus")
