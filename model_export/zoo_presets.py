"""What the model zoo holds, without TensorFlow: shapes, sizes, and the plan that suits each model.

``zoo`` builds the models. A test holds every entry against the model that is built.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from model_export.plans import PlanFields

__all__ = ["DEFAULT_FIELDS", "ZOO_ENTRIES", "ZOO_PREFIX", "ZooEntry", "fields_for"]

ZOO_PREFIX: Final = "zoo:"

DEFAULT_FIELDS: Final[PlanFields] = {"batch_size": 32, "learning_rate": 0.05, "optimizer": "sgd", "num_epochs": 1}
"""The plan of a model that brings none."""

_OF_THE_MODEL: Final = ("batch_size", "num_epochs")
"""What a preset still says when another optimizer was asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ZooEntry:
    """One model of the zoo."""

    summary: str
    """What it is for, and what an example is."""
    input_shape: tuple[int, ...]
    num_classes: int
    num_parameters: int
    """Trainable ones: what travels."""
    preset: PlanFields


ZOO_ENTRIES: Final[Mapping[str, ZooEntry]] = {
    "mlp": ZooEntry(
        summary="two Dense layers on 28x28 grey values in 0..1, laid out flat",
        input_shape=(784,),
        num_classes=10,
        num_parameters=50_890,
        preset={"batch_size": 32, "learning_rate": 0.1, "optimizer": "sgd", "num_epochs": 1},
    ),
    "cnn": ZooEntry(
        summary="the classic MNIST net with dropout, on 28x28 grey images in 0..1",
        input_shape=(28, 28, 1),
        num_classes=10,
        num_parameters=1_199_882,
        preset={"batch_size": 32, "learning_rate": 0.05, "optimizer": "sgd", "num_epochs": 1},
    ),
    "mobile": ZooEntry(
        summary="depthwise separable blocks with group normalisation, on 32x32 colour images in 0..1",
        input_shape=(32, 32, 3),
        num_classes=10,
        num_parameters=54_330,
        preset={"batch_size": 32, "learning_rate": 0.05, "optimizer": "sgd", "momentum": 0.9, "num_epochs": 1},
    ),
    "har": ZooEntry(
        summary="convolutions over 128 readings of 9 motion sensors (standardised), 6 activities",
        input_shape=(128, 9),
        num_classes=6,
        num_parameters=17_318,
        preset={"batch_size": 32, "learning_rate": 0.001, "optimizer": "adam", "num_epochs": 2},
    ),
    "head": ZooEntry(
        summary="a linear head on fixed gradient features (8 orientations, 7x7 cells) of 28x28 grey images in 0..1",
        input_shape=(28, 28, 1),
        num_classes=10,
        num_parameters=3_930,
        preset={"batch_size": 32, "learning_rate": 0.1, "optimizer": "sgd", "num_epochs": 1},
    ),
    "private-head": ZooEntry(
        summary="head for differential privacy: features of norm 1 at most, one step over all images of a device (up to 64)",
        input_shape=(28, 28, 1),
        num_classes=10,
        num_parameters=3_930,
        preset={"batch_size": 64, "learning_rate": 1.0, "optimizer": "sgd", "num_epochs": 1},
    ),
    "gru": ZooEntry(
        summary="a keyword spotter: 25 frames of 10 cepstral coefficients (standardised), 12 classes",
        input_shape=(25, 10),
        num_classes=12,
        num_parameters=15_372,
        preset={"batch_size": 32, "learning_rate": 0.002, "optimizer": "adam", "num_epochs": 1},
    ),
    "digits_mlp": ZooEntry(
        summary="two Dense layers on the bundled 8x8 digits in 0..1, laid out flat",
        input_shape=(64,),
        num_classes=10,
        num_parameters=4_810,
        preset=DEFAULT_FIELDS,
    ),
    "digits_cnn": ZooEntry(
        summary="two convolutions on the bundled 8x8 digits in 0..1",
        input_shape=(8, 8, 1),
        num_classes=10,
        num_parameters=3_818,
        preset=DEFAULT_FIELDS,
    ),
    "mnist_cnn": ZooEntry(
        summary="the former name of cnn",
        input_shape=(28, 28, 1),
        num_classes=10,
        num_parameters=1_199_882,
        preset=DEFAULT_FIELDS,
    ),
}
"""Name -> entry, for ``zoo:NAME``."""


def fields_for(model: str, given: Mapping[str, Any]) -> PlanFields:
    """The plan fields of a model: what was asked for, then the zoo's preset, then ``DEFAULT_FIELDS``.

    Learning rate and momentum belong to an optimizer: where another one is asked for than the preset's, only batch
    size and epochs are taken from the preset.

    Args:
        model: ``zoo:NAME`` or a path.
        given: Plan field -> value; ``None`` was not given.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    entry = ZOO_ENTRIES.get(model.removeprefix(ZOO_PREFIX)) if model.startswith(ZOO_PREFIX) else None
    preset: dict[str, Any] = {} if entry is None else {**entry.preset}
    if asked.get("optimizer", preset.get("optimizer")) != preset.get("optimizer"):
        preset = {name: preset[name] for name in _OF_THE_MODEL if name in preset}
    fields: PlanFields = {**DEFAULT_FIELDS, **preset, **asked}  # type: ignore[typeddict-item]  # names are click's
    return fields
