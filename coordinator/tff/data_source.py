"""A fleet as TFF's data source: it yields cohorts instead of data.

The iterator is part of a federated program's state, so a restarted program goes on selecting where it stopped.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import tensorflow_federated as tff

from coordinator.tff.contexts import Cohort
from coordinator.tff.processes import model_weights_type, report_type
from wire_protocol.plan import TensorSpec

__all__ = ["CohortIterator", "FleetDataSource"]


class _Selection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a restart needs to go on selecting."""

    device_ids: tuple[str, ...]
    weights: tuple[TensorSpec, ...]
    quorum_fraction: float
    seed: int
    num_selected: int = 0


class CohortIterator(tff.program.FederatedDataSourceIterator):
    """Selects cohorts, uniformly and without replacement; from the same state always the same ones.

    Args:
        selection: Where to go on from; `FleetDataSource.iterator` gives the start.
    """

    def __init__(self, selection: _Selection) -> None:
        self._selection = selection

    @property
    def federated_type(self) -> tff.FederatedType:
        """The type of a report, at CLIENTS."""
        return tff.FederatedType(report_type(model_weights_type(self._selection.weights)), tff.CLIENTS)

    def select(self, k: int | None = None) -> Cohort:
        """Selects the next cohort.

        Args:
            k: How many devices; None for all.

        Raises:
            ValueError: There are fewer.
        """
        selection = self._selection
        size = len(selection.device_ids) if k is None else k
        rng = np.random.default_rng([selection.seed, selection.num_selected])
        positions = rng.choice(len(selection.device_ids), size, replace=False)
        self._selection = msgspec.structs.replace(selection, num_selected=selection.num_selected + 1)
        return Cohort(
            device_ids=tuple(selection.device_ids[position] for position in positions),
            quorum=max(1, math.ceil(selection.quorum_fraction * size)),
        )

    def to_bytes(self) -> bytes:
        """The iterator's state as JSON."""
        return msgspec.json.encode(self._selection)

    @classmethod
    def from_bytes(cls, buffer: bytes) -> "CohortIterator":
        """Goes on from a stored state."""
        return cls(msgspec.json.decode(buffer, type=_Selection))


class FleetDataSource(tff.program.FederatedDataSource):
    """The devices that a federated program may select.

    Args:
        device_ids: Their names.
        weights: The model's trainable tensors.
        quorum_fraction: Share of a cohort that must report, in (0, 1].
        seed: Decides the cohorts. Not secret, and no amplification by sampling may be claimed for it.
    """

    def __init__(
        self, device_ids: Sequence[str], *, weights: Sequence[TensorSpec], quorum_fraction: float = 1.0, seed: int = 0
    ) -> None:
        if not 0 < quorum_fraction <= 1:
            raise ValueError(f"quorum_fraction must be in (0, 1], not {quorum_fraction}")
        self._start = _Selection(
            device_ids=tuple(device_ids), weights=tuple(weights), quorum_fraction=quorum_fraction, seed=seed
        )

    @property
    def federated_type(self) -> tff.FederatedType:
        """The type of a report, at CLIENTS."""
        return self.iterator().federated_type

    def iterator(self) -> CohortIterator:
        """A new pass, from the first cohort."""
        return CohortIterator(self._start)
