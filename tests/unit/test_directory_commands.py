"""`flockwise directory` and `flockwise edge directory-request`: from a device's keys to a log that a device believes."""

import json
import os
import threading

import pytest
from click.testing import CliRunner

from coordinator.directory_files import change_directory, open_key_directory
from coordinator.errors import DirectoryFilesUnusable
from flockwise.cli import main
from secure_sum.directory_entries import MemberRole, encode_request
from secure_sum.key_directory import add_member
from simulators.trials.sum_decoders import sample_member


def _run(*words, code=0, stdin=None):
    result = CliRunner().invoke(main, [str(word) for word in words], input=stdin)
    assert result.exit_code == code, result.output
    return result


def _json(*words, **options):
    return json.loads(_run(*words, "--json", **options).stdout)


def _request(member_id, seed, role=MemberRole.DEVICE):
    return encode_request(sample_member(member_id, seed=seed, role=role))


@pytest.fixture
def home(tmp_path):
    _run("directory", "init", "--population", "p", "--dir", tmp_path / "authority")
    return tmp_path / "authority"


@pytest.fixture
def device(tmp_path, monkeypatch):
    values = {"DEVICE__POPULATION": "p", "DEVICE__ID": "kitchen-pi", "DEVICE__STATE_DIR": str(tmp_path / "state"),
              "BROKER__URL": "mqtt://127.0.0.1:1", "DATA__PATH": str(tmp_path)}  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"FLOCKWISE__{name}", value)
    return tmp_path / "state"


def test_a_device_gets_into_the_directory(home, device):
    request = _json("edge", "directory-request")
    added = _json("directory", "add", request["request"], "--dir", home)
    assert added["members"] == [
        {"member_id": "kitchen-pi", "role": "device", "identity": request["identity"], "sealing": request["sealing"]}
    ]
    assert _json("directory", "show", home)["members"] == added["members"]
    assert (device / "sealing.key").stat().st_mode & 0o777 == 0o600
    assert _json("edge", "directory-request") == request


def test_looking_makes_no_key(home, device):
    _run("edge", "directory-request", "--dry-run", code=1)
    assert not (device / "sealing.key").exists()
    assert not (device / "identity.key").exists()


def test_the_authoritys_key_is_for_its_owner_alone_and_never_overwritten(tmp_path):
    old = os.umask(0)
    try:
        made = _json("directory", "init", "--population", "p", "--dir", tmp_path / "a")
    finally:
        os.umask(old)
    assert (tmp_path / "a" / "authority.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0
    before = (tmp_path / "a" / "authority.key").read_bytes()
    _run("directory", "init", "--population", "p", "--dir", tmp_path / "a", code=1)
    assert (tmp_path / "a" / "authority.key").read_bytes() == before
    assert made["authority"] == _json("directory", "verify", tmp_path / "a")["authority"]


def test_a_dry_run_writes_nothing(tmp_path, home):
    _run("directory", "init", "--population", "p", "--dir", tmp_path / "b", "--dry-run")
    assert not (tmp_path / "b").exists()
    before = (home / "directory.fwkd").read_bytes()
    assert _json("directory", "add", _request("a", 1), "--dir", home, "--dry-run")["changed"] is False
    assert (home / "directory.fwkd").read_bytes() == before


def test_all_of_a_file_are_added_or_none(home, tmp_path):
    file = tmp_path / "requests"
    file.write_text(f"{_request('a', 1)}\n\n{_request('b', 2)}\n")
    assert [m["member_id"] for m in _json("directory", "add", "--from", file, "--dir", home)["members"]] == ["a", "b"]
    _run("directory", "add", "--from", "-", "--dir", home, code=1, stdin=f"{_request('c', 3)}\n{_request('b', 4)}\n")
    assert [m["member_id"] for m in _json("directory", "show", home)["members"]] == ["a", "b"]


def test_a_removed_member_comes_back_by_rotate_alone(home):
    _run("directory", "add", _request("a", 1), "--dir", home)
    _run("directory", "remove", "a", "--dir", home)
    assert _json("directory", "show", home)["members"] == []
    assert "rotation" in _run("directory", "add", _request("a", 2), "--dir", home, code=1).stderr
    _run("directory", "rotate", _request("a", 2), "--dir", home)
    entries = _json("directory", "show", home, "--log")["entries"]
    assert [entry["change"] for entry in entries] == ["added", "removed", "rotated"]


def test_verify_tells_rollback_fork_and_another_authority_from_growth(home, tmp_path):
    older, longer = tmp_path / "older.fwkd", tmp_path / "longer.fwkd"
    _run("directory", "add", _request("a", 1), "--dir", home)
    older.write_bytes((home / "directory.fwkd").read_bytes())
    _run("directory", "add", _request("b", 2), "--dir", home)
    longer.write_bytes((home / "directory.fwkd").read_bytes())
    authority = _json("directory", "show", home)["authority"]
    _run("directory", "verify", longer, "--continues", older, "--authority", authority.upper())
    assert "seen before" in _run("directory", "verify", older, "--continues", longer, code=3).stderr
    assert "another authority" in _run("directory", "verify", older, "--authority", "00", code=3).stderr
    (home / "directory.fwkd").write_bytes(older.read_bytes())  # a backup is put back, and continued
    _run("directory", "add", _request("c", 3), "--dir", home)
    assert "not the one" in _run("directory", "verify", home, "--continues", longer, code=3).stderr


def test_a_damaged_log_is_not_believed(home):
    _run("directory", "add", _request("a", 1), "--dir", home)
    data = bytearray((home / "directory.fwkd").read_bytes())
    data[len(data) // 2] ^= 1
    (home / "directory.fwkd").write_bytes(bytes(data))
    _run("directory", "verify", home, code=1)
    _run("directory", "add", _request("b", 2), "--dir", home, code=1)


def test_a_key_that_others_can_read_or_that_is_none_signs_nothing(home):
    (home / "authority.key").chmod(0o640)
    assert "chmod 600" in _run("directory", "add", _request("a", 1), "--dir", home, code=1).stderr
    (home / "authority.key").chmod(0o600)
    (home / "authority.key").write_bytes(b"none")
    assert "backup" in _run("directory", "add", _request("a", 1), "--dir", home, code=1).stderr


def test_another_authoritys_key_continues_no_log(home, tmp_path):
    _run("directory", "init", "--population", "p", "--dir", tmp_path / "other")
    (home / "authority.key").write_bytes((tmp_path / "other" / "authority.key").read_bytes())
    assert "not the key of the authority" in _run("directory", "add", _request("a", 1), "--dir", home, code=1).stderr


def test_two_processes_do_not_fork_the_log(home):
    """Each holds the key's lock from reading the log to writing it."""
    first_reads, second_done = threading.Event(), threading.Event()

    def slowly(log, key):
        first_reads.set()
        assert not second_done.wait(0.3)
        return add_member(log, sample_member("a", seed=1), made_at=1, authority=key)

    first = threading.Thread(target=change_directory, args=(home, slowly), kwargs={"only_look": False})
    first.start()
    first_reads.wait(10)
    change_directory(
        home, lambda log, key: add_member(log, sample_member("b", seed=2), made_at=1, authority=key), only_look=False
    )
    second_done.set()
    first.join(10)
    assert [entry.member_id for entry in open_key_directory(home).entries] == ["a", "b"]


def test_a_log_that_is_not_there_says_so(tmp_path):
    with pytest.raises(DirectoryFilesUnusable, match="cannot be read"):
        open_key_directory(tmp_path / "none.fwkd")
    _run("directory", "add", _request("a", 1), "--dir", tmp_path / "none", code=1)
    _run("directory", "add", "--dir", tmp_path / "none", code=2)
