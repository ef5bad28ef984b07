"""The loss a model is trained on, as a plain value."""

import dataclasses
import math
from typing import Literal, TypeAlias

from model_export.errors import UnsupportedModel
from wire_protocol.plan import CLASS_LOSSES, REGRESSION_LOSSES, LossName

__all__ = ["LogitActivation", "LossSpec"]

LogitActivation: TypeAlias = Literal["softmax", "sigmoid"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LossSpec:
    """A loss by Keras's name; see ``wire_protocol.model_contract`` for what its labels are."""

    name: LossName = "sparse_categorical_crossentropy"
    huber_delta: float = 1.0
    """Of ``huber`` alone."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.huber_delta) and self.huber_delta > 0):
            raise UnsupportedModel(f"huber's delta is {self.huber_delta}; it must be a number above 0")
        if self.name != "huber" and self.huber_delta != 1:
            raise UnsupportedModel(f"a delta belongs to huber, not to {self.name}")

    @property
    def logit_activation(self) -> LogitActivation | None:
        """What a model may end in without the loss reading it: a cross-entropy is taken of what goes into it."""
        if self.is_of_classes:
            return "softmax"
        return "sigmoid" if self.name == "binary_crossentropy" else None

    @property
    def is_of_classes(self) -> bool:
        """Whether one of several classes is right."""
        return self.name in CLASS_LOSSES

    @property
    def is_regression(self) -> bool:
        """Whether numbers are predicted."""
        return self.name in REGRESSION_LOSSES
