"""``flockwise freeze``."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from click.testing import CliRunner

from coordinator.aggregation import ServerState
from coordinator.checkpoints import CheckpointStore
from coordinator.task_bundle import read_task_bundle
from edge_client.example_store import write_examples
from flockwise.cli import main
from flockwise.freeze_command import freeze
from model_export.bundle import write_bundle
from simulators.datasets import load_digits
from simulators.trials.frozen_accuracy import IMAGE_MODELS
from wire_protocol.tensors import encode_tensors

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def place(tmp_path_factory, mlp_export):
    """A bundle, a coordinator's state directory after two commits, and 200 examples kept as images of bytes."""
    place = tmp_path_factory.mktemp("freeze")
    write_bundle(mlp_export.bundle, place / "bundle")
    bundle, digits = read_task_bundle(place / "bundle"), load_digits()
    store = CheckpointStore(place / "state" / bundle.task_id / "states")
    for num_commits in (1, 2):
        weights = tuple(weight + np.float32(0.01 * num_commits) for weight in bundle.initial_weights)
        store.save(ServerState(num_commits=num_commits, num_weights=len(weights), leaves=weights))
    pixels = np.rint(digits.x_test[:200] * 16).astype(np.uint8).reshape(-1, 8, 8)
    write_examples(place / "examples", x=pixels, y=digits.y_test[:200], scale=1 / 16)
    write_examples(place / "few", x=pixels[:20], y=digits.y_test[:20], scale=1 / 16)
    write_examples(place / "other", x=pixels[:, :4], y=digits.y_test[:200], scale=1 / 16)
    write_examples(place / "labels", x=pixels, y=digits.y_test[:200] + 3, scale=1 / 16)
    return place


def run(place, *arguments, checkpoint="state"):
    fixed = ["--task", place / "bundle", "--checkpoint", place / checkpoint]
    return CliRunner().invoke(freeze, [str(argument) for argument in (*fixed, *arguments)])


def test_the_latest_committed_weights_become_two_files_and_a_card(place, tmp_path):
    result = run(place, "--out", tmp_path / "app", "--int8", "whole", "--calibration", place / "examples",
                 "--max-accuracy-loss", 1, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    card = json.loads(result.stdout)
    names = {path.name for path in (tmp_path / "app").iterdir()}
    assert names == {"model_float32.tflite", "model_int8.tflite", "card.json"}
    assert json.loads((tmp_path / "app" / "card.json").read_text()) == card
    assert (card["origin"]["num_commits"], card["int8"]["num_calibration"]) == (2, 100)
    [committed] = list((place / "state").iterdir())
    assert card["origin"]["task_id"] == committed.name
    runner = Interpreter(model_path=str(tmp_path / "app" / "model_float32.tflite")).get_signature_runner("infer")
    assert runner(x=np.zeros((1, 64), np.float32))["output"].shape == (1, 10)


def test_the_first_checkpoint_of_the_bundle_can_be_frozen_and_again_in_the_same_place(place, tmp_path):
    checkpoint = "bundle/initial.safetensors"
    for _ in range(2):
        result = run(place, "--out", tmp_path / "app", "--batch-size", 16, checkpoint=checkpoint)
        assert result.exit_code == 0, result.output
    assert "model_float32.tflite" in result.output
    assert json.loads((tmp_path / "app" / "card.json").read_text())["batch_size"] == 16


def test_a_dry_run_measures_and_writes_nothing(place, tmp_path):
    result = run(place, "--out", tmp_path / "app", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "dry run" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "checkpoint", "problem"),
    [
        ([], "state", "--out"),
        (["--int8", "weights", "--dry-run"], "state", "belong together"),
        (["--dry-run", "--calibration", "examples"], "state", "belong together"),
        (["--dry-run"], "examples", "no task at all"),
        (["--dry-run"], "bundle/plan.json", "no checkpoint of this task"),
        (["--dry-run", "--int8", "whole", "--calibration", "few"], "state", "20 examples cannot show"),
        (["--dry-run", "--int8", "whole", "--calibration", "other"], "state", "the model takes"),
        (["--dry-run", "--int8", "whole", "--calibration", "labels"], "state", "the model knows classes 0 to 9"),
        (["--dry-run", "--int8", "whole", "--calibration", "bundle"], "state", "examples.json"),
    ],
)
def test_wrong_usage_ends_with_exit_code_2_and_says_what_is_wrong(place, arguments, checkpoint, problem):
    paths = [place / word if (place / word).exists() else word for word in arguments]
    result = run(place, *paths, checkpoint=checkpoint)
    assert result.exit_code == 2, result.output
    assert problem in result.output


def test_a_directory_of_other_files_is_left_alone(place, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = run(place, "--out", tmp_path)
    assert result.exit_code == 2
    assert "notes.txt" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_bundle_without_its_graph_or_with_another_is_refused(place, tmp_path, cnn_export):
    shutil.copytree(place / "bundle", tmp_path / "bundle")
    graph = tmp_path / "bundle" / "graph.json"
    arguments = ["--task", tmp_path / "bundle", "--checkpoint", place / "state", "--dry-run"]
    outcomes = {}
    for name, data in (("missing", None), ("damaged", b"{"), ("of another model", cnn_export.bundle.graph)):
        graph.unlink() if data is None else graph.write_bytes(data)
        result = CliRunner().invoke(freeze, [str(argument) for argument in arguments])
        outcomes[name] = (result.exit_code, result.output)
    assert [code for code, _ in outcomes.values()] == [2, 2, 4]
    assert "earlier version" in outcomes["missing"][1]
    assert "not a model's graph" in outcomes["damaged"][1]
    assert "another model's" in outcomes["of another model"][1]


def test_int8_that_costs_too_much_is_exit_code_4_and_nothing_is_written(place, tmp_path):
    """One loud unit that nothing reads takes all of int8's range."""
    bundle, digits = read_task_bundle(place / "bundle"), load_digits()
    first, bias, second, last = (np.zeros_like(weight) for weight in bundle.initial_weights)
    # Unit k + 1 is loudest where the mean of class k is; unit 0 drowns all of them.
    means = np.stack([digits.x_train[digits.y_train == k].mean(0) for k in range(10)], 1)
    first[:, 1:11], first[:, 0] = means, 1e4
    second[1:11, :] = 10 * np.eye(10)
    last[:] = -5 * (means**2).sum(0)
    path = tmp_path / "loud.safetensors"
    path.write_bytes(encode_tensors((first, bias, second, last)))
    arguments = ["--out", tmp_path / "app", "--int8", "whole", "--calibration", place / "examples"]
    result = run(place, *arguments, checkpoint=path)
    assert result.exit_code == 4, result.output
    assert "use --int8 weights" in result.output
    assert not (tmp_path / "app").exists()


def test_a_release_of_frozen_files_asks_for_the_lowest_runtime_that_their_card_proves(place, tmp_path):
    def command(*words):
        result = CliRunner().invoke(main, [*map(str, words)])
        assert result.exit_code == 0, result.output
        return result.output

    assert run(place, "--out", tmp_path / "app").exit_code == 0
    card = json.loads((tmp_path / "app" / "card.json").read_text())
    card["float32"]["proved_runtimes"] = ["1.1.1", "2.3.0"]
    channel = tmp_path / "channel"
    command("keys", "init", "--channel", channel)
    for number, lowest in ((1, "1.1.1"), (2, metadata.version("ai-edge-litert"))):
        (tmp_path / "app" / "card.json").write_text(json.dumps(card))
        command("push", tmp_path / "app", "--name", "digits", "--channel", channel)
        assert f"Needs LiteRT {lowest} or later" in command("models", "show", "digits", number, "--channel", channel)
        card["float32"]["proved_runtimes"] = []


def test_the_page_has_figures_of_every_image_model_frozen_both_ways():
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "use-a-trained-model.md").read_text()
    table = page.partition("<!-- table")[2].partition("<!-- end")[0]
    assert [line.split(" | ")[:2] for line in table.splitlines()[3:]] == [
        [f"| `{name}`", kind] for name in IMAGE_MODELS for kind in ("whole", "weights")
    ]
