"""Trains a ``.tflite`` file, with LiteRT alone or (a Flex file) with TensorFlow's own interpreter."""

import sys
from typing import Any

import numpy as np

from simulators.step_bench.turns import serve

__all__ = ["main"]


def main(runtime: str, path: str, num_threads: int) -> None:
    """Serves steps on random inputs of whatever ``train`` takes; ``runtime`` is litert or flex."""
    if runtime == "litert":
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tensorflow.lite.python.interpreter import Interpreter
    interpreter = Interpreter(path, num_threads=num_threads)
    rng = np.random.default_rng(0)
    signatures = interpreter.get_signature_list()
    if "restore" in signatures:
        restore = interpreter.get_signature_runner("restore")
        restore(**{
            name: np.asarray(0.05 * rng.standard_normal(detail["shape"]), np.float32)
            for name, detail in restore.get_input_details().items()
        })  # fmt: skip
    train = interpreter.get_signature_runner("train")
    inputs = {name: _example(name, detail, rng) for name, detail in train.get_input_details().items()}
    serve(lambda: train(**inputs))


def _example(name: str, detail: Any, rng: np.random.Generator) -> Any:
    shape = tuple(detail["shape"])
    if np.issubdtype(detail["dtype"], np.integer):
        return rng.integers(0, 10, shape).astype(detail["dtype"])
    if name == "learning_rate":
        return np.full(shape, 0.01, np.float32)
    return np.ones(shape, np.float32) if name == "example_weight" else rng.random(shape, np.float32)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
