"""The benchmark's model, as Keras and as an exported file."""

from pathlib import Path
from typing import Any

import msgspec
import tensorflow as tf

from model_export.conversion import convert
from model_export.keras_graph import read_graph
from model_export.plans import plan_for_graph
from model_export.train_step import TrainStep
from model_export.zoo import mnist_cnn

__all__ = ["bench_model", "write_exported_file"]


def bench_model(dropout: float) -> Any:
    """``mnist_cnn``; with ``dropout`` 0 without its dropout layers."""
    model = mnist_cnn()
    if dropout:
        return model
    kept = [layer for layer in model.layers if not isinstance(layer, tf.keras.layers.Dropout)]
    return tf.keras.Sequential([tf.keras.layers.InputLayer((28, 28, 1)), *kept])


def write_exported_file(path: Path, batch_size: int, dropout: float, *, example_clip: float | None = None) -> None:
    """The file that ``flockwise export`` would write (without its parity check)."""
    graph = read_graph(bench_model(dropout))
    plan = plan_for_graph(graph, batch_size=batch_size, learning_rate=0.01)
    if example_clip is not None:
        plan = msgspec.structs.replace(plan, per_example_clipping_norm=example_clip)
    path.write_bytes(convert(TrainStep(graph, plan)))
