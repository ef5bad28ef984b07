"""`edge install` puts files in their places, shows before it does, and overwrites nothing that was edited."""

import json
import os
import stat

import pytest
from click.testing import CliRunner

from edge_client.config_loader import load_config
from edge_client.service_unit import is_untouched, stamped
from flockwise.cli import main

UNIT = "etc/systemd/system/flockwise-edge.service"
CONFIG = "etc/flockwise/edge.toml"
KEY = "etc/flockwise/credentials/device.key"
IDENTITY = "etc/flockwise/credentials/flockwise-identity"
PASSWORD = "etc/flockwise/credentials/broker-password"  # noqa: S105 - a path


@pytest.fixture
def root(tmp_path):
    """What is / on the device, with the environment that pip made."""
    program = tmp_path / "opt/flockwise/bin/flockwise"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    return tmp_path


def _run(root, verb, *words, exit_code=0):
    result = CliRunner().invoke(main, ["edge", verb, "--root", str(root), "--json", *words])
    assert result.exit_code == exit_code, result.output
    values = json.loads(result.stdout)
    return values, {change["path"].lstrip("/"): change["change"] for change in values["changes"]}


def _files(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in (root / "etc").rglob("*") if path.is_file()
    } if (root / "etc").exists() else {}  # fmt: skip


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_put_in_its_place_with_secrets_for_root_alone(root):
    values, changes = _run(root, "install")
    assert set(changes.values()) == {"create"}
    assert set(_files(root)) == {UNIT, CONFIG, IDENTITY, KEY, PASSWORD}
    assert _mode(root / "etc/flockwise/credentials") == 0o700
    assert _mode(root / KEY) == _mode(root / PASSWORD) == 0o600
    assert _mode(root / UNIT) == _mode(root / CONFIG) == 0o644
    assert is_untouched((root / UNIT).read_text())
    assert "sudo systemctl enable --now flockwise-edge.service" in values["next"]
    assert "sudo nano /etc/flockwise/edge.toml" in values["next"]


def test_the_configuration_to_fill_in_is_valid_but_for_its_population(root):
    _run(root, "install")
    text = (root / CONFIG).read_text()
    (root / CONFIG).write_text(text.replace("CHANGE-ME", "digits"))
    config = load_config(root / CONFIG, {})
    assert config.device.state_dir == "/var/lib/flockwise"
    assert config.data.path.startswith("/var/lib/flockwise/")
    uncommented = "\n".join(line.removeprefix("# ") if " = " in line else line for line in text.splitlines())
    for key in ("id", "ca_file", "cert_file", "username"):
        assert f"\n{key} = " in uncommented


def test_a_dry_run_says_all_that_and_changes_nothing(root):
    values, changes = _run(root, "install", "--dry-run")
    assert values["dry_run"]
    assert changes[UNIT] == "create"
    assert _files(root) == {}
    text = CliRunner().invoke(main, ["edge", "install", "--root", str(root), "--dry-run"]).output
    assert f"would create: /{UNIT}" in text
    assert "    sudo systemctl daemon-reload" in text


def test_done_twice_it_does_nothing_the_second_time(root):
    _run(root, "install")
    before = _files(root)
    times = {path: (root / path).stat().st_mtime_ns for path in before}
    _, changes = _run(root, "install")
    assert set(changes.values()) == {"keep"}
    assert _files(root) == before
    assert times == {path: (root / path).stat().st_mtime_ns for path in before}


def test_an_edited_unit_stays_unless_forced_and_then_a_copy_does(root):
    _run(root, "install")
    edited = (root / UNIT).read_text().replace("WatchdogSec=120", "WatchdogSec=9")
    (root / UNIT).write_text(edited)
    _, changes = _run(root, "install", exit_code=3)
    assert changes[UNIT] == "edited"
    assert (root / UNIT).read_text() == edited
    _, changes = _run(root, "install", "--force")
    assert changes[UNIT] == "replace"
    assert (root / f"{UNIT}.bak").read_text() == edited
    assert is_untouched((root / UNIT).read_text())


def test_an_older_unit_that_nobody_edited_is_brought_up_to_date_without_force(root):
    _run(root, "install")
    (root / UNIT).write_text(stamped("[Service]\nExecStart=/opt/flockwise/bin/flockwise edge run\n", version="0.0.1"))
    _, changes = _run(root, "install")
    assert changes[UNIT] == "replace"
    assert "WatchdogSec=120" in (root / UNIT).read_text()
    assert not (root / f"{UNIT}.bak").exists()


def test_settings_and_secrets_are_never_lost(root):
    _run(root, "install")
    (root / CONFIG).write_text("mine")
    (root / PASSWORD).write_text("hunter2")
    _, changes = _run(root, "install")
    assert changes[CONFIG] == changes[PASSWORD] == "keep"
    _run(root, "install", "--force")
    assert (root / f"{CONFIG}.bak").read_text() == "mine"
    assert (root / PASSWORD).read_text() == "hunter2"


def test_prefix_and_user_reach_the_unit(root):
    (root / "srv/flock/bin").mkdir(parents=True)
    (root / "srv/flock/bin/flockwise").write_text("")
    values, _ = _run(root, "install", "--prefix", "/srv/flock", "--user", "pi")
    text = (root / UNIT).read_text()
    assert "ExecStart=/srv/flock/bin/flockwise edge run" in text
    assert "User=pi" in text
    assert any(command.startswith("sudo /srv/flock/bin/flockwise edge doctor") for command in values["next"])


def test_an_image_without_the_program_is_warned_about(tmp_path):
    values, _ = _run(tmp_path, "install")
    assert "there is no" in values["warning"]


def test_uninstall_takes_the_unit_and_leaves_what_is_the_owners_unless_purged(root):
    _run(root, "install")
    (root / CONFIG).write_text("mine")
    _, changes = _run(root, "uninstall", "--dry-run")
    assert changes[UNIT] == "remove"
    assert (root / UNIT).exists()
    values, _ = _run(root, "uninstall")
    assert set(_files(root)) == {CONFIG, IDENTITY, KEY, PASSWORD}
    assert values["next"][0] == "sudo systemctl disable --now flockwise-edge.service"
    _run(root, "uninstall", "--purge")
    assert _files(root) == {}
    assert _run(root, "uninstall")[1] == {}


def test_an_edited_unit_is_removed_only_by_force(root):
    _run(root, "install")
    with (root / UNIT).open("ab") as stream:
        stream.write(b"# caf\xe9\n")
    _, changes = _run(root, "uninstall", exit_code=3)
    assert changes[UNIT] == "edited"
    assert (root / UNIT).exists()
    _run(root, "uninstall", "--force")
    assert not (root / UNIT).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prefix", "/home/pi/venv"], "hidden from the hardened service"),
        (["--user", "no such"], "not a user name"),
        (["--prefix", "nowhere"], "absolute path"),
    ],
)
def test_what_cannot_be_is_one_line_that_says_why(root, words, message):
    result = CliRunner().invoke(main, ["edge", "install", "--root", str(root), *words])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert _files(root) == {}


def test_without_root_rights_nothing_is_tried_and_sudo_is_named(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for verb in ("install", "uninstall"):
        result = CliRunner().invoke(main, ["edge", verb])
        assert result.exit_code == 1
        assert "sudo" in result.stderr


def test_a_directory_that_cannot_be_written_is_one_line(root):
    (root / "etc").write_text("a file")
    result = CliRunner().invoke(main, ["edge", "install", "--root", str(root)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
