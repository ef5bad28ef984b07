"""Admission: everything a report must satisfy before any arithmetic is done with it.

Two gates. `admit_header` looks at the report alone, before a byte of its update is taken; `admit_update` looks at
the assembled bytes: size, format, names, shapes, dtypes, finiteness, norm. Each refusal has one `RejectionReason`,
and the coordinator counts them by reason.
"""

import dataclasses
import math

import numpy as np

from coordinator.aggregation import ClientUpdate, SealedPart
from coordinator.errors import UpdateRejected
from coordinator.private_admission import is_overlong
from coordinator.sealed_admission import SealedAdmission
from secure_sum.errors import SecureSumError
from secure_sum.sealed_update import decode_sealed_update
from wire_protocol.blobs import DIGEST_BYTES
from wire_protocol.errors import MalformedMessage, NonFiniteTensor, OversizedMessage, TensorMismatch
from wire_protocol.integer_updates import decode_integer_update, max_integer_update_bytes
from wire_protocol.messages import Metrics, RejectionReason, Report, RoundKind
from wire_protocol.plan import TrainingPlan
from wire_protocol.private_reports import PRIVATE_METRICS, PRIVATE_NUM_EXAMPLES, PRIVATE_WEIGHT
from wire_protocol.tensors import Tensors, decode_tensors, max_encoded_bytes

__all__ = [
    "AdmissionPolicy",
    "admit_header",
    "admit_sealed",
    "admit_update",
    "decode_client_update",
    "decode_sealed_part",
    "update_norm",
]

_CORRECT_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionPolicy:
    """Bounds on what one device may contribute."""

    max_examples: int = 10_000_000
    """Most local examples a device may claim: bounds its weight in the average."""
    max_update_norm: float = math.inf
    """Largest L2 norm of a ``model_delta``; beyond it the report is rejected, not clipped."""

    def __post_init__(self) -> None:
        if self.max_examples < 1 or not self.max_update_norm > 0:
            raise ValueError("max_examples and max_update_norm must be positive")


def admit_header(
    report: Report,
    *,
    kind: RoundKind,
    plan: TrainingPlan,
    policy: AdmissionPolicy,
    sealed: SealedAdmission | None = None,
) -> None:
    """Checks a report before its update is taken.

    Raises:
        UpdateRejected: With the reason.
    """
    update = report.update
    if (update is not None) != (kind is RoundKind.TRAIN):
        raise UpdateRejected(RejectionReason.WRONG_SHAPE, f"an update is expected in a {kind.value} round alone")
    if update is not None:
        if update.num_bytes > _largest(plan, sealed):
            raise UpdateRejected(RejectionReason.OVERSIZED, f"update of {update.num_bytes} bytes")
        expected = 0 if update.num_pieces == 1 else update.num_pieces * DIGEST_BYTES
        if len(report.piece_digests) != expected:
            raise UpdateRejected(RejectionReason.MALFORMED, "piece digests do not fit the update's size")
    if plan.privacy is not None:
        _check_says_nothing(report)
        return
    _check_weight(report, plan, policy)
    _check_metrics(report.metrics, report.num_examples * plan.num_epochs)


def _largest(plan: TrainingPlan, sealed: SealedAdmission | None) -> int:
    """Longest update of a plan, in bytes."""
    if sealed is not None:
        return sealed.mode.max_update_bytes
    return (
        max_encoded_bytes(plan.weights) if plan.privacy is None else max_integer_update_bytes(plan.num_update_numbers)
    )


def admit_sealed(data: bytes, report: Report, *, device_id: str, sealed: SealedAdmission) -> ClientUpdate:
    """Decodes and checks the bytes of a sealed update, as far as anybody can.

    Raises:
        UpdateRejected: With the reason.
    """
    update = sealed.admit(data, device_id=device_id, round_id=report.round_id)
    return ClientUpdate(
        model_delta=(),
        sealed=SealedPart(device_id=device_id, update=update),
        aggregation_weight=report.aggregation_weight,
        metrics=report.metrics,
    )


def decode_sealed_part(data: bytes, device_id: str, *, aggregation_weight: float, metrics: Metrics) -> ClientUpdate:
    """Decodes a sealed update that was admitted before.

    Raises:
        MalformedMessage: The bytes are none.
    """
    try:
        update = decode_sealed_update(data, max_bytes=len(data))
    except SecureSumError as error:
        raise MalformedMessage(str(error)) from error
    part = SealedPart(device_id=device_id, update=update)
    return ClientUpdate(model_delta=(), sealed=part, aggregation_weight=aggregation_weight, metrics=metrics)


def _check_says_nothing(report: Report) -> None:
    """A private report has weight 1 and no figures: the sensitivity of the sum rests on the one, privacy on the other."""
    if (report.num_examples, report.aggregation_weight) != (PRIVATE_NUM_EXAMPLES, PRIVATE_WEIGHT):
        raise UpdateRejected(RejectionReason.BAD_WEIGHT, "a private report has weight 1")
    if report.metrics != PRIVATE_METRICS:
        raise UpdateRejected(RejectionReason.BAD_METRICS, "a private report has no figures of local data")


def _check_weight(report: Report, plan: TrainingPlan, policy: AdmissionPolicy) -> None:
    if not 0 < report.num_examples <= policy.max_examples:
        raise UpdateRejected(RejectionReason.BAD_WEIGHT, f"{report.num_examples} examples")
    weight = report.aggregation_weight
    if not (math.isfinite(weight) and 0 < weight <= report.num_examples * plan.num_epochs):
        raise UpdateRejected(RejectionReason.BAD_WEIGHT, f"weight {weight} for {report.num_examples} examples")


def _check_metrics(metrics: Metrics, max_visits: int) -> None:
    if not 0 < metrics.weight_sum <= max_visits:
        raise UpdateRejected(RejectionReason.BAD_METRICS, f"{metrics.weight_sum} example visits of {max_visits}")
    if metrics.num_correct > metrics.weight_sum + _CORRECT_TOLERANCE or metrics.loss_sum < 0:
        raise UpdateRejected(RejectionReason.BAD_METRICS, "more correct than visited, or a negative loss")


def admit_update(data: bytes, report: Report, *, plan: TrainingPlan, policy: AdmissionPolicy) -> ClientUpdate:
    """Decodes and checks the bytes of an update.

    Args:
        data: The assembled blob, its hash already checked.
        report: The report that announced it.
        plan: What shapes it must have.
        policy: The norm bound.

    Returns:
        A client update whose tensors are finite float32 of the plan's shapes, or, of a private plan, its integers.

    Raises:
        UpdateRejected: With the reason.
    """
    try:
        update = decode_client_update(data, plan, aggregation_weight=report.aggregation_weight, metrics=report.metrics)
    except OversizedMessage as error:
        raise UpdateRejected(RejectionReason.OVERSIZED, str(error)) from error
    except TensorMismatch as error:
        raise UpdateRejected(RejectionReason.WRONG_SHAPE, str(error)) from error
    except NonFiniteTensor as error:
        raise UpdateRejected(RejectionReason.NON_FINITE, str(error)) from error
    except MalformedMessage as error:
        raise UpdateRejected(RejectionReason.MALFORMED, str(error)) from error
    if update.integers is not None and plan.privacy is not None and is_overlong(update.integers, plan.privacy):
        raise UpdateRejected(RejectionReason.NORM_TOO_LARGE, "longer than any clipped update with its noise")
    norm = update_norm(update.model_delta)
    # Not `norm > bound`, which NaN would pass; the tensors are finite here, but a clip test is written safe or not at all.
    if not norm <= policy.max_update_norm:
        raise UpdateRejected(RejectionReason.NORM_TOO_LARGE, f"norm {norm:.6g}")
    return update


def decode_client_update(
    data: bytes, plan: TrainingPlan, *, aggregation_weight: float, metrics: Metrics
) -> ClientUpdate:
    """Decodes an update as its plan says: tensors, or the integers of a private task.

    Raises:
        WireError: The bytes are not such an update.
    """
    if plan.privacy is None:
        return ClientUpdate(
            model_delta=decode_tensors(data, plan.weights), aggregation_weight=aggregation_weight, metrics=metrics
        )
    return ClientUpdate(
        model_delta=(),
        integers=decode_integer_update(data, plan.num_update_numbers),
        aggregation_weight=aggregation_weight,
        metrics=metrics,
    )


def update_norm(model_delta: Tensors) -> float:
    """L2 norm over all tensors together, accumulated in float64."""
    return math.sqrt(sum(float(np.sum(np.square(tensor, dtype=np.float64))) for tensor in model_delta))
