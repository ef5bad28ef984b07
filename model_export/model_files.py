"""Opens what the command line names: a Keras file, or a model of the zoo."""

import json
import pathlib
from typing import Any, Final

import h5py  # type: ignore[import-untyped]  # Keras brings it; it has no types
import tensorflow as tf

from model_export.errors import UnreadableModel
from model_export.zoo import ZOO
from model_export.zoo_presets import ZOO_PREFIX

__all__ = ["open_model"]

_H5_SUFFIXES: Final = (".h5", ".hdf5")
_KERAS_SUFFIX: Final = ".keras"


def open_model(name: str, *, seed: int) -> Any:
    """Opens a model.

    Args:
        name: A path ending in ``.keras``, ``.h5`` or ``.hdf5``, or ``zoo:NAME``.
        seed: Seeds the initial weights of a zoo model; a file brings its own.

    Raises:
        UnreadableModel: No such model, not a Keras file, or one that holds code (a Lambda layer).
    """
    if name.startswith(ZOO_PREFIX):
        builder = ZOO.get(name.removeprefix(ZOO_PREFIX))
        if builder is None:
            raise UnreadableModel(f"{name!r} is not in the zoo; there are: {', '.join(sorted(ZOO))}")
        return builder(seed)
    path = pathlib.Path(name)
    if not path.is_file():
        raise UnreadableModel(f"there is no file {name!r}; name a .keras or .h5 file, or zoo:NAME")
    if path.suffix not in (*_H5_SUFFIXES, _KERAS_SUFFIX):
        raise UnreadableModel(f"{name!r} does not end in .keras or .h5; save the model with model.save('model.keras')")
    try:
        if path.suffix in _H5_SUFFIXES:
            _refuse_code_in_h5(path)
        return tf.keras.models.load_model(path, safe_mode=True)
    except UnreadableModel:
        raise
    except Exception as error:  # Keras raises whatever its parsers raise
        raise UnreadableModel(f"Keras cannot load {name!r}: {error}") from error


def _refuse_code_in_h5(path: pathlib.Path) -> None:
    """Keras's safe mode covers .keras files only; a Lambda layer in an .h5 file would run its bytecode."""
    with h5py.File(path, "r") as file:
        config = file.attrs.get("model_config")
    if config is None:
        raise UnreadableModel(f"{str(path)!r} holds weights only; save the whole model")
    if _names_lambda(json.loads(config)):
        raise UnreadableModel(f"{str(path)!r} holds a Lambda layer, which is code; build the model without it")


def _names_lambda(config: Any) -> bool:
    if isinstance(config, dict):
        return config.get("class_name") == "Lambda" or any(map(_names_lambda, config.values()))
    return isinstance(config, list) and any(map(_names_lambda, config))
