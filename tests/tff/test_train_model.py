"""TFF's own training program, unmodified, over devices."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def uninterrupted(tiny_fleet, tmp_path_factory):
    """Four rounds, and which states were durable when each round was published."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    durable = {}

    def note_versions(round_id):
        durable[round_id] = sorted(path.name for path in (directory / "states").iterdir())

    model = tiny_fleet.full_batch_model()
    transport = tiny_fleet.DeviceThreads(model, before_publish=note_versions)
    return tiny_fleet.run_program(directory, num_rounds=4, transport=transport, model=model), durable


def leaves(state):
    import tree

    return [np.asarray(leaf, np.float64) for leaf in tree.flatten(state)]


def test_tffs_train_model_runs_over_devices_and_learns(uninterrupted):
    released, _ = uninterrupted
    metrics = released["metrics"]
    assert sorted(metrics) == [1, 2, 3, 4]
    losses = [metrics[key]["model_metrics"]["loss"] for key in sorted(metrics)]
    assert losses[-1] < losses[0]


def test_each_state_is_durable_before_the_next_round_is_published(uninterrupted):
    # train_model starts a save and does not wait for it.
    _, durable = uninterrupted
    for round_id, names in durable.items():
        assert f"state_{round_id - 1:010d}.fwstate" in names


def test_a_program_killed_in_the_middle_of_a_round_ends_in_the_same_state(tiny_fleet, uninterrupted, tmp_path):
    script = Path(tiny_fleet.__file__)
    with (tmp_path / "log").open("wb") as log:
        killed = subprocess.run(
            [sys.executable, str(script), str(tmp_path)], stdout=log, stderr=log, check=False, timeout=240
        )
    assert killed.returncode == 9, (tmp_path / "log").read_text()
    assert max(path.name for path in (tmp_path / "states").iterdir()) == "state_0000000002.fwstate"
    model = tiny_fleet.full_batch_model()
    transport = tiny_fleet.DeviceThreads(model)
    resumed = tiny_fleet.run_program(tmp_path, num_rounds=4, transport=transport, model=model)
    assert transport.closed == [4, 5]  # round 3 died; its number is not used again
    expected, _ = uninterrupted
    key = "training_checkpoint_round_4"
    pairs = zip(leaves(resumed[key]), leaves(expected[key]), strict=True)
    assert max(float(np.max(np.abs(a - b))) for a, b in pairs) <= 1e-6


def test_a_round_that_misses_its_quorum_is_tried_again(tiny_fleet, tmp_path):
    model = tiny_fleet.full_batch_model()

    class Sleepy(tiny_fleet.DeviceThreads):
        def reports(self, round_id):
            yield from () if round_id == 1 else super().reports(round_id)

    transport = Sleepy(model)
    tiny_fleet.run_program(tmp_path, num_rounds=1, transport=transport, model=model)
    assert transport.closed == [1, 2]
