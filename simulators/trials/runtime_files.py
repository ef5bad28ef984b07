"""The files that a LiteRT runtime is put to the test with: models, the calls to make, and what the calls should give."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model_export.check_batches import BatchKind, draw_batch
from model_export.conversion import convert
from model_export.exporter import build_export
from model_export.file_ops import op_versions
from model_export.frozen_model import FrozenModel
from model_export.keras_graph import read_graph
from model_export.keras_weights import travelling_weights
from model_export.layer_table import LAYER_ROWS, row_model
from model_export.operations import ModelGraph
from model_export.optimizer_table import OPTIMIZERS
from model_export.plans import plan_for_graph
from model_export.runtime_probe import run_calls
from model_export.train_step import TrainStep
from model_export.zoo import ZOO, digits_mlp
from model_export.zoo_presets import ZOO_PREFIX, fields_for
from model_export.zoo_table import ZOO_ROWS
from wire_protocol import model_contract as contract
from wire_protocol.plan import TrainingPlan

__all__ = ["ProofFile", "certified_errors", "layer_files", "optimizer_files", "write_files", "zoo_files"]

_ROW_BATCH: Final = 4


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ProofFile:
    """One model file with its calls."""

    name: str
    """Of the zoo model, or of the row of the layer table."""
    file_name: str
    model: bytes
    inputs: dict[str, Any]
    """As ``runtime_probe`` reads them."""
    expected: dict[str, Any]
    """What the runtime of this environment gives: the one that the exporter compares with Keras."""

    @property
    def is_trainable(self) -> bool:
        """Whether it has a step to train with, or only answers."""
        return len({key.split("/")[1] for key in self.inputs}) > 1

    @property
    def op_versions(self) -> dict[str, int]:
        """The highest version of each op."""
        return op_versions(self.model)


def zoo_files() -> Iterator[ProofFile]:
    """Each zoo model with its preset: the trainable file, and the float32 inference file."""
    for name in ZOO_ROWS:
        model = ZOO[name](0)
        graph = read_graph(model)
        plan = plan_for_graph(graph, **fields_for(f"{ZOO_PREFIX}{name}", {}))
        yield from _files(_Subject(name=name, file_name=f"zoo-{name}", model=model, graph=graph, plan=plan))


def layer_files() -> Iterator[ProofFile]:
    """The same of each row of the layer table, trained by SGD."""
    for number, name in enumerate(LAYER_ROWS):
        model = row_model(name)
        graph = read_graph(model)
        plan = plan_for_graph(graph, batch_size=_ROW_BATCH, learning_rate=0.05)
        yield from _files(_Subject(name=name, file_name=f"row-{number:03d}", model=model, graph=graph, plan=plan))


def optimizer_files() -> Iterator[ProofFile]:
    """``digits_mlp`` with each row of the optimizer table."""
    for number, (name, fields) in enumerate(OPTIMIZERS.items()):
        model = digits_mlp()
        graph = read_graph(model)
        plan = plan_for_graph(graph, batch_size=_ROW_BATCH, **fields)
        subject = _Subject(
            name=name, file_name=f"optimizer-{number:02d}", model=model, graph=graph, plan=plan, has_slots=True
        )
        yield from _files(subject)


def certified_errors() -> dict[str, float]:
    """Zoo model -> the largest loss, weight or output error of its export's certificate."""
    certificates = {
        name: build_export(ZOO[name](0), **fields_for(f"{ZOO_PREFIX}{name}", {})).certificate for name in ZOO_ROWS
    }
    return {
        name: max(found.max_loss_error, found.max_weight_error, found.max_output_error)
        for name, found in certificates.items()
    }


def write_files(files: Sequence[ProofFile], directory: pathlib.Path) -> None:
    """Writes files and calls for ``runtime_probe``."""
    for file in files:
        (directory / f"{file.file_name}.tflite").write_bytes(file.model)
        np.savez(directory / f"{file.file_name}.npz", **file.inputs)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Subject:
    """A Keras model to make files of."""

    name: str
    file_name: str
    model: Any
    graph: ModelGraph
    plan: TrainingPlan
    has_slots: bool = False
    """Whether it is there for its optimizer: two steps in a row show what that keeps."""

    def file(self, suffix: str, model: bytes, inputs: dict[str, Any]) -> ProofFile:
        return ProofFile(
            name=self.name,
            file_name=f"{self.file_name}{suffix}",
            model=model,
            inputs=inputs,
            expected=run_calls(model, inputs),
        )


def _files(subject: _Subject) -> Iterator[ProofFile]:
    graph, plan = subject.graph, subject.plan
    weights = [weight.numpy().astype(np.float32) for weight in travelling_weights(subject.model)]
    yield subject.file("", convert(TrainStep(graph, plan)), _training_calls(subject, weights))
    frozen = FrozenModel(graph, weights, plan.batch_size).as_float()
    x = draw_batch("random", graph, plan.batch_size, np.random.default_rng(0)).x
    yield subject.file("-frozen", frozen, {f"00/{contract.INFER}/{contract.X}": x})


def _training_calls(subject: _Subject, weights: Sequence[npt.NDArray[np.float32]]) -> dict[str, Any]:
    """From equal weights, as the certificate: infer, evaluate, a step and save, with a full and a short batch.

    Only for slots both steps in a row: runtimes drift apart at the first ReLU whose input ties within a rounding.
    """
    graph, plan = subject.graph, subject.plan
    rng = np.random.default_rng(0)
    restored = {contract.weight_name(index): weight for index, weight in enumerate(weights)}
    calls: list[tuple[str, dict[str, Any]]] = []
    steps: list[tuple[str, dict[str, Any]]] = []
    saved = (contract.SAVE, {"": np.zeros(0)})
    kinds: tuple[BatchKind, ...] = ("random", "partial")
    for kind in kinds:
        batch = draw_batch(kind, graph, plan.batch_size, rng)
        scored = {contract.X: batch.x, contract.LABEL: batch.labels, contract.EXAMPLE_WEIGHT: batch.example_weight}
        step = {**scored, contract.LEARNING_RATE: np.array([plan.learning_rate], np.float32)}
        if plan.has_dropout:
            step[contract.DROPOUT_TICKET] = batch.tickets
        if plan.proximal_mu:
            step[contract.PROXIMAL_MU] = np.array([plan.proximal_mu], np.float32)
        steps.append((contract.TRAIN, step))
        calls += [
            (contract.RESTORE, restored),
            (contract.INFER, {contract.X: batch.x}),
            (contract.EVALUATE, scored),
            steps[-1],
            saved,
        ]
    if subject.has_slots:
        calls += [(contract.RESTORE, restored), *steps, saved]
    return {
        f"{number:02d}/{signature}/{name}": value
        for number, (signature, inputs) in enumerate(calls)
        for name, value in inputs.items()
    }
