"""What assignments name: plan, model, the round's checkpoint, clip and roster; and the blobs behind them, on the shelf."""

from typing import Final

import msgspec

from coordinator.actions import Publish, to_device
from coordinator.blob_shelf import BlobShelf
from coordinator.population import Waiting
from coordinator.round_table import Round
from coordinator.task_bundle import TaskBundle
from secure_sum.round_roster import encode_roster
from wire_protocol.blobs import BlobRef
from wire_protocol.confidentiality import MaskedSums
from wire_protocol.messages import Assignment

__all__ = ["Assignments"]

_CHECKPOINTS_OFFERED: Final = 2


class Assignments:
    """Makes the assignments of one task.

    Args:
        population: Whose topics they go to.
        bundle: The task.
        shelf: Where devices fetch from.
    """

    def __init__(self, population: str, bundle: TaskBundle, shelf: BlobShelf) -> None:
        self._population = population
        self._task_id = bundle.task_id
        self._shelf = shelf
        self.plan = shelf.put(bundle.plan_bytes)
        self.model = shelf.put(bundle.model_bytes)
        self._checkpoints: list[BlobRef] = []
        self._clipping_norm: float | None = None
        confidentiality = bundle.plan.confidentiality
        self._has_pairwise_masks = confidentiality is not msgspec.UNSET and isinstance(confidentiality, MaskedSums)
        self._roster: tuple[int, BlobRef] | None = None

    def offer(self, checkpoint: bytes, clipping_norm: float | None) -> None:
        """Begins a round: its checkpoint goes on the shelf; the one before stays for devices that still fetch it.

        Args:
            checkpoint: Encoded weights.
            clipping_norm: The round's clip, of a task whose clip adapts; else None.
        """
        ref = self._shelf.put(checkpoint)
        self._clipping_norm = clipping_norm
        self._checkpoints = [known for known in self._checkpoints if known.sha256 != ref.sha256] + [ref]
        while len(self._checkpoints) > _CHECKPOINTS_OFFERED:
            self._shelf.remove(self._checkpoints.pop(0))

    def message(self, round_: Round, waiting: Waiting, nonce: bytes, now: float) -> Publish:
        """An assignment in the round whose checkpoint was offered last."""
        assignment = Assignment(
            round_id=round_.round_id,
            nonce=nonce,
            check_in=waiting.check_in,
            kind=round_.kind,
            task_id=self._task_id,
            plan=self.plan,
            model=self.model,
            checkpoint=self._checkpoints[-1],
            deadline_s=max(0.0, round_.deadline - now),
            clipping_norm=msgspec.UNSET if self._clipping_norm is None else self._clipping_norm,
            roster=self._roster_of(round_) if self._has_pairwise_masks else msgspec.UNSET,
        )
        return to_device(self._population, waiting.device_id, assignment)

    def _roster_of(self, round_: Round) -> BlobRef:
        """The cohort, as every device of it needs it to mask; the same after a restart, for the journal has it."""
        if self._roster is None or self._roster[0] != round_.round_id:
            if self._roster is not None:
                self._shelf.remove(self._roster[1])
            self._roster = (round_.round_id, self._shelf.put(encode_roster(tuple(round_.cohort))))
        return self._roster[1]
