"""TFF's simulated clients take the step, and give the figures, of the plan's loss."""

import numpy as np
import pytest

from coordinator.aggregation_spec import AggregationSpec
from wire_protocol.plan import TensorSpec, TrainingPlan

pytestmark = pytest.mark.tensorflow

X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


class LinearModel:
    """3 -> 2 without a bias, from zeros, one step over all six examples."""

    def __init__(self, loss):
        self.plan = TrainingPlan(
            batch_size=6,
            learning_rate=0.5,
            input_shape=(3,),
            num_classes=2,
            loss=loss,
            weights=(TensorSpec(shape=(3, 2)),),
        )

    def initial_weights(self):
        return (np.zeros((3, 2), np.float32),)

    def predict(self, weights, x, tickets, *, training):
        del tickets, training
        return x @ weights[0]

    def example_loss(self, output, y):
        import tensorflow as tf

        if self.plan.loss == "mean_squared_error":
            return tf.reduce_mean((output - y) ** 2, -1)
        if self.plan.loss == "binary_crossentropy":
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, output), -1)
        return tf.nn.softmax_cross_entropy_with_logits(y, output)


# From zeros every output is 0: the losses and gradients can be written down.
YES_NO = np.array([[0, 1], [0, 0], [1, 1], [0, 1], [0, 0], [1, 0]], np.float32)
ONE_HOT = np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 0, 1]]
NUMBERS = np.arange(12, dtype=np.float32).reshape(6, 2)
ROWS = {
    "mean_squared_error": (NUMBERS, (0 - NUMBERS) * 2 / 2, np.mean(NUMBERS**2), 0.0),
    "binary_crossentropy": (YES_NO, (0.5 - YES_NO) / 2, np.log(2), 7 / 12),
    "categorical_crossentropy": (ONE_HOT, 0.5 - ONE_HOT, np.log(2), 3 / 6),
}


@pytest.mark.parametrize("loss", ROWS)
def test_a_simulated_client_minimises_and_measures_the_plans_loss(tiny_fleet, loss):
    from coordinator.tff.simulation import build_simulation_process
    from coordinator.tff.simulation_data import client_dataset

    del tiny_fleet  # it sets TFF's context
    labels, of_output, mean_loss, accuracy = ROWS[loss]
    model = LinearModel(loss)
    process = build_simulation_process(model, AggregationSpec())
    data = client_dataset(model.plan, X, labels, round_id=1, device_id="d")
    output = process.next(process.initialize(), [data])
    expected = -0.5 * X.T @ of_output / len(X)
    np.testing.assert_allclose(output.state.global_model_weights.trainable[0], expected, rtol=1e-5, atol=1e-6)
    metrics = output.metrics["client_work"]["train"]
    assert metrics["loss"] == pytest.approx(mean_loss, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(accuracy)
    assert metrics["weight_sum"] == len(X)
