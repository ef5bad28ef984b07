"""What Keras itself computes: the yardstick of the parity check.

The reference is a clone of the model made of Keras's own layers, run and differentiated by TensorFlow in a
``tf.function``, as ``fit`` does; none of the lowerings is used. Only Dropout is replaced (see ``keras_clone``): it gets the
masks of ``dropout_mask_array``, for Keras's own come from a random-number op that no TFLite file can match.
For a model that ends in softmax or sigmoid Keras reads a cross-entropy from the logits (the functions of
``keras.backend`` find the op behind the output), so nothing is clipped at 1e-7; the exported file does the same.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model_export.check_batches import CheckBatch
from model_export.dropout import dropout_mask_array
from model_export.keras_clone import FlatClone
from model_export.keras_loss import keras_absolute_errors, keras_loss, keras_share_correct
from model_export.keras_weights import travelling_weights
from model_export.operations import ModelGraph
from wire_protocol.plan import TrainingPlan

__all__ = ["KerasReference", "keras_optimizer"]

_PIECE = 8
"""Examples whose gradients Keras sums in float32. Its bias gradient is one running sum over examples and positions:
at 32 examples of ``har`` it is off by 1.0e-5 from float64, where LiteRT, at 4e-7, was refused for it."""
_Weights = tuple[npt.NDArray[np.float32], ...]


class KerasReference:
    """A model as Keras trains it, on batches of any size.

    Args:
        model: The Keras model; it is cloned, never changed.
        graph: The same model, read.
        example_clip: C, if a step clips each example's gradient; Keras then gives them one at a time.
    """

    def __init__(self, model: Any, graph: ModelGraph, *, example_clip: float | None = None) -> None:
        self._graph = graph
        self._clip = example_clip
        self._source = model
        self._clone = FlatClone(model)
        self._model = self._clone.model
        self._trainable = self._clone.of(model.trainable_weights)
        self._travelling = self._clone.of(travelling_weights(model))
        self._exact: FlatClone | None = None
        self._embedded, self._after_embedding = _split_at_embeddings(self._model) if graph.num_tokens else (None, None)
        self._loss = keras_loss(graph, tf.keras.losses.Reduction.SUM)
        x = tf.TensorSpec([None, *graph.input_shape], tf.float32)
        is_sparse = graph.loss.name == "sparse_categorical_crossentropy"
        labels = tf.TensorSpec([None], tf.int32) if is_sparse else tf.TensorSpec([None, graph.num_classes], tf.float32)
        masks = [tf.TensorSpec([None, *node.mask_shape], tf.float32) for node in graph.dropout_nodes]
        self._gradients = tf.function(self._loss_and_gradients, input_signature=[x, labels, masks], autograph=False)
        self._input_gradients = tf.function(
            self._gradients_of_inputs, input_signature=[x, labels, masks], autograph=False
        )
        self._predict = tf.function(self._loss_and_output, input_signature=[x, labels], autograph=False)

    def set_weights(self, weights: Sequence[npt.NDArray[np.float32]]) -> None:
        """Sets the weights that travel; frozen ones keep the model's values."""
        for variable, weight in zip(self._travelling, weights, strict=True):
            variable.assign(weight)

    def gradients(self, batch: CheckBatch) -> tuple[float, tuple[npt.NDArray[np.float64], ...]]:
        """Sum of losses, and gradients of the mean loss, with dropout; ``batch`` without padding.

        A large batch is taken in pieces whose gradients are averaged in float64: one float32 sum over all its pixels
        would round by more than the tolerance (1.1e-5 for ``mnist_cnn`` at batch size 512).
        """
        count = len(batch.x)
        loss_sum = 0.0
        totals = [np.zeros(weight.shape) for weight in self._trainable]
        # The statistics of batch normalisation are those of the whole batch.
        size = count if self._graph.num_statistics else _PIECE if self._clip is None else 1
        for start in range(0, count, size):
            piece = batch.take(np.arange(start, min(start + size, count)))
            piece_loss, gradients = self._gradients(piece.x, piece.labels, self._masks(piece))
            loss_sum += float(piece_loss)
            values = [gradient.numpy().astype(np.float64) for gradient in gradients]
            scale = _clip_scale(values, self._clip) * len(piece.x) / count
            for total, value in zip(totals, values, strict=True):
                total += value * scale  # noqa: PLW2901 - adds in place
        return loss_sum, tuple(totals)

    def exact_gradients(self, batch: CheckBatch) -> tuple[npt.NDArray[np.float64], ...]:
        """Gradients of the mean loss in float64, from the weights as they are, with dropout; without padding."""
        if self._clip is not None and len(batch.x) > 1:
            of_examples = [self.exact_gradients(batch.take(np.array([place]))) for place in range(len(batch.x))]
            return tuple(np.mean(values, axis=0) for values in zip(*of_examples, strict=True))
        if self._exact is None:
            self._exact = FlatClone(self._source, "float64")
        exact = self._exact
        exact.copy_weights(self._source.weights, self._clone.of(self._source.weights))
        for layer, mask in zip(exact.dropouts, self._masks(batch), strict=True):
            layer.mask = tf.constant(mask, tf.float64)
        with tf.GradientTape() as tape:
            loss_sum = self._loss(batch.labels, exact.model(tf.constant(batch.x, tf.float64), training=True))
            mean_loss = loss_sum / len(batch.x)
        gradients = _dense(tape.gradient(mean_loss, exact.of(self._source.trainable_weights)))
        values = [gradient.numpy() for gradient in gradients]
        scale = _clip_scale(values, self._clip)
        return tuple(value * scale for value in values)

    def input_gradients(self, batch: CheckBatch) -> npt.NDArray[np.float32]:
        """[n, ...] gradient of each example's loss with respect to that example, with dropout.

        Where examples are token numbers, with respect to what their embeddings give: there is no other.
        """
        gradients: npt.NDArray[np.float32] = self._input_gradients(batch.x, batch.labels, self._masks(batch)).numpy()
        return gradients

    def evaluate(self, batch: CheckBatch) -> tuple[float, float, npt.NDArray[np.float32]]:
        """Sum of losses, number of right answers and outputs, without dropout; ``batch`` without padding."""
        loss_sum, output = self._predict(batch.x, batch.labels)
        num_correct = float(keras_share_correct(self._graph, batch.labels, output.numpy()).sum())
        return float(loss_sum), num_correct, output.numpy()

    def absolute_error_sum(self, batch: CheckBatch) -> float:
        """Sum of the examples' mean absolute errors, without dropout; 0 unless it is a regression."""
        output = self._predict(batch.x, batch.labels)[1].numpy()
        return float(keras_absolute_errors(self._graph, batch.labels, output).sum())

    def train(self, batches: Sequence[CheckBatch], plan: TrainingPlan) -> _Weights:
        """The travelling weights after one step of the plan's ``tf.keras.optimizers`` per batch, from fresh slots."""
        weights: _Weights = tuple(variable.numpy() for variable in self._travelling)
        step = self.begin_training(plan, weights)
        for batch in batches:
            weights = step(batch)
        return weights

    def begin_training(
        self, plan: TrainingPlan, weights: Sequence[npt.NDArray[np.float32]]
    ) -> Callable[[CheckBatch], _Weights]:
        """A function that takes a step on a batch and gives the travelling weights; between steps they may be set to others.

        Args:
            plan: Its optimizer starts with fresh slots.
            weights: Where training starts, and FedProx's anchor.
        """
        optimizer = keras_optimizer(plan)
        variables = self._trainable
        reached = tuple(weights)

        def step(batch: CheckBatch) -> _Weights:
            nonlocal reached
            self.set_weights(reached)
            if self._clip is None:
                _, gradients = self._gradients(batch.x, batch.labels, self._masks(batch))
            else:
                gradients = [tf.constant(gradient, tf.float32) for gradient in self.gradients(batch)[1]]
            if plan.proximal_mu:
                triples = zip(gradients, variables, weights[: len(variables)], strict=True)
                gradients = [gradient + plan.proximal_mu * (weight - start) for gradient, weight, start in triples]
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            reached = tuple(weight.numpy() for weight in self._travelling)
            return reached

        return step

    def _loss_and_gradients(self, x: Any, labels: Any, masks: Sequence[Any]) -> tuple[Any, Any]:
        self._set_masks(masks)
        with tf.GradientTape() as tape:
            loss_sum = self._loss(labels, self._model(x, training=True))
            mean_loss = loss_sum / tf.cast(tf.shape(labels)[0], tf.float32)
        return loss_sum, _dense(tape.gradient(mean_loss, self._trainable))

    def _gradients_of_inputs(self, x: Any, labels: Any, masks: Sequence[Any]) -> Any:
        self._set_masks(masks)
        model = self._model
        if self._embedded is not None:
            x, model = self._embedded(x), self._after_embedding
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss_sum = self._loss(labels, model(x, training=True))
        gradients = [tf.reshape(gradient, [tf.shape(labels)[0], -1]) for gradient in tape.gradient(loss_sum, [x])]
        return tf.concat(gradients, 1)

    def _set_masks(self, masks: Sequence[Any]) -> None:
        """While a function is traced the masks are symbolic, so the traced function reads them from its arguments."""
        for layer, mask in zip(self._clone.dropouts, masks, strict=True):
            layer.mask = mask

    def _loss_and_output(self, x: Any, labels: Any) -> tuple[Any, Any]:
        output = self._model(x, training=False)
        return self._loss(labels, output), output

    def _masks(self, batch: CheckBatch) -> list[npt.NDArray[np.float32]]:
        return [
            dropout_mask_array(batch.tickets, math.prod(node.mask_shape), dropout.index, dropout.rate).reshape(
                len(batch.x), *node.mask_shape
            )
            for node, dropout in zip(self._graph.dropout_nodes, self._graph.dropouts, strict=True)
        ]


def keras_optimizer(plan: TrainingPlan) -> Any:
    """Keras's own optimizer of a plan."""
    optimizers = tf.keras.optimizers
    if plan.optimizer == "sgd":
        return optimizers.SGD(plan.learning_rate, momentum=plan.momentum, nesterov=plan.nesterov)
    adaptive = {"beta_1": plan.beta_1, "beta_2": plan.beta_2, "epsilon": plan.epsilon}
    if plan.optimizer == "adam":
        return optimizers.Adam(plan.learning_rate, **adaptive)
    return optimizers.AdamW(plan.learning_rate, weight_decay=plan.weight_decay, **adaptive)


def _clip_scale(gradients: Sequence[npt.NDArray[np.float64]], clip: float | None) -> float:
    """What an example's gradients are multiplied by to be clipped; 1 if that is not done."""
    if clip is None:
        return 1.0
    norm = math.sqrt(sum(float(np.sum(gradient**2)) for gradient in gradients))
    return clip / max(norm, clip)


def _dense(gradients: Sequence[Any]) -> list[Any]:
    """Keras gives the gradient of an embedding as the rows that a batch has met."""
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


def _split_at_embeddings(model: Any) -> tuple[Any, Any]:
    """A model as what its embeddings give, and what is made of that."""
    embeddings = [layer for layer in model.layers if isinstance(layer, tf.keras.layers.Embedding)]
    outputs = [layer.get_output_at(call) for layer in embeddings for call in range(len(layer.inbound_nodes))]
    return tf.keras.Model(model.inputs, outputs), tf.keras.Model(outputs, model.outputs)
