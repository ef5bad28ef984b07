"""The shipped units are valid and hardened, as systemd's own tools judge them."""

import configparser
import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from edge_client.errors import ConfigError
from edge_client.service_unit import MAX_EXPOSURE, UNIT_NAME, is_untouched, packaged_text, render_unit, stamped

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def _exposure(systemd_analyze, unit):
    command = [systemd_analyze, "--no-pager", "security", "--offline=true", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found.group(1))


def _values(text):
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str
    parser.read_string(text)
    return dict(parser["Service"])


def test_the_exposure_is_at_most_two_of_ten(systemd_analyze, unit):
    assert _exposure(systemd_analyze, unit) <= MAX_EXPOSURE == 2.0


def test_the_measure_sees_a_weakened_unit(systemd_analyze, unit):
    text = unit.read_text()
    for line in ("DynamicUser=yes", "CapabilityBoundingSet=", "SystemCallFilter=@system-service", "PrivateUsers=yes"):
        assert f"{line}\n" in text
        text = text.replace(f"{line}\n", "")
    unit.write_text(text)
    assert _exposure(systemd_analyze, unit) > MAX_EXPOSURE


def test_systemd_has_nothing_to_say_about_it(systemd_analyze, unit):
    done = subprocess.run([systemd_analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_devices_unit_is_notified_watched_and_keeps_secrets_and_state_where_systemd_keeps_them():
    values = _values((DEPLOY / UNIT_NAME).read_text())
    assert values["Type"] == "notify"
    assert int(values["WatchdogSec"]) >= 60
    assert values["StateDirectory"] == values["CacheDirectory"] == values["ConfigurationDirectory"] == "flockwise"
    text = (DEPLOY / UNIT_NAME).read_text()
    for name in ("flockwise-identity", "device.key", "broker-password"):
        assert f"LoadCredential={name}:/etc/flockwise/credentials/{name}\n" in text
        assert f"SetCredential={name}:\\n\n" in text, "without a default a missing file stops the service"
    # The probes of memory, load and pressure read /proc beyond the processes.
    assert "ProcSubset" not in values
    assert values["OOMPolicy"] == "continue"
    assert values["LimitCORE"] == "0"


def test_what_is_packaged_is_what_lies_in_deploy():
    for path in DEPLOY.glob("*edge*"):
        assert packaged_text(path.name) == path.read_text()


def test_the_unit_follows_prefix_and_user(systemd_analyze, tmp_path):
    text = render_unit(prefix=PurePosixPath("/srv/flock"), user="pi")
    assert "ExecStart=/srv/flock/bin/flockwise edge run" in text
    assert "DynamicUser=no\nUser=pi\n" in text
    (tmp_path / UNIT_NAME).write_text(text)
    assert _exposure(systemd_analyze, tmp_path / UNIT_NAME) <= MAX_EXPOSURE


@pytest.mark.parametrize(
    "prefix", ["/home/pi/venv", "/run/user/x", "/root", "relative", "/opt/a b", "/opt/%h", "/opt/../root"]
)
def test_a_prefix_that_the_service_could_not_see_is_refused(prefix):
    with pytest.raises(ConfigError, match="prefix"):
        render_unit(prefix=PurePosixPath(prefix))


@pytest.mark.parametrize("user", ["root\nUser=x", "Pi", "1pi", "a" * 40])
def test_what_is_no_user_name_is_refused(user):
    with pytest.raises(ConfigError, match="user"):
        render_unit(user=user)


def test_a_stamp_tells_an_edited_unit_from_an_installed_one():
    text = stamped(render_unit(), version="1.2")
    assert is_untouched(text)
    assert not is_untouched(text.replace("WatchdogSec=120", "WatchdogSec=0"))
    assert not is_untouched(render_unit())
