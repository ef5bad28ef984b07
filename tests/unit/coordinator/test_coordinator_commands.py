"""What an operator gets wrong is one line on standard error, also in a dry run; nothing is started."""

import numpy as np
import pytest
from click.testing import CliRunner

from flockwise.cli import main
from wire_protocol.plan import TensorSpec, TrainingPlan, encode_plan
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
