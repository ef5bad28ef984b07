"""What a model answers to some inputs, raw: the golden batch by which devices check that it works there."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from model_export.errors import UnusableExamples
from wire_protocol import model_contract as contract

__all__ = ["draw_inputs", "golden_outputs"]

_INT8_STEPS: Final = (-128, 128)


def golden_outputs(model: bytes, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The outputs [n, ...] of a file's ``infer`` for inputs [n, ...], both in the file's own dtypes.

    Raises:
        UnusableExamples: The inputs are not what the model takes, or an output is not finite.
    """
    runner, shape, dtype = _runner(model)
    if inputs.shape[1:] != shape[1:] or inputs.dtype != dtype or not len(inputs):
        raise UnusableExamples(
            f"the model takes {dtype} [n, {', '.join(map(str, shape[1:]))}], not {inputs.dtype} {inputs.shape}"
        )
    outputs = []
    for start in range(0, len(inputs), shape[0]):
        batch = inputs[np.arange(start, start + shape[0]) % len(inputs)]
        outputs.append(runner(**{contract.X: batch})[contract.OUTPUT].copy())
    found: npt.NDArray[Any] = np.concatenate(outputs)[: len(inputs)]
    if not np.isfinite(found).all():
        raise UnusableExamples("the model answers with numbers that are not finite: it is not fit to be released")
    return found


def draw_inputs(model: bytes, num_examples: int, *, seed: int = 0) -> npt.NDArray[Any]:
    """Random inputs for a model, for want of real ones: standard normal numbers, or whatever an int8 can be."""
    _, shape, dtype = _runner(model)
    rng = np.random.default_rng(seed)
    wanted = (num_examples, *shape[1:])
    if dtype == np.int8:
        return rng.integers(*_INT8_STEPS, wanted).astype(np.int8)
    if dtype == np.int32:
        return np.zeros(wanted, np.int32)
    return rng.standard_normal(wanted).astype(dtype)


def _runner(model: bytes) -> tuple[Any, tuple[int, ...], "np.dtype[Any]"]:
    runner = Interpreter(model_content=model, num_threads=1).get_signature_runner(contract.INFER)
    details = runner.get_input_details()[contract.X]
    return runner, tuple(int(dim) for dim in details["shape"]), np.dtype(details["dtype"])
