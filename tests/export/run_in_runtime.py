"""Runs exported files in whatever LiteRT is installed; needs numpy and LiteRT alone. Arguments: inputs, results.

The inputs are an ``.npz`` file: for each file its bytes, and the inputs of its signatures as ``NAME/SIGNATURE/INPUT``.
The signatures are called in order: restore, train twice, evaluate, infer, save.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter

ORDER = ("restore", "train", "train", "evaluate", "infer", "save")


def run(path, target):
    given = np.load(path)
    results = {}
    for name in sorted({key.split("/")[0] for key in given.files}):
        interpreter = Interpreter(model_content=given[f"{name}/file"].tobytes(), num_threads=1)
        for step, signature in enumerate(ORDER):
            runner = interpreter.get_signature_runner(signature)
            inputs = {key: given[f"{name}/{signature}/{key}"] for key in runner.get_input_details()}
            for key, value in runner(**inputs).items():
                results[f"{name}/{step}/{signature}/{key}"] = value
    np.savez(target, **results)


if __name__ == "__main__":
    run(*sys.argv[1:])
