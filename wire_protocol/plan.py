"""The training plan: what a device is asked to run. A value; it does nothing."""

import math
from typing import Annotated, Final, Literal

import msgspec

from wire_protocol.blobs import BlobRef
from wire_protocol.confidentiality import ENCRYPTED_SUM_MODULUS, Confidentiality, EncryptedSums
from wire_protocol.errors import MalformedMessage, OversizedMessage
from wire_protocol.limits import MAX_CONTROL_BYTES, MAX_TENSORS
from wire_protocol.model_contract import CONTRACT_VERSION
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.query import Query

__all__ = ["CLASS_LOSSES", "REGRESSION_LOSSES", "LossName", "TensorSpec", "TrainingPlan", "decode_plan", "encode_plan"]

_Dim = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_MIN_CLASSES: Final = 2
_FEWEST_IN_A_SUM: Final = 2

LossName = Literal[
    "sparse_categorical_crossentropy",
    "categorical_crossentropy",
    "binary_crossentropy",
    "mean_squared_error",
    "mean_absolute_error",
    "huber",
]
"""A loss by the name that ``tf.keras.losses`` has for it."""

CLASS_LOSSES: Final[frozenset[LossName]] = frozenset({"sparse_categorical_crossentropy", "categorical_crossentropy"})
"""Losses under which one of at least two classes is right."""

REGRESSION_LOSSES: Final[frozenset[LossName]] = frozenset({"mean_squared_error", "mean_absolute_error", "huber"})
"""Losses of predicted numbers: nothing is right or wrong, and absolute errors are measured."""


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shape and dtype of one float32 tensor."""

    shape: Annotated[tuple[_Dim, ...], msgspec.Meta(max_length=8)]
    dtype: Literal["float32"] = "float32"

    @property
    def num_elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return 4 * self.num_elements


class TrainingPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run on a device's own examples, and on what kind of examples.

    The optimizer and the loss are compiled into the model file; they are repeated here so that the other side (a
    simulation, an auditor, the numpy trainer) can do the same without reading the file.
    """

    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    """``B``: the fixed leading dimension of the model file. A last, short batch is padded with weight 0."""
    num_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    """Passes over the local examples in one round."""
    max_steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Stop after this many optimizer steps; 0 is no limit."""
    learning_rate: Annotated[float, msgspec.Meta(gt=0)]
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The rule compiled into the model file, as ``tf.keras.optimizers`` has it; its slots start afresh every round."""
    momentum: _Fraction = 0.0
    """Of ``sgd``; 0 is plain SGD."""
    nesterov: bool = False
    """Whether the momentum of ``sgd`` is Nesterov's."""
    beta_1: _Fraction = 0.9
    """Of ``adam`` and ``adamw``: decay of the mean of gradients."""
    beta_2: _Fraction = 0.999
    """Of ``adam`` and ``adamw``: decay of the mean of squared gradients."""
    epsilon: Annotated[float, msgspec.Meta(gt=0)] = 1e-7
    """Of ``adam`` and ``adamw``: added to the root of that mean."""
    weight_decay: _NotNegative = 0.0
    """Of ``adamw``: decoupled, every step first takes ``learning_rate * weight_decay`` of each weight away."""
    proximal_mu: _NotNegative = 0.0
    """FedProx: adds ``mu / 2 * |w - received|^2`` to the loss (Li et al. 2020, equation 2). 0: the file has no such
    term; otherwise ``train`` takes ``proximal_mu``."""
    loss: LossName = "sparse_categorical_crossentropy"
    """As in Keras; of a batch it is the mean over the examples, of an example with several outputs the mean over them
    (but a cross-entropy over classes is one number). It also says what a label is: see ``label_shape``."""
    huber_delta: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Of ``huber``: the absolute error beyond which the loss is linear."""
    input_shape: Annotated[tuple[_Positive, ...], msgspec.Meta(min_length=1, max_length=7)]
    """Shape of one example, without the batch dimension."""
    num_classes: Annotated[int, msgspec.Meta(ge=1)]
    """Length of one example's output: the classes, or ``k`` answers or predicted numbers under the other losses."""
    has_dropout: bool = False
    """Whether ``train`` takes ``dropout_ticket``."""
    num_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**24)] = 0
    """An example is whole numbers from 0 to ``num_tokens - 1``, in float32, which holds them exactly; 0: any numbers."""
    weights: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    """The weights that travel: the trainable ones in Keras order, then the moving statistics."""
    num_statistics: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How many of ``weights``, the last ones, are moving means and variances of batch normalisation. ``train`` moves
    them towards the batch's own, without optimizer, learning rate or proximal term."""
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    """Seeds batch order and dropout tickets (not noise: that comes from the device's operating system)."""
    min_examples: Annotated[int, msgspec.Meta(ge=1)] = 1
    """A device with fewer local examples declines."""
    privacy: PrivacySpec | None = None
    """How updates are made private before they leave a device; None is not at all."""
    query: Query | msgspec.UnsetType = msgspec.UNSET
    """A question to answer instead of training: the update is its vector (``weights`` has one of that length), the
    mechanism the query's own, and what belongs to training is not used. Left out of the bytes of any other plan."""
    confidentiality: Confidentiality | msgspec.UnsetType = msgspec.UNSET
    """Who opens the sum of the updates, which the coordinator then never sees one by one. Left out of the bytes of any
    other plan."""
    per_example_clipping_norm: Annotated[float, msgspec.Meta(gt=0)] | msgspec.UnsetType = msgspec.UNSET
    """C of the model file's steps: each example's gradient is scaled to a norm of at most C over all weights before the
    mean is taken (see docs/privacy.md for what that promises, and what not). Left out of the bytes of any other plan."""
    contract_version: int = CONTRACT_VERSION

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "weight_decay", "proximal_mu", "huber_delta"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite")
        if self.example_clip is not None:
            _check_example_clip(self)
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov belong to sgd, not to {self.optimizer}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight_decay belongs to adamw, not to {self.optimizer}")
        if self.loss in CLASS_LOSSES and self.num_classes < _MIN_CLASSES:
            raise ValueError(f"{self.loss} needs num_classes of at least {_MIN_CLASSES}")
        if self.loss != "huber" and self.huber_delta != 1:
            raise ValueError(f"huber_delta belongs to huber, not to {self.loss}")
        if self.num_statistics >= len(self.weights):
            raise ValueError(f"num_statistics is {self.num_statistics} of {len(self.weights)} weights: nothing trains")
        if self.query is not msgspec.UNSET:
            _check_query(self.query, self)
        if self.privacy is not None:
            self.privacy.check_for(self.num_parameters)
        if self.confidentiality is not msgspec.UNSET:
            _check_confidential(self)

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of one example's label: ``()`` for a class number, else ``(num_classes,)``."""
        return () if self.loss == "sparse_categorical_crossentropy" else (self.num_classes,)

    @property
    def label_dtype(self) -> Literal["int32", "float32"]:
        """``int32`` for a class number, else ``float32``."""
        return "int32" if self.loss == "sparse_categorical_crossentropy" else "float32"

    @property
    def example_clip(self) -> float | None:
        """C of clipping each example's gradient; ``None``: that is not done."""
        return None if self.per_example_clipping_norm is msgspec.UNSET else self.per_example_clipping_norm

    @property
    def sealing_blobs(self) -> tuple[BlobRef, ...]:
        """What a device must have beside plan, model and checkpoint to seal its update; nothing of most plans."""
        return () if self.confidentiality is msgspec.UNSET else self.confidentiality.blobs

    @property
    def num_parameters(self) -> int:
        """How many numbers travel: trainable parameters and moving statistics."""
        return sum(spec.num_elements for spec in self.weights)

    @property
    def num_update_numbers(self) -> int:
        """How many numbers a private update holds: the parameters, and the bit of a clip that adapts."""
        return self.num_parameters + (0 if self.privacy is None else self.privacy.num_indicators)

    @property
    def max_contributors(self) -> int:
        """Most private updates whose sum is exact; 0 if the plan is not private."""
        if self.privacy is None:
            return 0
        if isinstance(self.confidentiality, EncryptedSums):
            return self.privacy.max_contributors(self.num_parameters, half_modulus=ENCRYPTED_SUM_MODULUS // 2)
        return self.privacy.max_contributors(self.num_parameters)

    @property
    def update_bytes(self) -> int:
        """Size of the tensor data of a checkpoint or client update, in bytes."""
        return 4 * self.num_parameters


def _check_example_clip(plan: TrainingPlan) -> None:
    """What an example does to the others' statistics has no norm of its own."""
    if not math.isfinite(plan.example_clip or 0):
        raise ValueError("per_example_clipping_norm must be finite")
    if plan.num_statistics:
        raise ValueError(
            "per_example_clipping_norm does not go with moving statistics: they mix the examples of a batch"
        )


def _check_query(query: Query, plan: TrainingPlan) -> None:
    """A query's noise is its own: a plan cannot name another."""
    if plan.privacy != query.privacy_spec():
        raise ValueError("the privacy of a plan with a query must be the query's own mechanism")
    if tuple(spec.shape for spec in plan.weights) != ((query.num_cells,),):
        raise ValueError(f"the weights of a plan with this query must be one vector of {query.num_cells}")


def _check_confidential(plan: TrainingPlan) -> None:
    """A sum is taken of integers, and of enough of them; and who adds noise must not need to see single updates."""
    privacy = plan.privacy
    if privacy is None:
        raise ValueError("a confidential sum is taken of integers: give the plan a privacy (16 grid units of noise do)")
    if privacy.mode == "central":
        raise ValueError(
            "central mode shows the coordinator every update: use distributed mode with a confidential sum"
        )
    if privacy.min_contributors < _FEWEST_IN_A_SUM:
        raise ValueError("min_contributors must be at least 2: the sum of one is that one")
    if plan.max_contributors < privacy.min_contributors:
        raise ValueError(
            f"an encrypted sum of {privacy.min_contributors} updates could leave its {ENCRYPTED_SUM_MODULUS.bit_length()} "
            "bits: lower grid_bits"
        )


_DECODER: Final = msgspec.json.Decoder(TrainingPlan)
"""Made once, here: msgspec 0.22 crashes if two threads are the first to decode a type at the same time."""


def encode_plan(plan: TrainingPlan) -> bytes:
    """Canonical JSON of a plan: fields in declaration order, no blanks, one trailing newline."""
    return msgspec.json.encode(plan) + b"\n"


def decode_plan(data: bytes) -> TrainingPlan:
    """Parses and validates a plan.

    Raises:
        OversizedMessage: More than ``MAX_CONTROL_BYTES``.
        MalformedMessage: Not a plan, or a value out of its range; the message names the field.
    """
    if len(data) > MAX_CONTROL_BYTES:
        raise OversizedMessage(f"plan of {len(data)} bytes; the limit is {MAX_CONTROL_BYTES}")
    try:
        plan = _DECODER.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"not a training plan: {error}") from error
    if plan.contract_version != CONTRACT_VERSION:
        raise MalformedMessage(
            f"plan asks for model contract {plan.contract_version}; this side speaks {CONTRACT_VERSION}"
        )
    return plan
