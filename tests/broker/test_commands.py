"""The commands of the README, run as a user runs them, in an empty folder."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.tensorflow]

ROOT = Path(__file__).resolve().parents[2]
FLOCKWISE = Path(sys.executable).parent / "flockwise"


def _run(*words: str, cwd: Path, timeout_s: float = 200.0) -> subprocess.CompletedProcess:
    with (cwd / "stderr.log").open("wb") as log:
        return subprocess.run(
            [str(FLOCKWISE), *words],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=log,
            timeout=timeout_s,
            check=False,
            text=True,
        )


def test_the_readmes_first_command_trains_digits_to_90_percent_and_leaves_curve_and_report(tmp_path):
    first = re.search(r"^    pip install uv && uv run flockwise (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    done = _run(*first.group(1).split(), cwd=tmp_path)
    assert done.returncode == 0, (tmp_path / "stderr.log").read_text()
    report = json.loads((tmp_path / "flockwise-demo" / "report.json").read_text())
    assert report["final_test_accuracy"] >= 0.9
    assert report["config"]["num_devices"] == 20
    assert report["num_authenticated"] == 20
    assert len(report["rounds"]) == 10
    assert not any(name.startswith(("Flex", "CUSTOM")) for name in report["op_counts"])
    assert (tmp_path / "flockwise-demo" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_the_private_demo_has_helpers_open_its_sums_prints_epsilon_next_to_accuracy_and_keeps_to_it(tmp_path):
    small = ("--devices", "24", "--rounds", "3", "--processes", "2", "--out", "out")
    done = _run("demo", "--epsilon", "4", "--confidentiality", "helpers", *small, cwd=tmp_path)
    assert done.returncode == 0, (tmp_path / "stderr.log").read_text()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    let_through = [row["epsilon"] for row in report["rounds"]]
    assert 0 < let_through[0] < let_through[1] < let_through[2] <= 4.0
    assert "not a proof" in report["who_must_be_believed"]
    text = re.sub(r"\s+", " ", done.stdout)
    assert "their promise, not a proof" in text
    for row in report["rounds"]:
        assert (
            f"test accuracy {row['test_accuracy']:.2%} loss {row['test_loss']:.4f} epsilon {row['epsilon']:.3f}" in text
        )


def test_missing_mnist_is_one_clear_line_that_says_how_to_get_it(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "FLOCKWISE_DATA_DIR"}
    done = subprocess.run(
        [str(FLOCKWISE), "demo", "--dataset", "mnist", "--data-dir", str(tmp_path / "nothing")],
        cwd=tmp_path,
        env=environment | {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def three_devices(tmp_path, embedded_url):
    """Three daemons started by the command, each with its own CSV file imported by the command."""
    text = gzip.decompress(resources.files("simulators").joinpath("data/digits.csv.gz").read_bytes()).decode()
    rows = text.splitlines()
    header = ",".join([f"pixel{index}" for index in range(64)] + ["label"])
    daemons = []
    for index in range(3):
        home = tmp_path / f"pi-{index}"
        home.mkdir()
        (home / "digits.csv").write_text("\n".join([header, *rows[index * 200 : (index + 1) * 200]]) + "\n")
        imported = _run("edge", "import-data", "digits.csv", "--out", "data", "--scale", "0.0625", cwd=home)
        assert imported.returncode == 0, (home / "stderr.log").read_text()
        (home / "client.toml").write_text(
            f'[device]\nid = "pi-{index}"\npopulation = "commands"\nstate_dir = "state"\n'
            f'[broker]\nurl = "{embedded_url}"\n[data]\npath = "data"\n'
        )
        with (home / "daemon.log").open("wb") as log:
            command = [str(FLOCKWISE), "edge", "run", "--config", "client.toml"]
            daemons.append(subprocess.Popen(command, cwd=home, stdout=log, stderr=log))
    yield daemons
    for daemon in daemons:
        daemon.send_signal(signal.SIGTERM)
    assert [daemon.wait(30) for daemon in daemons] == [0, 0, 0]


def test_export_compile_serve_and_run_work_together_and_serve_goes_on_where_it_stopped(
    tmp_path, embedded_url, three_devices
):
    exported = _run(
        *("export", "zoo:digits_mlp", "--out", "bundle", "--batch-size", "16", "--learning-rate", "0.1"),
        *("--momentum", "0.9", "--epochs", "5", "--json"),
        cwd=tmp_path,
    )
    assert exported.returncode == 0, (tmp_path / "stderr.log").read_text()
    compiled = _run("coordinator", "compile", "--task", "bundle", "--out", "artefact", "--json", cwd=tmp_path)
    assert json.loads(compiled.stdout)["written"]
    serve = (
        *("coordinator", "serve", "--task", "bundle", "--artefact", "artefact", "--broker", embedded_url),
        *("--population", "commands", "--state-dir", "state", "--report-goal", "3", "--over-selection", "1.0"),
        "--json",
    )
    first = _run(*serve, "--rounds", "2", cwd=tmp_path)
    assert first.returncode == 0, (tmp_path / "stderr.log").read_text()
    second = _run(*serve, "--rounds", "4", "--evaluate-every", "4", cwd=tmp_path)
    assert second.returncode == 0, (tmp_path / "stderr.log").read_text()
    rounds = [json.loads(line) for line in (first.stdout + second.stdout).splitlines()]
    assert [row["num_commits"] for row in rounds if row["kind"] == "train"] == [1, 2, 3, 4]
    assert [row["round_id"] for row in rounds] == [1, 2, 3, 4, 5]
    assert rounds[-1]["kind"] == "evaluate"
    assert rounds[-1]["metrics"]["accuracy"] > 0.8
    assert all(daemon.poll() is None for daemon in three_devices)


def test_a_dry_run_starts_nothing(tmp_path):
    _run("export", "zoo:digits_mlp", "--out", "bundle", "--batch-size", "16", "--learning-rate", "0.1", cwd=tmp_path)
    done = _run(
        *("coordinator", "serve", "--task", "bundle", "--population", "p", "--state-dir", "state"),
        *("--report-goal", "3", "--rounds", "2", "--dry-run"),
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["would_run"] is True
    assert not (tmp_path / "state").exists()


def test_a_missing_bundle_is_one_clear_line(tmp_path):
    done = _run(
        *("coordinator", "serve", "--task", "nowhere", "--population", "p", "--state-dir", "state"),
        *("--report-goal", "3", "--rounds", "2"),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    stderr = (tmp_path / "stderr.log").read_text()
    assert "flockwise export" in stderr
    assert "Traceback" not in stderr
