"""Client datasets for the simulation: the batches and dropout tickets that a device of that name would draw."""

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from wire_protocol.local_order import local_steps
from wire_protocol.plan import TrainingPlan

__all__ = ["client_dataset"]


def client_dataset(
    plan: TrainingPlan, x: npt.NDArray[np.float32], y: npt.NDArray[Any], *, round_id: int, device_id: str
) -> Any:
    """The local steps of one device in one round, as TFF's client work reads them.

    Args:
        plan: Batch size, epochs, step limit and seed.
        x: [num_examples, ...] the device's examples, at least one.
        y: [num_examples, ...] their labels, as the plan has them.
        round_id: The round.
        device_id: The device; the name decides its order.

    Returns:
        A ``tf.data.Dataset`` of ``((x, tickets), y)`` batches; the last of an epoch may be short.
    """
    steps = list(local_steps(plan, num_examples=len(y), round_id=round_id, device_id=device_id))
    order = tf.constant(np.concatenate([step.indices for step in steps]))
    tickets = tf.constant(np.concatenate([step.tickets for step in steps]))
    stops = np.cumsum([len(step.indices) for step in steps])
    starts = np.concatenate([[0], stops[:-1]])
    examples, labels = tf.constant(x, tf.float32), tf.constant(y, plan.label_dtype)

    def batch(start: Any, stop: Any) -> Any:
        indices = order[start:stop]
        return (tf.gather(examples, indices), tickets[start:stop]), tf.gather(labels, indices)

    return tf.data.Dataset.from_tensor_slices((starts, stops)).map(batch)
