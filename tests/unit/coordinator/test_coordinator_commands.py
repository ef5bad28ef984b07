"""What an operator gets wrong is one line on standard error, also in a dry run; nothing is started."""

import json
import types

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from coordinator.privacy_accounting import claimed_epsilon
from flockwise.cli import main
from flockwise.serve_privacy import epsilon_text, epsilon_values
from wire_protocol.plan import TensorSpec, TrainingPlan, encode_plan
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.tensors import encode_tensors

PLAN = TrainingPlan(batch_size=4, learning_rate=0.1, input_shape=(2,), num_classes=2, weights=(TensorSpec(shape=(2,)),))


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose model file holds no model: the coordinator never opens it."""
    (tmp_path / "plan.json").write_bytes(encode_plan(PLAN))
    (tmp_path / "model.tflite").write_bytes(b"model")
    (tmp_path / "initial.safetensors").write_bytes(encode_tensors((np.zeros(2, np.float32),)))
    return tmp_path


def _serve(bundle, **changes):
    options = {
        "task": bundle,
        "population": "p",
        "state-dir": bundle / "state",
        "rounds": 1,
        "report-goal": 2,
        "broker": "mqtt://127.0.0.1:9",
    } | changes
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return CliRunner().invoke(main, ["coordinator", "serve", *words, "--dry-run"])


def test_a_dry_run_with_good_settings_says_what_would_run_and_writes_nothing(bundle):
    result = _serve(bundle)
    assert result.exit_code == 0, result.output
    assert '"would_run": true' in result.output
    assert not (bundle / "state").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"population": "a b"}, "population"),
        ({"population": "a/#"}, "population"),
        ({"broker": "localhost"}, "mqtt://"),
        ({"report-timeout-s": "inf"}, "report_timeout_s"),
        ({"min-reports": 3}, "min_reports"),
        ({"max-update-norm": "nan"}, "max_update_norm"),
        ({"clipping": "fixed"}, "clipping_norm"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line_that_names_it(bundle, changes, named):
    result = _serve(bundle, **changes)
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert len(result.output.splitlines()) == 1
    assert named in result.output


PRIVATE = {"epsilon": 4, "clipping-norm": 0.5, "report-goal": 20, "rounds": 10}


def test_a_private_task_has_noise_for_its_rounds_and_rounds_that_bring_it(bundle):
    result = _serve(bundle, **PRIVATE)
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert said["privacy"]["min_contributors"] == 18
    assert said["privacy"]["num_rounds"] == 10
    assert claimed_epsilon(msgspec.convert(said["privacy"], PrivacySpec), 10) <= 4.0
    assert said["task_id"] != json.loads(_serve(bundle).output)["task_id"]


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"clipping": "fixed"}, 2, "--clipping-norm"),
        ({"evaluate-every": 1}, 1, "--evaluate-every"),
        ({"min-contributors": 30}, 1, "min_reports"),
        ({"min-contributors": 19, "min-reports": 10}, 1, "needs 19 reports"),
        ({"privacy-mode": "local", "epsilon": 0.01}, 1, "grid_bits"),
    ],
)
def test_a_private_task_that_cannot_be_is_refused_with_the_setting_to_change(bundle, changes, code, named):
    result = _serve(bundle, **PRIVATE | changes)
    assert (result.exit_code, named in result.output) == (code, True), result.output


def test_a_plan_that_is_private_already_is_not_made_private_again(bundle):
    spec = PrivacySpec(
        mode="distributed",
        clipping_norm=1.0,
        noise_multiplier=3.0,
        min_contributors=2,
        num_rounds=1,
        target_epsilon=4.0,
    )
    (bundle / "plan.json").write_bytes(encode_plan(msgspec.structs.replace(PLAN, privacy=spec)))
    assert json.loads(_serve(bundle).output)["privacy"]["noise_multiplier"] == 3.0
    assert "private already" in _serve(bundle, **PRIVATE).output


def test_every_round_says_what_the_filter_has_let_through_and_what_it_allows(bundle):
    spec = PrivacySpec(
        mode="distributed",
        clipping_norm=1.0,
        noise_multiplier=3.0,
        min_contributors=2,
        num_rounds=1,
        target_epsilon=4.0,
    )
    private = types.SimpleNamespace(plan=msgspec.structs.replace(PLAN, privacy=spec))
    summary = types.SimpleNamespace(epsilon=1.5)
    assert epsilon_text(summary, private) == " epsilon let through 1.5000 of 4 at delta 1e-05"
    assert epsilon_values(summary, private)["epsilon_let_through"] == 1.5
    assert epsilon_text(summary, types.SimpleNamespace(plan=PLAN)) == ""


@pytest.mark.parametrize("name", ["plan.json", "model.tflite", "initial.safetensors"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_bundle_with_an_empty_or_missing_file_is_one_line(bundle, name, is_there):
    (bundle / name).unlink()
    if is_there:
        (bundle / name).touch()
    result = _serve(bundle)
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"broker": "mqtt://broker.example", "roster": __file__}, "--allow-plaintext allows it all the same"),
        (
            {"broker": "mqtts://broker.example", "roster": __file__, "username": "me"},
            "--username and --password-file belong together",
        ),
        (
            {"broker": "mqtts://broker.example", "roster": __file__, "cert-file": __file__},
            "cert_file and key_file belong together",
        ),
    ],
)
def test_a_login_that_is_half_given_or_would_be_readable_is_refused(bundle, changes, words):
    result = _serve(bundle, **changes)
    assert result.exit_code in {1, 2}
    assert words in result.output


def test_plaintext_to_another_machine_can_be_allowed(bundle):
    words = f"--task {bundle} --population p --state-dir {bundle}/state --rounds 1 --report-goal 2".split()
    options = ["--broker", "mqtt://broker.example", "--allow-plaintext", "--open", "--dry-run"]
    result = CliRunner().invoke(main, ["coordinator", "serve", *words, *options])
    assert result.exit_code == 0, result.output


def test_without_a_roster_a_broker_on_another_machine_is_refused_unless_the_operator_says_open(bundle):
    result = _serve(bundle, broker="mqtts://broker.example")
    assert result.exit_code == 2
    assert "anybody at the broker could report as any device" in result.output
