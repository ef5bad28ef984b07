"""TFF's program API over a fleet: with these, ``tff.learning.programs.train_model`` runs unchanged on devices.

The context answers at once with references to values to come; the round itself runs in a thread. The data source
yields cohorts instead of data; its iterator is part of the program's state, so a restart goes on where it stopped.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import tensorflow_federated as tff

from coordinator.errors import QuorumMissed
from coordinator.tff.contexts import Cohort, InProcessContext
from coordinator.tff.in_process import flatten, leaf_types, unflatten

__all__ = ["CohortIterator", "FleetDataSource", "FleetProgramContext"]

_LOG = logging.getLogger(__name__)


class FleetProgramContext(tff.program.FederatedContext):
    """Runs a federated program's computations in order, each in a thread.

    Args:
        context: Runs one computation.
        max_attempts: How often a round is tried that misses its quorum.
    """

    def __init__(self, context: InProcessContext, *, max_attempts: int = 3) -> None:
        self._context = context
        self._max_attempts = max_attempts
        self._turn = asyncio.Lock()

    def invoke(self, comp: tff.Computation, arg: Any) -> Any:
        """Starts a computation.

        Args:
            comp: What to run; its results must be at the server.
            arg: Values, references to values to come, and a `Cohort` for CLIENTS.

        Returns:
            References, in the containers of the result's type.

        Raises:
            ValueError: A result would be at CLIENTS.
        """
        result_type = comp.type_signature.result
        if not tff.program.contains_only_server_placed_data(result_type):
            raise ValueError(f"results must be at the server; this computation returns {result_type}")
        task = asyncio.ensure_future(self._run(comp, arg))
        references = (
            _Reference(task, index, leaf_type) for index, (_, leaf_type) in enumerate(leaf_types(result_type))
        )
        return unflatten(references, result_type)

    async def _run(self, comp: tff.Computation, arg: Any) -> list[Any]:
        """Waits for its turn and its arguments, runs, and returns flat results."""
        signature = comp.type_signature
        async with self._turn:
            ready = None if signature.parameter is None else await _resolve(arg, signature.parameter)
            for attempt in range(1, self._max_attempts + 1):
                try:
                    result = await asyncio.to_thread(self._context.invoke, comp, ready)
                except QuorumMissed as error:
                    if attempt == self._max_attempts:
                        raise
                    _LOG.warning("round_retried attempt=%d reason=%s", attempt, error)
                else:
                    return flatten(result, signature.result)
        raise ValueError("max_attempts must be at least 1")


class _Reference(tff.program.MaterializableValueReference):
    """One leaf of a computation that may still be running."""

    def __init__(self, task: "asyncio.Future[list[Any]]", index: int, type_spec: tff.Type) -> None:
        self._task = task
        self._index = index
        self._type = type_spec

    @property
    def type_signature(self) -> tff.Type:
        """The leaf's type."""
        return self._type

    async def get_value(self) -> Any:
        """Waits for the computation."""
        return (await asyncio.shield(self._task))[self._index]


async def _resolve(value: Any, type_spec: tff.Type) -> Any:
    """Waits for the references in an argument; what is at CLIENTS is passed on as it is."""
    if isinstance(type_spec, tff.FederatedType):
        return value if type_spec.placement is tff.CLIENTS else await _resolve(value, type_spec.member)
    if isinstance(type_spec, tff.StructType):
        elements = [
            await _resolve(element, element_type)
            for element, (_, element_type) in zip(
                _one_level(value, type_spec), tff.structure.iter_elements(type_spec), strict=True
            )
        ]
        return elements
    return await value.get_value() if isinstance(value, tff.program.MaterializableValueReference) else value


def _one_level(value: Any, type_spec: tff.StructType) -> list[Any]:
    names = [name for name, _ in tff.structure.iter_elements(type_spec)]
    return [value[name] for name in names] if isinstance(value, dict) else list(value)


class _IteratorState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a restart needs to go on selecting."""

    device_ids: tuple[str, ...]
    quorum_fraction: float
    seed: int
    num_selected: int
    federated_type: bytes


class CohortIterator(tff.program.FederatedDataSourceIterator):
    """Selects cohorts, uniformly and without replacement; the same state always selects the same ones.

    Args:
        state: Where to go on from; use `FleetDataSource.iterator` for the start.
    """

    def __init__(self, state: _IteratorState) -> None:
        self._state = state

    @property
    def federated_type(self) -> tff.FederatedType:
        """The type of a report, at CLIENTS."""
        proto = tff.framework.ConcreteComputation
        raise NotImplementedError(proto)

    def select(self, k: int | None = None) -> Cohort:
        """Selects the next cohort of ``k`` devices, or of all.

        Raises:
            ValueError: There are fewer devices.
        """
        roster = self._state.device_ids
        size = len(roster) if k is None else k
        rng = np.random.default_rng([self._state.seed, self._state.num_selected])
        chosen = tuple(str(name) for name in rng.choice(np.array(roster), size, replace=False))
        self._state = msgspec.structs.replace(self._state, num_selected=self._state.num_selected + 1)
        return Cohort(device_ids=chosen, quorum=max(1, math.ceil(self._state.quorum_fraction * size)))
