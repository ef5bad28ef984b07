"""The parity certificate: what was exported, and how far it is from Keras."""

from typing import Literal, TypeAlias

import msgspec

from wire_protocol.plan import LossName

__all__ = [
    "Certificate",
    "CheckedCase",
    "LossReads",
    "SignatureError",
    "StepCost",
    "Tolerances",
    "decode_certificate",
    "encode_certificate",
]

LossReads: TypeAlias = Literal["logits", "logits before the final softmax", "logits before the final sigmoid", "output"]


class Tolerances(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far LiteRT may be from Keras; see ``CheckedCase`` for what each error is."""

    loss: float = 1e-5
    gradient: float = 1e-5
    weight: float = 1e-5
    output: float = 1e-5


class CheckedCase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One comparison from equal weights."""

    name: str
    num_examples: int
    """Examples that count, of the batch."""
    num_steps: int
    """Optimizer steps between equal weights and the comparison of weights."""
    loss_error: float
    """Largest difference of the mean losses of ``train`` and ``evaluate`` (of a regression also of ``evaluate``'s mean
    absolute error), relative to max(1, loss)."""
    gradient_error: float
    """Largest difference in any gradient tensor, relative to that tensor's largest value (but to no less than a
    thousandth of the model's)."""
    weight_error: float
    """Largest absolute difference of the weights after ``num_steps`` steps at the plan's learning rate."""
    output_error: float
    """Largest absolute difference of ``infer``'s outputs, relative to max(1, largest output)."""
    num_correct_difference: float
    """Difference of the numbers of right answers; must be 0."""


class SignatureError(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far one signature of the file was from Keras at most, over all cases."""

    signature: str
    quantity: str
    """What it gives or changes: mean loss, gradient, weights, output."""
    absolute: float
    """Largest difference of any number."""
    relative: float
    """Largest difference in a tensor, over that tensor's largest value (but over no less than a thousandth of the
    largest of all tensors); of a gradient as in ``CheckedCase``."""


class StepCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``train`` costs on the exporting machine, on one thread, in a process that loads numpy and LiteRT alone."""

    num_steps: int
    """Steps that were timed."""
    median_ms: float
    min_ms: float
    peak_rss_mb: float
    """Of the whole process, in 10^6 bytes."""


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was exported and what was checked, once, on the exporting machine."""

    contract_version: int
    model_sha256: str
    plan_sha256: str
    checkpoint_sha256: str
    graph_sha256: str = ""
    """Of the graph that inference files are built from; empty in a bundle of before there was one."""
    model_bytes: int
    plan_bytes: int
    checkpoint_bytes: int
    num_parameters: int
    op_counts: dict[str, int]
    """TFLite builtin op -> how often it occurs, over all signatures. No Flex and no custom op."""
    op_versions: dict[str, int] = {}
    """TFLite builtin op -> the highest version of it that the file uses."""
    proved_runtimes: tuple[str, ...] = ()
    """The lowest and the newest ai-edge-litert in which files of all these ops are proved to compute the same, as are all
    between (docs/reference/runtimes.md); empty: one of the ops was in no proof. This file itself was run in the one that
    ``versions`` names."""
    min_runtime_version: str = ""
    """The oldest TensorFlow Lite that has these op versions, as the converter states it; empty: it does not."""
    model_gzip_bytes: int = 0
    """The model file, compressed by gzip: what it costs to send to a device that unpacks."""
    step_cost: StepCost | None = None
    """Measured when a bundle is written; a dry run leaves it out."""
    loss: LossName
    loss_reads: LossReads
    """Where the loss is read from. Keras itself reads a cross-entropy before a final softmax or sigmoid, where nothing
    is clipped."""
    tolerances: Tolerances
    cases: tuple[CheckedCase, ...]
    signature_errors: tuple[SignatureError, ...] = ()
    """The largest absolute and relative errors of each signature."""
    num_steps_compared: int
    """Optimizer steps whose resulting weights were compared."""
    max_loss_error: float
    max_gradient_error: float
    max_weight_error: float
    max_output_error: float
    gradients_read_from: Literal["this file", "the same step with plain SGD"]
    """Adam and Nesterov bend the gradient: it is then read from a second conversion of the same step with plain SGD."""
    gradient_probe_learning_rate: float
    """Gradients are read from LiteRT as (weights before - weights after) / this, for one step from equal weights."""
    num_redrawn_examples: int
    """Check examples replaced because Keras's own gradient jumps there when its weights move by a rounding."""
    num_kept_jumpy_examples: int
    """Such examples that were kept, because redrawing did not end; they make a refusal likelier, never a pass."""
    versions: dict[str, str]
    """keras, tensorflow, ai-edge-litert, numpy."""
    scope: str = (
        "Single steps from equal weights. Longer runs of any two float32 implementations drift apart at the first "
        "ReLU or max-pool whose inputs tie within a rounding."
    )


def encode_certificate(certificate: Certificate) -> bytes:
    """Indented JSON: people read it."""
    return msgspec.json.format(msgspec.json.encode(certificate), indent=2) + b"\n"


def decode_certificate(data: bytes) -> Certificate:
    """Reads a certificate.

    Raises:
        msgspec.DecodeError: Not a certificate.
    """
    try:
        return msgspec.json.decode(data, type=Certificate)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"not a certificate: {error}") from error
