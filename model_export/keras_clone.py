"""A Keras model built anew from its layers' own configurations, flat: the models inside it are opened."""

import inspect
from collections import Counter
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from model_export.keras_calls import LayerCall, follow_calls

__all__ = ["FlatClone", "MaskedDropout"]


class MaskedDropout(tf.keras.layers.Layer):
    """Multiplies with a mask that is set from outside before each training call."""

    mask: Any = None

    def call(self, inputs: Any, training: bool = False) -> Any:  # noqa: FBT001, FBT002 - Keras calls it so
        """As a dropout does."""
        return inputs * self.mask if training else inputs


class FlatClone:
    """A model of Keras's own layers that computes what another does; it starts with the other's weights.

    Only Dropout is replaced, by ``MaskedDropout``, and left out where it does nothing.

    Args:
        model: What to copy; it is never changed.
        dtype: What the copy computes in, float32 or float64.
    """

    def __init__(self, model: Any, dtype: str = "float32") -> None:
        self._dtype = dtype
        self._names: Counter[str] = Counter()
        self._clones: dict[int, tuple[Any, Any]] = {}
        self.dropouts: list[MaskedDropout] = []
        """In the order in which they are met, which is that of ``ModelGraph.dropouts``."""
        source = model.inputs[0]
        given = tf.keras.Input(source.shape[1:], dtype=dtype if source.dtype.is_floating else source.dtype)
        self.model = tf.keras.Model(given, follow_calls(model, [given], self._call))
        self._variable_of = {
            theirs.ref(): mine
            for layer, clone in self._clones.values()
            for theirs, mine in zip(layer.weights, clone.weights, strict=True)
        }
        self.copy_weights(model.weights)

    def of(self, variables: Iterable[Any]) -> list[Any]:
        """The copy's variables that stand for some of the model's."""
        return [self._variable_of[variable.ref()] for variable in variables]

    def copy_weights(self, variables: Iterable[Any], values: Iterable[Any] | None = None) -> None:
        """Sets the copies of some of the model's variables, to those or to other values."""
        given = list(variables)
        for mine, value in zip(self.of(given), given if values is None else values, strict=True):
            mine.assign(tf.cast(value, mine.dtype))
        for layer in self.model.layers:
            if isinstance(layer, tf.keras.layers.Normalization):
                layer.finalize_state()  # it computes with copies of its weights

    def _call(self, call: LayerCall) -> Any:
        if isinstance(call.layer, tf.keras.layers.Dropout):
            return self._drop(call)
        if id(call.layer) not in self._clones:
            self._clones[id(call.layer)] = (call.layer, self._clone(call.layer))
        clone = self._clones[id(call.layer)][1]
        args, kwargs = tf.nest.map_structure(self._converted, (call.args, dict(call.kwargs)))
        if not call.is_training and "training" in inspect.signature(clone.call).parameters:
            kwargs["training"] = False
        return clone(*args, **kwargs)

    def _drop(self, call: LayerCall) -> Any:
        if not call.is_training or not call.layer.rate:
            return call.args[0]
        self.dropouts.append(MaskedDropout(name=self._name(call.layer)))
        return self.dropouts[-1](call.args[0])

    def _clone(self, layer: Any) -> Any:
        config = {**self._in_dtype(layer.get_config()), "name": self._name(layer)}
        if self._dtype != "float32" and isinstance(layer, tf.keras.layers.BatchNormalization):
            config["fused"] = False  # the fused op knows no float64
        return type(layer).from_config(config)

    def _in_dtype(self, config: Any) -> Any:
        """A layer's configuration, and that of a layer inside it, with another dtype."""
        if not isinstance(config, dict):
            return config
        return {name: self._dtype if value == "float32" else self._in_dtype(value) for name, value in config.items()}

    def _name(self, layer: Any) -> str:
        """Two models may have layers of one name; one may not."""
        self._names[layer.name] += 1
        count = self._names[layer.name]
        return str(layer.name) if count == 1 else f"{layer.name}.{count}"

    def _converted(self, argument: Any) -> Any:
        """A constant that a function is called on."""
        is_constant = tf.is_tensor(argument) and not tf.keras.backend.is_keras_tensor(argument)
        return tf.cast(argument, self._dtype) if is_constant and argument.dtype.is_floating else argument
