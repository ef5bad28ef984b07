"""What the machines of the protocol model share: the task, its shapes, and the fuse that stops a machine."""

from typing import Final

import numpy as np

from coordinator.task_bundle import TaskBundle
from wire_protocol.plan import TensorSpec, TrainingPlan

__all__ = ["POPULATION", "SHAPE", "Fuse", "PowerCut", "trial_task"]

POPULATION: Final = "trial"
SHAPE: Final = (10, 30)


class PowerCut(BaseException):
    """The machine stops here. No `Exception`: nothing in the code under test may catch it."""


class Fuse:
    """Stops its machine after so many more steps that the outside can see."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        """One step nearer.

        Raises:
            PowerCut: This was the last.
        """
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.left = None
                raise PowerCut


def trial_task() -> TaskBundle:
    """A task of one tensor, whose updates travel in two pieces."""
    plan = TrainingPlan(
        batch_size=4, learning_rate=0.1, input_shape=(10,), num_classes=30, weights=(TensorSpec(shape=SHAPE),)
    )
    return TaskBundle(plan=plan, model_bytes=b"a model file", initial_weights=(np.zeros(SHAPE, np.float32),))
