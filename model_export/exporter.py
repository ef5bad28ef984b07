"""Exports a Keras model: conversion, parity check, bundle."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any, Unpack

import msgspec
import numpy as np

from model_export.bundle import Bundle, refuse_other_files, write_bundle
from model_export.certificate import Certificate, LossReads, Tolerances, encode_certificate
from model_export.conversion import convert
from model_export.file_ops import count_ops, min_runtime_version, op_versions
from model_export.graph_file import encode_graph
from model_export.keras_graph import read_graph
from model_export.keras_reference import KerasReference
from model_export.keras_weights import travelling_weights
from model_export.lite_model import LiteModel
from model_export.loss_spec import LossSpec
from model_export.operations import ModelGraph
from model_export.parity import (
    GRADIENT_PROBE_LEARNING_RATE,
    CheckedFiles,
    ParityReport,
    check_parity,
    refuse_violations,
)
from model_export.plans import PlanFields, plain_sgd_twin, plan_for_graph, shows_gradients
from model_export.proved_runtimes import proved_runtimes, runtimes_of
from model_export.step_cost import measure_step_cost
from model_export.train_step import TrainStep
from wire_protocol.model_contract import CONTRACT_VERSION, RESTORE, SAVE, TRAIN
from wire_protocol.plan import TrainingPlan, encode_plan
from wire_protocol.tensors import Tensors, encode_tensors

__all__ = ["ExportResult", "build_export", "export_model"]

_REPORTED_PACKAGES = ("ai-edge-litert", "keras", "numpy", "tensorflow")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """What was exported."""

    plan: TrainingPlan
    certificate: Certificate
    bundle: Bundle


def export_model(
    model: Any,
    *,
    out_dir: pathlib.Path,
    loss: LossSpec | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
    tolerances: Tolerances | None = None,
    **plan_fields: Unpack[PlanFields],
) -> ExportResult:
    """Exports a Keras model as a bundle: model file, plan, initial checkpoint, graph, parity certificate.

    Args:
        model: A Keras model, Sequential or functional.
        out_dir: Where to write; an earlier bundle there is replaced.
        loss: What to train on; if not given, what the model was compiled with, or else sparse categorical
            cross-entropy.
        on_stage: Called with the name of each stage as it begins.
        tolerances: How far LiteRT may be from Keras; the defaults of ``Tolerances`` if not given.
        **plan_fields: ``batch_size`` and ``learning_rate``, and optionally the other fields of ``PlanFields``; see
            ``TrainingPlan`` for meanings and defaults.

    Raises:
        NotABundle: ``out_dir`` holds other files.
        UnsupportedModel: The model, or one of its layers, cannot be exported.
        UnsupportedOp: The conversion needed an op that is no TFLite builtin.
        ParityRefused: The file does not compute what Keras computes. In all four cases nothing is written.
        MalformedMessage: A plan field is out of its range (``wire_protocol.errors``).
    """
    refuse_other_files(out_dir)
    built = build_export(model, loss=loss, on_stage=on_stage, tolerances=tolerances, **plan_fields)
    on_stage("measuring a training step")
    result = _with_step_cost(built)
    on_stage("writing the bundle")
    write_bundle(result.bundle, out_dir)
    return result


def build_export(
    model: Any,
    *,
    loss: LossSpec | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
    tolerances: Tolerances | None = None,
    **plan_fields: Unpack[PlanFields],
) -> ExportResult:
    """Does what ``export_model`` does, but measures and writes nothing; arguments and errors are the same."""
    on_stage("reading the model")
    graph = read_graph(model, loss)
    plan = plan_for_graph(graph, **plan_fields)
    initial = tuple(weight.numpy().astype(np.float32) for weight in travelling_weights(model))
    on_stage("converting to TFLite")
    file = convert(TrainStep(graph, plan))
    files = CheckedFiles(trained=LiteModel(file), gradient_probe=_gradient_probe(file, graph, plan))
    on_stage("comparing LiteRT with Keras")
    report = check_parity(files, KerasReference(model, graph, example_clip=plan.example_clip), graph, plan, initial)
    allowed = tolerances or Tolerances()
    refuse_violations(report, allowed)
    return _result(_Converted(file=file, graph=graph, plan=plan, initial=initial), report, allowed)


def _with_step_cost(result: ExportResult) -> ExportResult:
    certificate = msgspec.structs.replace(result.certificate, step_cost=measure_step_cost(result.bundle.model))
    bundle = dataclasses.replace(result.bundle, certificate=encode_certificate(certificate))
    return dataclasses.replace(result, certificate=certificate, bundle=bundle)


def _gradient_probe(file: bytes, graph: ModelGraph, plan: TrainingPlan) -> LiteModel:
    """A file whose step shows the gradient: this one, or, where the optimizer bends it, its twin with plain SGD."""
    if shows_gradients(plan):
        return LiteModel(file)
    return LiteModel(convert(TrainStep(graph, plain_sgd_twin(plan)), signatures=(TRAIN, RESTORE, SAVE)))


def _what_the_loss_reads(graph: ModelGraph) -> LossReads:
    if graph.loss.is_regression:
        return "output"
    if graph.output_activation is None:
        return "logits"
    return "logits before the final softmax" if graph.ends_in_softmax else "logits before the final sigmoid"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Converted:
    file: bytes
    graph: ModelGraph
    plan: TrainingPlan
    initial: Tensors


def _result(converted: _Converted, report: ParityReport, tolerances: Tolerances) -> ExportResult:
    file, plan = converted.file, converted.plan
    encoded_plan, checkpoint = encode_plan(plan), encode_tensors(converted.initial)
    graph = encode_graph(converted.graph)
    certificate = Certificate(
        contract_version=CONTRACT_VERSION,
        model_sha256=hashlib.sha256(file).hexdigest(),
        plan_sha256=hashlib.sha256(encoded_plan).hexdigest(),
        checkpoint_sha256=hashlib.sha256(checkpoint).hexdigest(),
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        model_bytes=len(file),
        plan_bytes=len(encoded_plan),
        checkpoint_bytes=len(checkpoint),
        num_parameters=plan.num_parameters,
        op_counts=count_ops(file),
        op_versions=op_versions(file),
        min_runtime_version=min_runtime_version(file),
        model_gzip_bytes=len(gzip.compress(file, mtime=0)),
        loss=plan.loss,
        loss_reads=_what_the_loss_reads(converted.graph),
        tolerances=tolerances,
        cases=report.cases,
        signature_errors=report.signature_errors,
        proved_runtimes=runtimes_of(op_versions(file), proved_runtimes().trained_ops),
        num_steps_compared=sum(case.num_steps for case in report.cases),
        max_loss_error=max(case.loss_error for case in report.cases),
        max_gradient_error=max(case.gradient_error for case in report.cases),
        max_weight_error=max(case.weight_error for case in report.cases),
        max_output_error=max(case.output_error for case in report.cases),
        gradients_read_from="this file" if shows_gradients(plan) else "the same step with plain SGD",
        gradient_probe_learning_rate=GRADIENT_PROBE_LEARNING_RATE,
        num_redrawn_examples=report.num_redrawn_examples,
        num_kept_jumpy_examples=report.num_kept_jumpy_examples,
        versions={package: importlib.metadata.version(package) for package in _REPORTED_PACKAGES},
    )
    bundle = Bundle(
        model=file,
        plan=encoded_plan,
        checkpoint=checkpoint,
        graph=graph,
        certificate=encode_certificate(certificate),
    )
    return ExportResult(plan=plan, certificate=certificate, bundle=bundle)
