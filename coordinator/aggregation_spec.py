"""How updates become the next model: mean, clipping and server optimizer, as a value to be stored and compared."""

import math
from typing import Annotated, Literal

import msgspec

from coordinator.errors import InvalidConfig

__all__ = ["AggregationSpec", "decode_aggregation_spec", "encode_aggregation_spec"]

_Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class AggregationSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the server does with the client updates of a round.

    The mean ``g`` of the (negated) updates is a pseudo-gradient, to which the server optimizer is applied: Reddi et
    al. 2021, "Adaptive Federated Optimization", algorithm 2. ``sgd`` with a learning rate of 1 is FedAvg (McMahan et
    al. 2017, algorithm 1).

    Raises:
        InvalidConfig: A setting is out of its range.
    """

    server_optimizer: Literal["sgd", "momentum", "adam", "adagrad", "yogi"] = "sgd"
    server_learning_rate: float = 1.0
    momentum: _Fraction = 0.9
    """Of ``momentum`` alone."""
    beta_1: _Fraction = 0.9
    """Of ``adam`` and ``yogi``."""
    beta_2: _Fraction = 0.99
    """Of ``adam`` and ``yogi``."""
    epsilon: float = 1e-3
    """Of ``adam``, ``adagrad`` and ``yogi``: how adaptive they are (Reddi et al. call it tau)."""
    clipping: Literal["none", "fixed", "adaptive"] = "none"
    """``fixed`` clips each update to ``clipping_norm``; ``adaptive`` zeroes outliers and clips to norms that TFF
    learns from the fleet (Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping", no noise)."""
    clipping_norm: float | None = None
    """L2 norm over the whole update; exactly with ``fixed``."""
    weighted: bool = True
    """Whether the mean is weighted with each update's ``aggregation_weight``."""

    def __post_init__(self) -> None:
        for name in ("server_learning_rate", "epsilon"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InvalidConfig(f"{name} must be positive and finite, not {value}")
        for name in ("momentum", "beta_1", "beta_2"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidConfig(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if (self.clipping_norm is not None) != (self.clipping == "fixed"):
            raise InvalidConfig("clipping_norm belongs to clipping='fixed', and to nothing else")
        if self.clipping_norm is not None and not (math.isfinite(self.clipping_norm) and self.clipping_norm > 0):
            raise InvalidConfig(f"clipping_norm must be positive and finite, not {self.clipping_norm}")


def encode_aggregation_spec(spec: AggregationSpec) -> bytes:
    """Canonical JSON: fields in declaration order, one trailing newline."""
    return msgspec.json.encode(spec) + b"\n"


def decode_aggregation_spec(data: bytes) -> AggregationSpec:
    """Parses and validates a specification.

    Raises:
        InvalidConfig: Not a specification, or a setting out of its range; the message names it.
    """
    try:
        return msgspec.json.decode(data, type=AggregationSpec)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidConfig(f"not an aggregation specification: {error}") from error
