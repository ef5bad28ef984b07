"""The card beside an inference file: what it was made from, and how far it is from what devices trained."""

from typing import Literal, TypeAlias

import msgspec

from wire_protocol.plan import LossName

__all__ = ["FileCard", "InferenceCard", "Int8Card", "Int8Kind", "Origin", "encode_card"]

Int8Kind: TypeAlias = Literal["whole", "weights"]
"""What of a file is int8."""


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an inference file was made from."""

    task_id: str
    plan_sha256: str
    model_sha256: str
    """Of the trainable file."""
    graph_sha256: str
    checkpoint_sha256: str
    """Of the weights as a checkpoint file (safetensors)."""
    num_commits: int | None
    """Committed rounds behind the weights; null: they were given as a file, which does not say."""


class FileCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``.tflite`` file. Its signature is ``infer``: ``x`` -> ``output``."""

    name: str
    sha256: str
    num_bytes: int
    op_counts: dict[str, int]
    """TFLite builtin op -> how often it occurs. No Flex and no custom op."""
    op_versions: dict[str, int]
    min_runtime_version: str
    """The oldest TensorFlow Lite that has these op versions, as the converter states it."""
    proved_runtimes: tuple[str, ...] = ()
    """The lowest and the newest ai-edge-litert in which float32 files of all these ops are proved to compute the same;
    empty: one of the ops was in no proof. Empty for int8: its roundings are each runtime's own."""


class Int8Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The quantised file. Of one that is quantised as a whole, a number is ``scale * (int8 - zero_point)``."""

    file: FileCard
    kind: Int8Kind
    """``whole``: input, output and values are int8. ``weights``: only these are; input and output are float32."""
    input_scale: float
    """0: float32; so below."""
    input_zero_point: int
    output_scale: float
    output_zero_point: int
    num_calibration: int
    """Examples that the ranges were read from; 0 where only weights are int8."""
    num_held_out: int
    """Other examples, on which the rest was measured."""
    float_accuracy: float | None
    """Share of right answers; null for a regression."""
    int8_accuracy: float | None
    agreement: float | None
    """Share of answers that the two files share."""
    max_output_error: float
    """Largest absolute difference of their outputs."""
    mean_output_error: float


class InferenceCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``flockwise freeze`` wrote."""

    format: Literal[1] = 1
    origin: Origin
    batch_size: int
    input_shape: tuple[int, ...]
    """Of one example."""
    num_outputs: int
    loss: LossName
    output: Literal["probabilities", "logits", "numbers"]
    float32: FileCard
    float_error: float
    """Largest absolute difference of the float32 file's outputs from those of the trainable file's ``infer``, relative
    to max(1, largest output)."""
    num_inputs_compared: int
    int8: Int8Card | None = None
    versions: dict[str, str]
    """keras, tensorflow, ai-edge-litert, numpy."""


def encode_card(card: InferenceCard) -> bytes:
    """Indented JSON: people read it."""
    return msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"
