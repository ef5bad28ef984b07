"""What int8 costs on MNIST: a zoo model trained by the device's own trainer, frozen both ways, and put to the test set.

``scripts/bench freeze --write`` puts the rows into docs/how-to/use-a-trained-model.md.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edge_client.litert_trainer import LiteRtTrainer
from edge_client.training import ArrayExamples, TrainingJob
from model_export.exporter import build_export
from model_export.freezing import Examples, TrainedTask, freeze
from model_export.inference_card import InferenceCard, Int8Kind, Origin
from model_export.zoo import ZOO
from model_export.zoo_presets import ZOO_PREFIX, fields_for
from simulators.datasets import Dataset
from wire_protocol.messages import RoundKind
from wire_protocol.tensors import decode_tensors

__all__ = ["IMAGE_MODELS", "FrozenRow", "frozen_markdown", "measure_frozen_model"]

IMAGE_MODELS: Final = ("mlp", "cnn", "mobile", "head")
"""The models of the zoo that MNIST fits."""
_KINDS: Final[tuple[Int8Kind, ...]] = ("whole", "weights")
_ORIGIN: Final = Origin(
    task_id="trial", plan_sha256="", model_sha256="", graph_sha256="", checkpoint_sha256="", num_commits=None
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FrozenRow:
    """One model, frozen in one way."""

    name: str
    card: InferenceCard


def measure_frozen_model(name: str, data: Dataset, *, num_train: int) -> tuple[FrozenRow, ...]:
    """Trains a model for one pass and freezes it.

    Args:
        name: One of ``IMAGE_MODELS``.
        data: MNIST; its test images calibrate and measure.
        num_train: Training images to use.
    """
    export = build_export(ZOO[name](0), **fields_for(f"{ZOO_PREFIX}{name}", {}))
    shape = export.plan.input_shape
    plan = msgspec.structs.replace(export.plan, num_epochs=1)
    initial = decode_tensors(export.bundle.checkpoint, plan.weights)
    job = TrainingJob(
        kind=RoundKind.TRAIN, plan=plan, model=export.bundle.model, checkpoint=initial, round_id=1, device_id="trial"
    )
    examples = ArrayExamples(x=_as_inputs(data.x_train[:num_train], shape), y=data.y_train[:num_train])
    model_delta = LiteRtTrainer().train(job, examples).model_delta or ()
    task = TrainedTask(
        plan=export.plan,
        model=export.bundle.model,
        graph=export.bundle.graph,
        weights=tuple(np.add(old, delta) for old, delta in zip(initial, model_delta, strict=True)),
        origin=_ORIGIN,
    )
    x = _as_inputs(data.x_test, shape)
    return tuple(
        FrozenRow(name=name, card=freeze(task, examples=_examples(x, data.y_test, kind)).card) for kind in _KINDS
    )


def _examples(x: npt.NDArray[np.float32], y: npt.NDArray[Any], kind: Int8Kind) -> Examples:
    return Examples(x=x, y=y, kind=kind, max_accuracy_loss=1.0)


def _as_inputs(images: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Images [n, 28, 28, 1] for a model: flat, as they are, or padded and repeated over three channels."""
    if shape != (32, 32, 3):
        return images.reshape(-1, *shape)
    return np.repeat(np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))), 3, axis=-1)


def frozen_markdown(rows: Sequence[FrozenRow]) -> str:
    """The rows as a Markdown table."""
    head = "| model | int8 | float32, kB | int8, kB | accuracy float32 | int8 | same answer | float32 off by |\n"
    return head + "|---|---|---|---|---|---|---|---|\n" + "".join(map(_line, rows))


def _line(row: FrozenRow) -> str:
    int8 = row.card.int8
    if int8 is None or int8.float_accuracy is None:
        raise ValueError(f"{row.name} was not measured")
    cells = (
        f"`{row.name}`",
        int8.kind,
        f"{row.card.float32.num_bytes / 1e3:.0f}",
        f"{int8.file.num_bytes / 1e3:.0f}",
        f"{int8.float_accuracy:.1%}",
        f"{int8.int8_accuracy:.1%}",
        f"{int8.agreement:.1%}",
        f"{row.card.float_error:.0e}",
    )
    return f"| {' | '.join(cells)} |\n"
