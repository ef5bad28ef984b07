"""The same step by Keras and TensorFlow's autodiff: as a native graph, or converted to a Flex file."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from simulators.step_bench.models import bench_model
from simulators.step_bench.turns import serve

__all__ = ["write_flex_file"]


def main(num_threads: int, batch_size: int, dropout: float) -> None:
    """Serves steps of a ``tf.function``."""
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(num_threads)
    step = tf.function(_KerasStep(batch_size, dropout).train)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.random((batch_size, 28, 28, 1), np.float32))
    y = tf.constant(rng.integers(0, 10, batch_size).astype(np.int32))

    def run() -> float:
        return float(step(x, y)["loss"])

    serve(run)


class _KerasStep(tf.Module):  # type: ignore[misc]  # TensorFlow has no types
    def __init__(self, batch_size: int, dropout: float) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.model = bench_model(dropout)
        self.loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def train(self, x: Any, y: Any) -> dict[str, Any]:
        """One step of SGD at rate 0.01."""
        with tf.GradientTape() as tape:
            loss = self.loss(y, self.model(x, training=True))
        variables = self.model.trainable_weights
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.01 * gradient)
        return {"loss": loss}


def write_flex_file(path: Path, batch_size: int, dropout: float) -> None:
    """Converts the step with TensorFlow's select ops: what one does without this project's lowerings."""
    step = _KerasStep(batch_size, dropout)
    x = tf.TensorSpec([batch_size, 28, 28, 1], tf.float32, "x")
    y = tf.TensorSpec([batch_size], tf.int32, "y")
    train = tf.function(step.train).get_concrete_function(x, y)
    saved = str(path.with_suffix(".saved_model"))
    tf.saved_model.save(step, saved, signatures={"train": train})
    converter = tf.lite.TFLiteConverter.from_saved_model(saved)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    converter.experimental_enable_resource_variables = True
    path.write_bytes(converter.convert())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
