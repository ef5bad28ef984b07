"""One set of TFF pieces, composed twice: from the same local training, both give the same server state."""

import numpy as np
import pytest

from coordinator.aggregation_spec import AggregationSpec

pytestmark = pytest.mark.tensorflow

SPECS = {
    "fedavg": AggregationSpec(),
    "unweighted": AggregationSpec(weighted=False),
    "momentum": AggregationSpec(server_optimizer="momentum", server_learning_rate=0.5),
    "adam": AggregationSpec(server_optimizer="adam", server_learning_rate=0.05),
    "yogi": AggregationSpec(server_optimizer="yogi", server_learning_rate=0.05),
    "adagrad": AggregationSpec(server_optimizer="adagrad", server_learning_rate=0.05),
    "fixed clipping": AggregationSpec(clipping="fixed", clipping_norm=0.1),
    "robust adam": AggregationSpec(server_optimizer="adam", server_learning_rate=0.05, clipping="adaptive"),
}
NUM_EXAMPLES = {"a": 5, "b": 8, "c": 3}  # batches of 4: two devices end an epoch with a short one


def datasets_and_updates(tiny_fleet, model, weights, round_id):
    from coordinator.tff.simulation_data import client_dataset

    datasets, updates = [], []
    for device_id, num_examples in NUM_EXAMPLES.items():
        x, y = tiny_fleet.examples_of(device_id, num_examples)
        datasets.append(client_dataset(model.plan, x, y, round_id=round_id, device_id=device_id))
        updates.append(tiny_fleet.train_on_device(model, weights, (x, y), round_id=round_id, device_id=device_id))
    return datasets, updates


def fold(aggregator, state, updates):
    accumulator = aggregator.begin(state)
    for update in updates:
        accumulator.fold(update)
    return accumulator.finish()


def max_difference(leaves, others):
    pairs = zip(leaves, others, strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))) for a, b in pairs)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_folded_reports_give_the_state_and_metrics_of_tffs_own_simulation(tiny_fleet, spec):
    from coordinator.tff.aggregator import TffAggregator
    from coordinator.tff.in_process import flatten
    from coordinator.tff.simulation import build_simulation_process

    model = tiny_fleet.TanhMlp()
    sim = build_simulation_process(model, spec)
    aggregator = TffAggregator(model.plan.weights, spec)
    simulated = sim.initialize()
    state = aggregator.initialize(model.initial_weights())
    for round_id in (1, 2):
        datasets, updates = datasets_and_updates(tiny_fleet, model, state.weights, round_id)
        output = sim.next(simulated, datasets)
        result = fold(aggregator, state, updates)
        simulated, state = output.state, result.state
        assert max_difference(flatten(simulated, sim.next.type_signature.parameter[0]), state.leaves) <= 1e-6
        train = output.metrics["client_work"]["train"]
        assert {name: result.metrics[name] for name in train} == pytest.approx(train, rel=1e-5)
        assert result.metrics["weight_sum"] == model.plan.num_epochs * sum(NUM_EXAMPLES.values())


CLIENT_OPTIMIZERS = {
    "nesterov with fedprox": {"momentum": 0.9, "nesterov": True, "proximal_mu": 0.5},
    "adamw with fedprox": {"optimizer": "adamw", "weight_decay": 0.01, "proximal_mu": 0.5},
}


@pytest.mark.parametrize("fields", CLIENT_OPTIMIZERS.values(), ids=CLIENT_OPTIMIZERS.keys())
def test_simulated_clients_take_the_steps_of_the_plans_optimizer_afresh_in_every_round(tiny_fleet, fields):
    from coordinator.tff.aggregator import TffAggregator
    from coordinator.tff.simulation import build_simulation_process

    model = tiny_fleet.TanhMlp(**fields)
    sim = build_simulation_process(model, SPECS["fedavg"])
    aggregator = TffAggregator(model.plan.weights, SPECS["fedavg"])
    simulated, state = sim.initialize(), aggregator.initialize(model.initial_weights())
    for round_id in (1, 2):
        datasets, updates = datasets_and_updates(tiny_fleet, model, state.weights, round_id)
        simulated = sim.next(simulated, datasets).state
        state = fold(aggregator, state, updates).state
        assert max_difference(simulated.global_model_weights.trainable, state.weights) <= 2e-6


@pytest.mark.parametrize("model_name", ["TanhMlp", "SoftmaxRegression"])
def test_simulation_and_fleet_have_the_same_state_and_result_types(tiny_fleet, model_name):
    from coordinator.tff.simulation import build_learning_processes

    spec = SPECS["robust adam"]
    processes = build_learning_processes(getattr(tiny_fleet, model_name)(), spec)
    assert processes.sim.next.type_signature.parameter[0] == processes.fleet.next.type_signature.parameter[0]
    assert processes.sim.next.type_signature.result == processes.fleet.next.type_signature.result
    assert processes.sim.initialize.type_signature == processes.fleet.initialize.type_signature


def test_simulated_clients_drop_the_same_units_as_devices(tiny_fleet):
    from coordinator.tff.aggregator import TffAggregator
    from coordinator.tff.simulation import build_simulation_process

    model = tiny_fleet.TanhMlp(has_dropout=True)
    sim = build_simulation_process(model, SPECS["fedavg"])
    aggregator = TffAggregator(model.plan.weights, SPECS["fedavg"])
    state = aggregator.initialize(model.initial_weights())
    datasets, updates = datasets_and_updates(tiny_fleet, model, state.weights, round_id=1)
    simulated = sim.next(sim.initialize(), datasets).state.global_model_weights.trainable
    result = fold(aggregator, state, updates)
    assert max_difference(simulated, result.state.weights) <= 1e-6
    _, other = datasets_and_updates(tiny_fleet, model, state.weights, round_id=2)
    assert max_difference(simulated, fold(aggregator, state, other).state.weights) > 1e-3


def test_training_lowers_the_loss_from_start_to_end(tiny_fleet):
    from coordinator.tff.aggregator import TffAggregator

    model = tiny_fleet.SoftmaxRegression()
    aggregator = TffAggregator(model.plan.weights, SPECS["fedavg"])
    state = aggregator.initialize(model.initial_weights())
    losses = []
    for round_id in range(1, 9):
        _, updates = datasets_and_updates(tiny_fleet, model, state.weights, round_id)
        result = fold(aggregator, state, updates)
        state = result.state
        losses.append(result.metrics["loss"])
    # Were the sign of model_delta wrong anywhere, this would climb.
    assert losses[-1] < 0.7 * losses[0]
    assert state.num_commits == 8


def test_updates_in_another_order_give_the_same_state_within_1e_6(tiny_fleet):
    from coordinator.tff.aggregator import TffAggregator

    model = tiny_fleet.TanhMlp()
    aggregator = TffAggregator(model.plan.weights, SPECS["robust adam"])
    state = aggregator.initialize(model.initial_weights())
    _, updates = datasets_and_updates(tiny_fleet, model, state.weights, round_id=1)
    forward, backward = fold(aggregator, state, updates), fold(aggregator, state, updates[::-1])
    assert max_difference(forward.state.leaves, backward.state.leaves) <= 1e-6
