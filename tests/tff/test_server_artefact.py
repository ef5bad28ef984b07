"""The compiled server runs where TFF is not installed, and gives the same numbers."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from coordinator.aggregation_spec import AggregationSpec
from coordinator.checkpoints import CheckpointStore
from coordinator.errors import CheckpointDamaged

pytestmark = pytest.mark.tensorflow

SPEC = AggregationSpec(server_optimizer="yogi", server_learning_rate=0.05, clipping="adaptive")

WITHOUT_TFF = textwrap.dedent("""
    import sys
    from pathlib import Path

    sys.modules["tensorflow_federated"] = None  # as if it were not installed
    import numpy as np
    from coordinator.aggregation import ClientUpdate
    from coordinator.checkpoints import CheckpointStore
    from coordinator.tff.artefact_aggregator import ArtefactAggregator
    from coordinator.tff.server_artefact import read_server_artefact
    from wire_protocol.messages import Metrics

    directory = Path(sys.argv[1])
    aggregator = ArtefactAggregator(read_server_artefact(directory / "artefact"))
    state = CheckpointStore(directory / "before").load_latest()
    accumulator = aggregator.begin(state)
    for number in range(3):
        rng = np.random.default_rng(number)
        delta = tuple(rng.standard_normal(weight.shape).astype(np.float32) for weight in state.weights)
        metrics = Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=2.0)
        accumulator.fold(ClientUpdate(model_delta=delta, aggregation_weight=1.0 + number, metrics=metrics))
    CheckpointStore(directory / "after").save(accumulator.finish().state)
    print([name for name in sys.modules if name.startswith("tensorflow_federated.")])
""")


@pytest.fixture(scope="module")
def compiled(tiny_fleet):
    from coordinator.tff.aggregator import TffAggregator

    return TffAggregator(tiny_fleet.TanhMlp().plan.weights, SPEC)


def test_a_fresh_interpreter_without_tff_computes_the_same_state(tiny_fleet, compiled, tmp_path):
    from coordinator.aggregation import ClientUpdate
    from coordinator.tff.server_artefact import write_server_artefact
    from wire_protocol.messages import Metrics

    write_server_artefact(compiled.artefact, tmp_path / "artefact")
    state = compiled.initialize(tiny_fleet.TanhMlp().initial_weights())
    CheckpointStore(tmp_path / "before").save(state)
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TFF, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
    accumulator = compiled.begin(state)
    for number in range(3):
        rng = np.random.default_rng(number)
        delta = tuple(rng.standard_normal(weight.shape).astype(np.float32) for weight in state.weights)
        metrics = Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=2.0)
        accumulator.fold(ClientUpdate(model_delta=delta, aggregation_weight=1.0 + number, metrics=metrics))
    expected = accumulator.finish().state
    found = CheckpointStore(tmp_path / "after").load_latest()
    for leaf, other in zip(found.leaves, expected.leaves, strict=True):
        assert leaf.dtype == other.dtype
        assert np.max(np.abs(leaf - other), initial=0.0) <= 1e-7


def test_an_artefact_is_small_whatever_the_model(compiled, tmp_path):
    from coordinator.tff.server_artefact import write_server_artefact

    write_server_artefact(compiled.artefact, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 400_000


def test_what_was_written_is_read(compiled, tmp_path):
    from coordinator.tff.server_artefact import read_server_artefact, write_server_artefact

    write_server_artefact(compiled.artefact, tmp_path)
    assert read_server_artefact(tmp_path) == compiled.artefact


@pytest.mark.parametrize("damage", ["altered graph", "missing graph", "missing schema", "altered schema"])
def test_a_damaged_artefact_is_refused_by_name(compiled, tmp_path, damage):
    from coordinator.tff.server_artefact import read_server_artefact, write_server_artefact

    write_server_artefact(compiled.artefact, tmp_path)
    path = tmp_path / ("schema.json" if "schema" in damage else "training_update.pb")
    if "missing" in damage:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointDamaged, match=path.name):
        read_server_artefact(tmp_path)
