"""A device's own answer to a question, from its examples; rounding, noise and price follow at the release desk."""

import math
from typing import Final

import numpy as np

from edge_client.errors import ExampleMismatch
from edge_client.training import Examples, TrainingResult
from wire_protocol.private_reports import PRIVATE_METRICS, PRIVATE_NUM_EXAMPLES, PRIVATE_WEIGHT
from wire_protocol.query import Query, contribution

__all__ = ["answer_locally", "local_value"]

_CHUNK: Final = 1024


def answer_locally(query: Query, examples: Examples) -> TrainingResult:
    """The device's vector in place of a ``model_delta``.

    Raises:
        ExampleMismatch: The examples have no such column. Only the owner is told: the device sends noise.
    """
    return TrainingResult(
        model_delta=(contribution(query, local_value(query, examples)),),
        num_examples=PRIVATE_NUM_EXAMPLES,
        aggregation_weight=PRIVATE_WEIGHT,
        metrics=PRIVATE_METRICS,
        duration_s=0.0,
    )


def local_value(query: Query, examples: Examples) -> float | None:
    """The one value that a question is about; None for a mean over no examples.

    Raises:
        ExampleMismatch: The examples have no such column, or no class numbers where a class is asked for.
    """
    if query.of == "num_examples":
        return float(examples.num_examples)
    if examples.num_examples == 0:
        return None
    match query.of:
        case "input_mean":
            return _input_mean(query.column, examples)
        case "label_mean":
            labels = examples.labels.reshape(examples.num_examples, -1)
            _check_column(query.column, labels.shape[1], "label")
            return float(labels[:, query.column].mean(dtype=np.float64))
        case "class_share":
            if examples.labels.ndim != 1:
                raise ExampleMismatch("the query asks for a class; local labels are numbers")
            return float((examples.labels == query.column).mean())


def _input_mean(column: int, examples: Examples) -> float:
    _check_column(column, math.prod(examples.input_shape), "input")
    total = 0.0
    for start in range(0, examples.num_examples, _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, examples.num_examples), dtype=np.int64)
        total += float(examples.inputs(indices).reshape(len(indices), -1)[:, column].sum(dtype=np.float64))
    return total / examples.num_examples


def _check_column(column: int, num_columns: int, what: str) -> None:
    if column >= num_columns:
        raise ExampleMismatch(f"the query asks for {what} column {column}; local {what}s have {num_columns}")
