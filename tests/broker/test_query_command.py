"""`flockwise query` over a real broker with real daemons, as an operator runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_client.example_store import write_examples
from edge_client.privacy.ledger import PrivacyLedger

pytestmark = [pytest.mark.broker]

ROOT = Path(__file__).resolve().parents[2]
FLOCKWISE = Path(sys.executable).parent / "flockwise"
VALUES = (10.0, 20.0, 30.0)


def _query(*words, cwd, broker):
    fleet = ("--broker", broker, "--population", "greenhouses", "--state-dir", "state", "--period", "2026-11", "--json")
    return subprocess.run(
        [str(FLOCKWISE), "query", *words, *fleet, "--selection-timeout-s", "20", "--max-devices", "3"],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture
def greenhouses(tmp_path, embedded_url):
    """Three daemons, each with four examples of one temperature."""
    daemons = []
    for index, value in enumerate(VALUES):
        home = tmp_path / f"pi-{index}"
        home.mkdir()
        write_examples(home / "data", x=np.full((4, 1), value, np.float32), y=np.zeros(4, np.int32))
        (home / "client.toml").write_text(
            f'[device]\nid = "pi-{index}"\npopulation = "greenhouses"\nstate_dir = "state"\n'
            f'[broker]\nurl = "{embedded_url}"\n[data]\npath = "data"\n[privacy]\nmin_contributors = 2\nepsilon = 5.0\n'
            '[training]\ntrainer = "linear"\n'
            '[eligibility]\npower = "mains"\nnetwork = "unmetered"\n'
        )
        with (home / "daemon.log").open("wb") as log:
            command = [str(FLOCKWISE), "edge", "run", "--config", "client.toml"]
            daemons.append(subprocess.Popen(command, cwd=home, stdout=log, stderr=log))
    yield tmp_path
    for daemon in daemons:
        daemon.send_signal(signal.SIGTERM)
    assert [daemon.wait(30) for daemon in daemons] == [0, 0, 0]


def test_a_fleet_is_asked_once_charged_once_and_the_answer_is_kept(greenhouses, embedded_url):
    mean = ("mean", "--name", "temperature", "--of", "input_mean", "--low", "0", "--high", "40",
            "--epsilon", "3", "--min-contributors", "2")  # fmt: skip
    asked = _query(*mean, cwd=greenhouses, broker=embedded_url)
    assert asked.returncode == 0, asked.stderr + (greenhouses / "pi-0" / "daemon.log").read_text()
    answer = json.loads(asked.stdout)
    assert answer["num_reports"] == 3
    # 3 devices, noise of scale 1/3 device: e^-12 that it is more than 4.
    assert abs(answer["estimates"][1]["value"] - 3) < 4 * 1.3
    again = _query(*mean, cwd=greenhouses, broker=embedded_url)
    assert json.loads(again.stdout) == answer | {"was_known": True}
    other = _query("count", "--name", "temperature", "--low", "1", "--high", "9", "--epsilon", "1",
                   "--min-contributors", "2", cwd=greenhouses, broker=embedded_url)  # fmt: skip
    assert other.returncode == 1
    assert "other settings" in other.stderr
    too_dear = _query("count", "--name", "sizes", "--low", "1", "--high", "9", "--epsilon", "3",
                      "--min-contributors", "3", cwd=greenhouses, broker=embedded_url)  # fmt: skip
    assert too_dear.returncode == 3
    assert "no answer" in too_dear.stderr
    for index in range(3):
        with PrivacyLedger(greenhouses / f"pi-{index}" / "state" / "privacy.sqlite", budget=None) as ledger:
            assert [entry.release_id.split("/")[1] for entry in ledger.entries] == ["temperature"]
            assert ledger.spent_epsilon == pytest.approx(3.0)
