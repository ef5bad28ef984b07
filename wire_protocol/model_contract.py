"""The contract of a trainable model file: signature and tensor names are a wire format.

A file that keeps this contract can be trained by any device that knows it. All tensors have rank >= 1: LiteRT
2.3.0's signature runner crashes on scalar inputs on aarch64. ``B`` is the plan's ``batch_size``; ``w0 .. wN`` are
the weights that travel, in Keras layout, described by ``TrainingPlan.weights``: the trainable ones in Keras order, then
the moving statistics of batch normalisation.

| signature | inputs | outputs |
|---|---|---|
| ``train`` | ``x`` float32 [B, ...]; ``y`` int32 [B] or float32 [B, k]; ``example_weight`` float32 [B]; ``learning_rate`` float32 [1]; ``proximal_mu`` float32 [1]; ``dropout_ticket`` int32 [B] | ``loss_sum``, ``num_correct``, ``weight_sum`` float32 [1] each; of a regression also ``absolute_error_sum`` float32 [1] |
| ``evaluate`` | ``x``, ``y``, ``example_weight`` | the same |
| ``infer`` | ``x`` | ``output`` float32 [B, num_classes] |
| ``save`` | none | ``w0 .. wN`` |
| ``restore`` | ``w0 .. wN`` | ``ok`` int32 [1] |

``train`` takes one optimizer step on ``loss_sum / weight_sum`` where ``loss_sum = sum(example_weight * loss)`` and
reports the figures *before* the step; ``num_correct`` and ``weight_sum`` are weighted as the loss is. An example of
weight 0 is padding: it changes nothing. A batch of padding alone is a step with gradient 0: plain SGD does not move,
but momentum, Adam's means, weight decay and the proximal term still do (nobody sends one). ``restore`` sets the
weights, resets the optimizer's slots and, where there is a proximal term, makes these weights its anchor; nothing else
may run before it: the file holds no weights, ``save`` would hand out uninitialised memory, and the device keeps the
order. ``proximal_mu`` is an input only of a file exported with a proximal term (``TrainingPlan.proximal_mu`` > 0); the
figures never contain the term.

A plan with ``per_example_clipping_norm`` C goes with a file whose ``train`` scales each example's gradient, over all
weights that train, by ``C / max(norm, C)`` before they are weighted and added up; inputs and figures are the same.

Batch normalisation in ``train`` uses the mean and variance of the examples whose weight is above 0, and moves its moving
statistics towards them as Keras does, whatever the optimizer; a batch of padding alone leaves them. ``evaluate`` and
``infer`` use the moving ones, and a frozen layer always does.

``k`` is the length of one example's output, ``TrainingPlan.num_classes``. The plan's ``loss`` says what ``y`` holds and
what is measured:

| loss | ``y`` | ``num_correct`` counts | ``infer`` gives |
|---|---|---|---|
| ``sparse_categorical_crossentropy`` | int32 [B], class numbers from 0 | the largest output is the label's class | what the model ends in: logits, or their softmax |
| ``categorical_crossentropy`` | float32 [B, k], rows that sum to 1 | the largest output is the largest of the label | the same |
| ``binary_crossentropy`` | float32 [B, k], each in 0..1 | the share of an example's k answers that are on the label's side of 1/2 | logits, or their sigmoid |
| ``mean_squared_error``, ``mean_absolute_error``, ``huber`` | float32 [B, k], numbers | nothing: it is 0 | the predictions |

``loss`` of one example is Keras's: over k answers or numbers it is their mean. Cross-entropies are taken of the logits,
before a softmax or sigmoid that ends the model. ``absolute_error_sum`` is the weighted sum, over the examples, of
the mean absolute error of each. It stays on the device: ``Metrics`` of wire version 1 have no place for it.

Where ``TrainingPlan.num_tokens`` is n > 0, ``x`` holds token numbers: whole, from 0 to n - 1, exact in float32. The
device checks them before each step; the file moves a wrong one to the table's ends, so that no other memory is read.

``dropout_ticket`` seeds each example's dropout masks (see ``wire_protocol.local_order``); a model without dropout
has no such input.
"""

from typing import Final

__all__ = [
    "ABSOLUTE_ERROR_SUM",
    "BUNDLE_CERTIFICATE",
    "BUNDLE_CHECKPOINT",
    "BUNDLE_GRAPH",
    "BUNDLE_MODEL",
    "BUNDLE_PLAN",
    "CONTRACT_VERSION",
    "DROPOUT_TICKET",
    "EVALUATE",
    "EXAMPLE_WEIGHT",
    "INFER",
    "LABEL",
    "LEARNING_RATE",
    "LOSS_SUM",
    "NUM_CORRECT",
    "OK",
    "OUTPUT",
    "PROXIMAL_MU",
    "RESTORE",
    "SAVE",
    "SIGNATURES",
    "TRAIN",
    "WEIGHT_SUM",
    "X",
    "weight_name",
]

CONTRACT_VERSION: Final = 2

TRAIN: Final = "train"
EVALUATE: Final = "evaluate"
INFER: Final = "infer"
SAVE: Final = "save"
RESTORE: Final = "restore"
SIGNATURES: Final = (TRAIN, EVALUATE, INFER, SAVE, RESTORE)

X: Final = "x"
LABEL: Final = "y"
EXAMPLE_WEIGHT: Final = "example_weight"
LEARNING_RATE: Final = "learning_rate"
PROXIMAL_MU: Final = "proximal_mu"
DROPOUT_TICKET: Final = "dropout_ticket"
LOSS_SUM: Final = "loss_sum"
NUM_CORRECT: Final = "num_correct"
WEIGHT_SUM: Final = "weight_sum"
ABSOLUTE_ERROR_SUM: Final = "absolute_error_sum"
OUTPUT: Final = "output"
OK: Final = "ok"

BUNDLE_MODEL: Final = "model.tflite"
BUNDLE_PLAN: Final = "plan.json"
BUNDLE_CHECKPOINT: Final = "initial.safetensors"
BUNDLE_CERTIFICATE: Final = "certificate.json"
BUNDLE_GRAPH: Final = "graph.json"


def weight_name(index: int) -> str:
    """Name of the ``index``-th weight tensor in ``save`` and ``restore``, in checkpoints and in client updates."""
    return f"w{index}"
