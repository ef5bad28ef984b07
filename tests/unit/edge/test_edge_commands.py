"""`flockwise edge`: what it prints, how it ends, and that nobody ever sees a traceback."""

import json
import socket

import numpy as np
import pytest
from click.testing import CliRunner

from edge_client.checks.registry import GROUPS
from edge_client.crash_record import CrashRecord, encode_record
from edge_client.example_store import open_examples, write_examples
from edge_client.state_dir import StateDir
from flockwise.edge_commands import edge
from flockwise.edge_doctor_command import _GROUPS

X = np.arange(60, dtype=np.float32).reshape(30, 2)
Y = np.arange(30) % 2


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A directory with a valid configuration, whose broker's port is closed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOCKWISE_CONFIG", raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    write_examples(tmp_path / "data", x=X, y=Y)
    (tmp_path / "client.toml").write_text(
        f'[device]\npopulation = "p"\nid = "d1"\nstate_dir = "state"\n[broker]\nurl = "mqtt://me:hunter2@127.0.0.1:{port}"\n'
        '[data]\npath = "data"\n[training]\ntrainer = "linear"\n'
    )
    return tmp_path


def _run(*words):
    return CliRunner().invoke(edge, list(words))


@pytest.mark.parametrize("command", [[], ["run"], ["once"], ["doctor"], ["eligible"], ["show-config"], ["import-data"]])
def test_every_help_ends_with_an_example_and_documents_exit_codes_and_json(command):
    text = _run(*command, "--help").output
    assert "Example: " in text
    if command:
        assert "Exit codes: 0" in text
        assert "--json" in text


def test_show_config_gives_what_is_in_force_without_the_password(home):
    result = CliRunner().invoke(
        edge, ["show-config", "--config", "client.toml", "--json"], env={"FLOCKWISE__TRAINING__NUM_THREADS": "2"}
    )
    assert result.exit_code == 0
    values = json.loads(result.output)
    assert values["training"]["num_threads"] == 2
    assert values["device"]["population"] == "p"
    assert "hunter2" not in result.output
    text = _run("show-config", "--config", "client.toml").output
    assert '[training]\ntrainer = "linear"' in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--config", "none.toml"],
        ["once", "--config", "none.toml"],
        ["show-config", "--config", "none.toml"],
        ["show-config", "--config", "broken.toml"],
        ["run", "--dry-run", "--config", "nodata.toml"],
        ["import-data", "none.csv", "--out", "new"],
        ["import-data", "client.toml", "--labels", "client.toml", "--out", "new"],
        ["import-data", "none.npy", "--labels", "none.npy", "--out", "new"],
    ],
)
def test_what_goes_wrong_is_one_line_on_standard_error(home, words):
    (home / "broken.toml").write_text("[device\n")
    (home / "nodata.toml").write_text((home / "client.toml").read_text().replace('"data"', '"nothing"'))
    result = _run(*words)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("command", ["run", "once"])
def test_a_dry_run_says_what_would_run_and_starts_nothing(home, command):
    result = _run(command, "--dry-run", "--json", "--config", "client.toml")
    assert result.exit_code == 0
    values = json.loads(result.output)
    assert values["num_examples"] == 30
    assert "hunter2" not in result.output
    assert not (home / "state").exists()


def test_once_without_a_broker_ends_with_its_own_exit_code(home):
    result = _run("once", "--timeout-s", "0.3", "--json", "--config", "client.toml")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {"ending": "no_round"}


def test_doctor_finds_the_closed_port_and_says_what_to_do(home):
    result = _run("doctor", "--config", "client.toml", "--json")
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    found = {check["name"]: check for check in values["checks"]}
    assert not values["healthy"]
    assert len(found) >= 40
    assert found["broker_port"]["status"] == "fail"
    assert "broker.url" in found["broker_port"]["remedy"]
    assert found["broker_login"]["status"] == "skip"
    assert found["data"]["status"] == "ok"
    assert found["data"]["detail"] == "30 examples of shape (2,), 2 classes"
    assert list(dict.fromkeys(check["group"] for check in values["checks"])) == [
        *("machine", "configuration", "state", "data", "model", "broker", "privacy", "service")
    ]
    for check in values["checks"]:
        assert (check["remedy"] == "") == (check["status"] in {"ok", "skip"})
    assert "hunter2" not in result.stdout + result.stderr
    assert not (home / "state").exists()


def test_doctor_without_valid_settings_still_checks_the_machine(home):
    (home / "client.toml").write_text("[training]\nnum_threads = 0\n")
    result = _run("doctor", "--config", "client.toml")
    assert result.exit_code == 1
    assert "fail  config" in result.output
    assert "ok    python" in result.output
    assert "broker_port" not in result.output


def test_doctor_checks_the_wanted_groups_alone_and_strictness_makes_warnings_count(home):
    result = _run("doctor", "--config", "client.toml", "--group", "data", "--group", "privacy", "--json")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert {check["group"] for check in values["checks"]} == {"data", "privacy"}
    (home / "client.toml").chmod(0o644)
    words = ["doctor", "--config", "client.toml", "--group", "privacy"]
    assert _run(*words).exit_code == 0
    strict = _run(*words, "--strict")
    assert strict.exit_code == 3
    assert "warn  config_private" in strict.output
    assert _run("doctor", "--group", "weather").exit_code == 2


def test_the_groups_on_the_command_line_are_those_that_exist():
    assert tuple(group.name for group in GROUPS) == _GROUPS


def test_csv_is_imported_with_shape_and_scale(home):
    (home / "r.csv").write_text("a,b,c,d,label\n255,0,51,102,1\n0,255,0,0,0\n")
    result = _run("import-data", "r.csv", "--out", "new", "--shape", "2x2x1", "--scale", "1/255", "--json")
    assert json.loads(result.output)["x_shape"] == [2, 2, 1]
    examples = open_examples(home / "new")
    np.testing.assert_allclose(examples.inputs(np.array([0])).reshape(-1), [1, 0, 0.2, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(examples.labels, [1, 0])


def test_npy_and_raw_arrays_are_imported(home):
    np.save(home / "x.npy", X)
    np.save(home / "y.npy", Y)
    assert _run("import-data", "x.npy", "--labels", "y.npy", "--out", "one").exit_code == 0
    (home / "x.raw").write_bytes(X.astype("uint8").tobytes())
    (home / "y.raw").write_bytes(Y.astype("uint8").tobytes())
    words = ["import-data", "x.raw", "--labels", "y.raw", "--dtype", "uint8", "--labels-dtype", "uint8"]
    assert _run(*words, "--shape", "2", "--out", "two").exit_code == 0
    for name in ("one", "two"):
        np.testing.assert_array_equal(open_examples(home / name).inputs(np.arange(30)), X)
    assert "is a shape missing?" in _run(*words, "--out", "three").stderr


def test_a_dry_import_checks_and_writes_nothing(home):
    (home / "r.csv").write_text("a,label\n1,0\n")
    result = _run("import-data", "r.csv", "--out", "new", "--dry-run")
    assert result.output == "would import 1 examples of shape [1] into new\n"
    assert not (home / "new").exists()


@pytest.mark.parametrize(
    "words", [["--shape", "2xx2"], ["--shape", "0x2"], ["--scale", "big"], ["--scale", "1/0"], ["--scale", "0"]]
)
def test_options_that_make_no_sense_are_wrong_usage(home, words):
    (home / "r.csv").write_text("a,label\n1,0\n")
    assert _run("import-data", "r.csv", "--out", "new", *words).exit_code == 2
    assert _run("import-data", "x.npy", "--out", "new").exit_code == 2


def test_reset_forgets_crashes_and_keeps_everything_else(home):
    state = home / "state"
    (state / "outbox").mkdir(parents=True)
    (state / "outbox" / "report").write_bytes(b"kept")
    (state / "crashes").write_bytes(encode_record(CrashRecord(safe_left_s=60.0, reason="bad starts", task_id="t1")))
    words = ("reset", "--config", "client.toml", "--json")
    looked = json.loads(_run(*words, "--dry-run").output)
    assert (looked["was_safe_mode"], looked["reason"], looked["dry_run"]) == (True, "bad starts", True)
    assert (state / "crashes").exists()
    assert json.loads(_run(*words).output)["was_safe_mode"] is True
    assert not (state / "crashes").exists()
    assert (state / "outbox" / "report").read_bytes() == b"kept"
    again = _run(*words[:-1])
    assert again.exit_code == 0
    assert "was_safe_mode=false" in again.output


def test_reset_refuses_while_a_daemon_runs(home):
    running = StateDir(home / "state")
    running.lock()
    refused = _run("reset", "--config", "client.toml")
    running.unlock()
    assert refused.exit_code == 1
    assert "another daemon" in refused.output
