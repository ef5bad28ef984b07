"""TFF contexts without TFF's worker process."""

import subprocess
import sys
import weakref

import numpy as np
import psutil
import pytest

from coordinator.aggregation import ClientUpdate
from coordinator.aggregation_spec import AggregationSpec
from coordinator.errors import QuorumMissed, UnsupportedAggregation
from coordinator.round_ids import RoundIds
from wire_protocol.messages import Metrics

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def fleet(tiny_fleet):
    from coordinator.tff.processes import build_fleet_process

    return build_fleet_process(tiny_fleet.TanhMlp().plan.weights, AggregationSpec())


def fleet_context(fleet, transport):
    from coordinator.tff.contexts import FleetContext

    return FleetContext(transport, get_model_weights=fleet.get_model_weights, round_ids=RoundIds())


def cohort(*device_ids, quorum=1):
    from coordinator.tff.contexts import Cohort

    return Cohort(device_ids=device_ids, quorum=quorum)


def max_difference(structure, other):
    import tree

    pairs = zip(tree.flatten(structure), tree.flatten(other), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


def test_calling_next_of_the_fleet_process_runs_the_round_on_devices(tiny_fleet, fleet):
    import tensorflow_federated as tff

    model = tiny_fleet.TanhMlp()
    transport = tiny_fleet.DeviceThreads(model)
    tff.framework.set_default_context(fleet_context(fleet, transport))
    state = fleet.initialize()
    output = fleet.next(state, cohort("a", "bb", "ccc", quorum=3))
    reports = [report_of(tiny_fleet, model, state, device_id) for device_id in ("a", "bb", "ccc")]
    folded_as_a_list = fleet.next(state, reports)
    assert max_difference(output, folded_as_a_list) <= 1e-6
    assert output.metrics["client_work"]["train"]["weight_sum"] == 2 * (4 + 5 + 6)  # duplicates are not counted
    assert transport.closed == [1]


def report_of(tiny_fleet, model, state, device_id):
    weights = state.global_model_weights.trainable
    examples = tiny_fleet.examples_of(device_id, 3 + len(device_id))
    update = tiny_fleet.train_on_device(model, weights, examples, round_id=1, device_id=device_id)
    metrics = update.metrics
    return {
        "model_delta": update.model_delta,
        "aggregation_weight": np.float32(update.aggregation_weight),
        "metrics": {
            "loss_sum": np.float32(metrics.loss_sum),
            "num_correct": np.float32(metrics.num_correct),
            "weight_sum": np.float32(metrics.weight_sum),
        },
    }


def test_a_round_goes_on_without_silent_devices_down_to_its_quorum(tiny_fleet, fleet):
    import tensorflow_federated as tff

    transport = tiny_fleet.DeviceThreads(tiny_fleet.TanhMlp(), silent=frozenset({"bb"}))
    tff.framework.set_default_context(fleet_context(fleet, transport))
    state = fleet.initialize()
    assert fleet.next(state, cohort("a", "bb", "ccc", quorum=2)).metrics["client_work"]["train"]["weight_sum"] == 20
    with pytest.raises(QuorumMissed):
        fleet.next(state, cohort("a", "bb", "ccc", quorum=3))
    assert transport.closed == [1, 2]  # an abandoned round is closed too, and its number used up


def test_reports_of_strangers_are_not_counted(tiny_fleet, fleet):
    import tensorflow_federated as tff

    class Intruder(tiny_fleet.DeviceThreads):
        def reports(self, round_id):
            for device_id, update in super().reports(round_id):
                yield "stranger", update
                yield device_id, update

    tff.framework.set_default_context(fleet_context(fleet, Intruder(tiny_fleet.TanhMlp())))
    output = fleet.next(fleet.initialize(), cohort("a", quorum=1))
    assert output.metrics["client_work"]["train"]["weight_sum"] == 8


def test_no_update_outlives_its_fold(tiny_fleet, fleet):
    """The cohort may be of any size: at most the update at hand and the one before are in memory."""
    import tensorflow_federated as tff

    alive = []
    most_alive = 0

    class Counting(tiny_fleet.DeviceThreads):
        def publish(self, round_id, cohort, weights):
            del round_id, cohort
            self.weights = weights

        def reports(self, round_id):
            del round_id
            nonlocal most_alive
            for number in range(30):
                delta = tuple(np.full_like(weight, 0.01) for weight in self.weights)
                alive.append(weakref.ref(delta[0]))
                metrics = Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=2.0)
                yield str(number), ClientUpdate(model_delta=delta, aggregation_weight=2.0, metrics=metrics)
                del delta
                most_alive = max(most_alive, sum(ref() is not None for ref in alive))

    tff.framework.set_default_context(fleet_context(fleet, Counting(tiny_fleet.TanhMlp())))
    fleet.next(fleet.initialize(), cohort(*map(str, range(30)), quorum=30))
    assert len(alive) == 30
    assert most_alive <= 2


def test_computations_that_are_no_map_reduce_round_are_refused():
    import tensorflow as tf
    import tensorflow_federated as tff

    @tff.federated_computation(tff.FederatedType(np.float32, tff.CLIENTS))
    def only_a_sum(values):
        return tff.federated_sum(values)

    with pytest.raises((TypeError, ValueError)):
        only_a_sum([1.0, 2.0])

    @tff.tensorflow.computation(np.float32)
    def with_a_variable(x):
        variable = tf.Variable(1.0)
        return variable + x

    with pytest.raises(ValueError, match="variables"):
        with_a_variable(1.0)


def test_building_an_aggregator_puts_tffs_worker_context_out_of_reach():
    """In an interpreter of its own: here a fixture has done so already."""
    code = (
        "import tensorflow_federated as tff\n"
        "from coordinator.aggregation_spec import AggregationSpec\n"
        "from coordinator.tff.aggregator import TffAggregator\n"
        "from wire_protocol.plan import TensorSpec\n"
        "import psutil\n"
        "TffAggregator([TensorSpec(shape=(2,))], AggregationSpec())\n"
        "assert tff.tensorflow.computation(lambda: 7)() == 7\n"
        "print(psutil.Process().children(recursive=True))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


def test_a_context_that_someone_chose_is_left_alone(in_process_context):
    import tensorflow_federated as tff

    from coordinator.tff.contexts import replace_worker_context

    replace_worker_context()
    assert tff.framework.get_context_stack().current is in_process_context


def test_secure_sums_are_refused_with_a_reason():
    import tensorflow_federated as tff

    from coordinator.tff.map_reduce_round import compile_round

    state = tff.FederatedType(np.int32, tff.SERVER)

    @tff.federated_computation(state, tff.FederatedType(np.int32, tff.CLIENTS))
    def secure_round(state, values):
        return state, tff.federated_secure_sum_bitwidth(values, 8)

    with pytest.raises(UnsupportedAggregation, match="secure sums"):
        compile_round(secure_round)


def test_computations_in_this_context_start_no_process(fleet):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    state = fleet.initialize()
    fleet.get_model_weights(state)
    started = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert started == []
