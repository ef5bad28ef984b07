"""Inference files of a task at given weights: built, compared with the trainable file, measured, described on a card."""

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model_export.errors import FreezingRefused, UnusableExamples
from model_export.file_ops import count_ops, min_runtime_version, op_versions
from model_export.frozen_model import FrozenModel
from model_export.graph_file import decode_graph
from model_export.inference_card import FileCard, InferenceCard, Int8Card, Int8Kind, Origin, encode_card
from model_export.inference_run import answers_of, infer_all, quantisation_of, trained_outputs
from model_export.operations import ModelGraph
from model_export.proved_runtimes import proved_runtimes, runtimes_of
from wire_protocol.plan import REGRESSION_LOSSES, TrainingPlan
from wire_protocol.tensors import Tensors

__all__ = [
    "CARD_NAME",
    "FILE_NAMES",
    "FLOAT_NAME",
    "INT8_NAME",
    "LEAST_EXAMPLES",
    "Examples",
    "FrozenFiles",
    "TrainedTask",
    "freeze",
]

FLOAT_NAME: Final = "model_float32.tflite"
INT8_NAME: Final = "model_int8.tflite"
CARD_NAME: Final = "card.json"
FILE_NAMES: Final = frozenset((FLOAT_NAME, INT8_NAME, CARD_NAME))

_TOLERANCE: Final = 1e-5
_NUM_COMPARED: Final = 64
_MAX_CALIBRATION: Final = 256
_MAX_HELD_OUT: Final = 2048
LEAST_EXAMPLES: Final = 100
"""For int8. Half of them are held out: one more wrong answer is then no more than the accuracy that may be lost."""
_REPORTED_PACKAGES: Final = ("ai-edge-litert", "keras", "numpy", "tensorflow")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainedTask:
    """What is frozen."""

    plan: TrainingPlan
    model: bytes
    """The trainable file."""
    graph: bytes
    """The bundle's graph file."""
    weights: Tensors
    origin: Origin


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Examples:
    """How to make and to measure an int8 file.

    The examples are typical ones, the engineer's own: some of them set the ranges, the others are held out.
    """

    x: npt.NDArray[np.float32]
    """[n, ...], as the plan has inputs."""
    y: npt.NDArray[Any]
    """Labels as the plan has them."""
    kind: Int8Kind = "whole"
    max_accuracy_loss: float = 0.02
    """Share of right answers among those held out that int8 may cost."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FrozenFiles:
    """The files by name, and the card, which is one of them."""

    files: Mapping[str, bytes]
    card: InferenceCard


def freeze(
    task: TrainedTask,
    *,
    batch_size: int = 1,
    examples: Examples | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> FrozenFiles:
    """Makes the float32 file, and with ``examples`` also the int8 one.

    Args:
        task: What to freeze.
        batch_size: Examples per call of the files.
        examples: For int8, at least ``LEAST_EXAMPLES``.
        on_stage: Called with the name of each stage as it begins.

    Raises:
        UnreadableGraph: The bundle's graph is damaged.
        UnsupportedOp: An op has no TFLite builtin.
        UnusableExamples: Too few, or not as the plan has them.
        FreezingRefused: The float32 file leaves the trainable one's ``infer`` by more than 1e-5, int8 is not possible,
            or costs more accuracy than it may. In all cases nothing is returned.
    """
    graph = _graph_of(task)
    if examples is not None:
        _refuse_wrong_examples(examples, task.plan)
    frozen = FrozenModel(graph, task.weights, batch_size)
    on_stage("freezing as float32")
    float_model = frozen.as_float()
    compared = _check_inputs(task.plan, graph)
    float_error = _float_error(float_model, task, compared)
    files, int8 = {FLOAT_NAME: float_model}, None
    if examples is not None:
        on_stage("quantising to int8")
        files[INT8_NAME], int8 = _quantise(frozen, float_model, examples, task.plan, graph)
    card = InferenceCard(
        origin=task.origin,
        batch_size=batch_size,
        input_shape=task.plan.input_shape,
        num_outputs=task.plan.num_classes,
        loss=task.plan.loss,
        output=_kind_of_output(graph),
        float32=_file_card(FLOAT_NAME, float_model),
        float_error=float_error,
        num_inputs_compared=len(compared),
        int8=int8,
        versions={package: importlib.metadata.version(package) for package in _REPORTED_PACKAGES},
    )
    return FrozenFiles(files={**files, CARD_NAME: encode_card(card)}, card=card)


def _graph_of(task: TrainedTask) -> ModelGraph:
    graph, plan = decode_graph(task.graph), task.plan
    shapes = tuple(spec.shape for spec in plan.weights)
    if (graph.weight_shapes, graph.input_shape, graph.loss.name) != (shapes, plan.input_shape, plan.loss):
        raise FreezingRefused("the bundle's graph is another model's than its plan: export the model again")
    return graph


def _refuse_wrong_examples(examples: Examples, plan: TrainingPlan) -> None:
    for what, array, shape in (("inputs", examples.x, plan.input_shape), ("labels", examples.y, plan.label_shape)):
        if array.shape[1:] != shape:
            raise UnusableExamples(f"{what} have the shape {list(array.shape[1:])}, the task's {list(shape)}")
    if len(examples.x) < LEAST_EXAMPLES:
        raise UnusableExamples(f"{len(examples.x)} examples cannot show what int8 costs: give {LEAST_EXAMPLES} or more")


def _check_inputs(plan: TrainingPlan, graph: ModelGraph) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(plan.seed)
    shape = (_NUM_COMPARED, *plan.input_shape)
    if graph.num_tokens:
        return rng.integers(0, graph.num_tokens, shape).astype(np.float32)
    return np.where(rng.random((_NUM_COMPARED, *(1 for _ in plan.input_shape))) < 0.5,  # noqa: PLR2004 - one half each
                    rng.random(shape), rng.standard_normal(shape)).astype(np.float32)  # fmt: skip


def _float_error(model: bytes, task: TrainedTask, x: npt.NDArray[np.float32]) -> float:
    expected = trained_outputs(task.model, task.plan, task.weights, x)
    error = float(np.abs(infer_all(model, x) - expected).max()) / max(1.0, float(np.abs(expected).max()))
    if not error <= _TOLERANCE:  # not the same as >: a NaN is refused
        raise FreezingRefused(
            f"the float32 file's outputs are off by {error:.3g} from the trainable file's, tolerance {_TOLERANCE:.0e}: "
            "is graph.json of this bundle?"
        )
    return error


def _quantise(
    frozen: FrozenModel, float_model: bytes, examples: Examples, plan: TrainingPlan, graph: ModelGraph
) -> tuple[bytes, Int8Card]:
    order = np.random.default_rng(plan.seed).permutation(len(examples.x))
    is_whole = examples.kind == "whole"
    num_calibration = min(_MAX_CALIBRATION, len(order) // 2) if is_whole else 0
    held_out = order[num_calibration : num_calibration + _MAX_HELD_OUT]
    model = frozen.as_int8(examples.x[order[:num_calibration]]) if is_whole else frozen.with_int8_weights()
    x, y = examples.x[held_out], examples.y[held_out]
    exact, rough = infer_all(float_model, x), infer_all(model, x)
    threshold = 0.0 if graph.output_activation is None else 0.5
    right, rounded = (answers_of(output, y, plan, threshold=threshold) for output in (exact, rough))
    of_input, of_output = quantisation_of(model)
    errors = np.abs(exact - rough)
    card = Int8Card(
        file=_file_card(INT8_NAME, model),
        kind=examples.kind,
        input_scale=of_input.scale,
        input_zero_point=of_input.zero_point,
        output_scale=of_output.scale,
        output_zero_point=of_output.zero_point,
        num_calibration=num_calibration,
        num_held_out=len(held_out),
        float_accuracy=None if right is None else right.accuracy,
        int8_accuracy=None if rounded is None else rounded.accuracy,
        agreement=None if right is None or rounded is None else float(np.mean(right.given == rounded.given)),
        max_output_error=float(errors.max()),
        mean_output_error=float(errors.mean()),
    )
    _refuse_loss(card, examples)
    return model, card


def _refuse_loss(card: Int8Card, examples: Examples) -> None:
    if card.float_accuracy is None or card.int8_accuracy is None:
        return
    allowed = examples.max_accuracy_loss
    if card.float_accuracy - card.int8_accuracy > allowed + 1e-9:  # a quotient's rounding
        instead = "use --int8 weights" if card.kind == "whole" else "use the float32 file"
        raise FreezingRefused(
            f"int8 answers {card.int8_accuracy:.1%} of {card.num_held_out} held-out examples rightly, float32 "
            f"{card.float_accuracy:.1%}; {allowed:.1%} may be lost: {instead}, give more typical examples, or allow more "
            "with --max-accuracy-loss"
        )


def _kind_of_output(graph: ModelGraph) -> Any:
    if graph.loss.name in REGRESSION_LOSSES:
        return "numbers"
    return "logits" if graph.output_activation is None else "probabilities"


def _file_card(name: str, model: bytes) -> FileCard:
    return FileCard(
        name=name,
        sha256=hashlib.sha256(model).hexdigest(),
        num_bytes=len(model),
        op_counts=count_ops(model),
        op_versions=op_versions(model),
        min_runtime_version=min_runtime_version(model),
        proved_runtimes=runtimes_of(op_versions(model), proved_runtimes().inference_ops) if name == FLOAT_NAME else (),
    )
