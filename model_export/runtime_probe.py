"""Runs model files in the LiteRT at hand. Needs numpy and LiteRT, nothing of this project: it is run by its path.

    python runtime_probe.py DIRECTORY OUT

For each ``NAME.tflite`` of the directory, ``NAME.npz`` holds calls in order, an array per input, named
``number/signature/input``. The outputs of all calls go to ``OUT/NAME.npz``, named alike, or what was raised to
``OUT/NAME.error``.
"""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

__all__ = ["Arrays", "run_calls"]

Arrays = Mapping[str, Any]
"""``number/signature/name`` -> array."""


def run_calls(model: bytes, inputs: Arrays) -> dict[str, Any]:
    """Calls a model file's signatures one after the other.

    Args:
        model: The file.
        inputs: Of all calls; a call without inputs (``save``) has one empty array of an empty name.

    Returns:
        The outputs of all calls.
    """
    interpreter = Interpreter(model_content=model, num_threads=1)
    calls: dict[str, dict[str, Any]] = {}
    for key in inputs:
        call, name = key.rsplit("/", 1)
        calls.setdefault(call, {}).update({name: inputs[key]} if name else {})
    outputs: dict[str, Any] = {}
    for call in sorted(calls):
        runner = interpreter.get_signature_runner(call.partition("/")[2])
        outputs.update({f"{call}/{name}": np.array(value) for name, value in runner(**calls[call]).items()})
    return outputs


def _main(directory: pathlib.Path, out: pathlib.Path) -> None:
    for path in sorted(directory.glob("*.tflite")):
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as inputs:
            try:
                outputs = run_calls(path.read_bytes(), inputs)
            except Exception as error:  # noqa: BLE001 - each runtime has its own; the other files are to be run as well
                (out / f"{path.stem}.error").write_text(str(error))
            else:
                np.savez(out / f"{path.stem}.npz", **outputs)


if __name__ == "__main__":
    _main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
