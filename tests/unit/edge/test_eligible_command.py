"""`flockwise edge eligible` and doctor's check: what they print, how they end; and a clock that is years off."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from edge_client.config import BrokerSection, DataSection, DeviceSection, EdgeConfig, EligibilitySection
from edge_client.doctor import CheckGroup, CheckStatus, Subject, run_group
from edge_client.eligibility.conditions import Condition
from edge_client.eligibility.report import ELIGIBILITY_CHECKS
from edge_client.time_floor import RELEASED_AT
from flockwise.edge_commands import edge

CONFIG = '[device]\npopulation = "p"\nstate_dir = "state"\n[broker]\nurl = "mqtt://127.0.0.1"\n[data]\npath = "data"\n'
# Whatever machine runs this test, its owner asks for nothing that the machine decides.
NOTHING = (
    '[eligibility]\nmax_temperature_c = "none"\nhard_temperature_c = 120\nthrottling = "ignore"\nmin_free_memory_mb = "none"\n'
    'max_memory_pressure_percent = "none"\nmetered_network = "allow"\nmin_free_disk_mb = "none"\n'
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOCKWISE_CONFIG", raising=False)
    (tmp_path / "client.toml").write_text(CONFIG + NOTHING)
    return tmp_path


def _run(*words, **environ):
    environ = {f"FLOCKWISE__ELIGIBILITY__{key}": value for key, value in environ.items()}
    return CliRunner().invoke(edge, ["eligible", "--config", "client.toml", *words], env=environ)


def test_an_eligible_device_ends_with_zero_and_shows_every_condition(home):
    result = _run()
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "eligible"
    for condition in Condition:
        assert condition.value in result.output
    values = json.loads(_run("--json").output)
    assert (values["eligible"], values["reason"]) == (True, None)
    assert {row["condition"] for row in values["conditions"]} == {condition.value for condition in Condition}


def test_an_ineligible_device_ends_with_three_and_says_why_and_how_to_mend_it(home):
    result = _run(POWER="battery", REQUIRE_MAINS="true")
    assert result.exit_code == 3
    assert "not eligible: not_on_mains: power is battery, allowed is mains" in result.output
    values = json.loads(_run("--json", METERED_NETWORK="refuse", NETWORK="metered").output)
    assert (values["eligible"], values["reason"]) == (False, "metered_network")
    assert [row["condition"] for row in values["conditions"] if row["is_barrier"]] == ["network"]


def test_settings_that_are_not_valid_end_with_one_and_a_line(home):
    for key, value in [
        ("HOURS", "22-6"),
        ("TIME_ZONE", "Mars/Olympus"),
        ("MAX_TEMPERATURE_C", "hot"),
        ("POWER", "sun"),
    ]:
        result = _run(**{key: value})
        assert result.exit_code == 1, key
        assert result.output.startswith("error: "), key
    result = _run(MAX_TEMPERATURE_C="100", HARD_TEMPERATURE_C="90")
    assert "must not be above hard_temperature_c" in result.output


def test_hours_may_be_one_text_with_semicolons_or_a_list(home):
    assert _run(HOURS="00:00-24:00").exit_code == 0
    (home / "client.toml").write_text(CONFIG + NOTHING + 'hours = ["00:00-12:00", "12:00-24:00"]\n')
    assert _run().exit_code == 0


def _finding(home, **section):
    config = EdgeConfig(
        device=DeviceSection(population="p", state_dir=str(home / "state")),
        broker=BrokerSection(url="mqtt://127.0.0.1"),
        data=DataSection(path=str(home)),
        eligibility=EligibilitySection(**section),
    )
    [finding] = run_group(CheckGroup(name="configuration", checks=ELIGIBILITY_CHECKS), Subject(config=config))
    return finding


def test_doctor_warns_of_a_device_that_may_not_train_now_and_does_not_fail_it(home):
    finding = _finding(home, enforce=False)
    assert (finding.name, finding.status) == ("eligibility", CheckStatus.OK)
    finding = _finding(home, power="battery", require_mains=True, hard_temperature_c=120, max_temperature_c="none",
                       throttling="ignore")  # fmt: skip
    assert finding.status is CheckStatus.WARN
    assert "not_on_mains" in finding.detail
    assert "edge eligible" in finding.remedy


@pytest.fixture(scope="module")
def faketime():
    program = shutil.which("faketime")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("faketime is missing: apt-get install faketime")
        pytest.skip("faketime is not installed")
    return program


@pytest.mark.parametrize(
    ("days", "exit_code"), [(None, 3), (-1, 3), (1, 0), (3650, 3)], ids=["1970", "too early", "right", "ten years on"]
)
def test_under_a_clock_that_is_years_off_the_owners_hours_are_unknown(home, faketime, days, exit_code):
    unix_s = 86400.0 if days is None else RELEASED_AT + 86400.0 * days
    moment = datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    program = "from flockwise.cli import main; main()"
    done = subprocess.run(
        [faketime, moment, sys.executable, "-c", program, "edge", "eligible", "--config", "client.toml", "--json"],
        env=os.environ | {"FLOCKWISE__ELIGIBILITY__HOURS": "00:00-24:00"},
        capture_output=True,
        timeout=120,
        check=False,
        text=True,
    )
    assert done.returncode == exit_code, done.stderr
    reason = json.loads(done.stdout)["reason"]
    assert reason == ("hours_unknown" if exit_code else None)
