"""The one place where ``model_delta = trained - received`` is formed."""

import numpy as np

from edge_client.errors import ContractViolation, NonFiniteUpdate
from wire_protocol.tensors import Tensors

__all__ = ["compute_model_delta"]


def compute_model_delta(*, trained: Tensors, received: Tensors) -> Tensors:
    """The change that training made.

    Args:
        trained: Weights after training.
        received: Weights of the checkpoint, in the same order and shapes.

    Returns:
        ``trained - received`` in float32, one tensor per weight.

    Raises:
        ContractViolation: The two do not have the same shapes.
        NonFiniteUpdate: A difference is NaN or infinite; nothing of it may leave the device.
    """
    if [tensor.shape for tensor in trained] != [tensor.shape for tensor in received]:
        raise ContractViolation("the trained weights do not have the shapes of the received ones")
    # Overflow of the difference shows as infinity and is refused below; numpy's warning would say it twice.
    with np.errstate(over="ignore", invalid="ignore"):
        model_delta = tuple(
            np.subtract(after, before, dtype=np.float32) for after, before in zip(trained, received, strict=True)
        )
    for index, tensor in enumerate(model_delta):
        if not np.isfinite(tensor).all():
            raise NonFiniteUpdate(f"the update of w{index} holds NaN or infinity")
    return model_delta
