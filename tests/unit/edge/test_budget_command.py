import json

import pytest
from click.testing import CliRunner

from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.rules import PrivacyBudget
from edge_client.state_dir import ledger_path
from flockwise.cli import main
from wire_protocol.privacy_spec import GaussianEvent

EVENT = GaussianEvent(noise_multiplier=10.0, is_discrete=True)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "client.toml"
    path.write_text(
        '[device]\npopulation = "p"\nstate_dir = "state"\n[broker]\nurl = "mqtt://localhost"\n[data]\npath = "data"\n'
        "[privacy]\nepsilon = 3.0\n"
    )
    (tmp_path / "state").mkdir()
    return path


def _run(config, *arguments):
    return CliRunner().invoke(main, ["edge", "budget", "--config", str(config), *arguments])


def test_a_device_that_released_nothing_has_spent_nothing(config):
    result = _run(config, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output) == {
        "allowed_epsilon": 3.0, "left_epsilon": 3.0, "releases": [], "spent_epsilon": 0.0, "target_delta": 1e-5
    }  # fmt: skip


def test_spent_allowed_left_and_each_release_are_shown_beside_a_running_daemon(config, tmp_path):
    path = ledger_path(tmp_path / "state")
    with PrivacyLedger(path, budget=PrivacyBudget(epsilon=3.0)) as running:
        running.release("round/a/1", EVENT, lambda: b"x")
        values = json.loads(_run(config, "--json").output)
        running.release("round/a/2", EVENT, lambda: b"y")
        after = json.loads(_run(config, "--json").output)
        assert running.release("round/a/3", EVENT, lambda: b"z") == b"z"
    assert 0 < values["spent_epsilon"] < after["spent_epsilon"]
    assert after["left_epsilon"] == pytest.approx(3.0 - after["spent_epsilon"])
    assert [release["release_id"] for release in after["releases"]] == ["round/a/1", "round/a/2"]
    added = [release["epsilon_added"] for release in after["releases"]]
    assert added[0] == values["spent_epsilon"]
    assert sum(added) == pytest.approx(after["spent_epsilon"])
    assert "round/a/2" in _run(config).output


def test_looking_changes_nothing(config, tmp_path):
    path = ledger_path(tmp_path / "state")
    with PrivacyLedger(path, budget=PrivacyBudget(epsilon=5.0)) as ledger:
        ledger.release("round/a/1", EVENT, lambda: b"x")
    before = path.read_bytes()
    assert json.loads(_run(config, "--json").output)["allowed_epsilon"] == 3.0
    assert path.read_bytes() == before
    with PrivacyLedger(path, budget=PrivacyBudget(epsilon=9.0)) as ledger:
        assert ledger.budget.epsilon == 5.0


def test_a_ledger_that_is_gone_or_damaged_is_one_clear_line(config, tmp_path):
    path = ledger_path(tmp_path / "state")
    with PrivacyLedger(path, budget=PrivacyBudget(epsilon=3.0)) as ledger:
        ledger.release("round/a/1", EVENT, lambda: b"x")
    path.unlink()
    result = _run(config)
    assert result.exit_code == 1
    assert "is gone" in result.output
    path.write_bytes(b"nonsense" * 1000)
    result = _run(config)
    assert result.exit_code == 1
    assert "cannot be read" in result.output
