"""TFF's program API over a fleet: with these, ``tff.learning.programs.train_model`` runs unchanged on devices.

The context answers at once with references to values to come; the round itself runs in a thread.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import tensorflow_federated as tff

from coordinator.errors import QuorumMissed
from coordinator.tff.contexts import InProcessContext
from coordinator.tff.in_process import flatten, leaf_types, unflatten

__all__ = ["FleetProgramContext"]

_LOG = logging.getLogger(__name__)


class FleetProgramContext(tff.program.FederatedContext):
    """Runs a federated program's computations in order, each in a thread.

    Args:
        context: Runs one computation.
        max_attempts: How often a round is tried that misses its quorum.
    """

    def __init__(self, context: InProcessContext, *, max_attempts: int = 3) -> None:
        self._context = context
        if max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")
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
            attempt = 1
            while True:
                try:
                    result = await asyncio.to_thread(self._context.invoke, comp, ready)
                except QuorumMissed as error:
                    if attempt == self._max_attempts:
                        raise
                    _LOG.warning("round_retried attempt=%d reason=%s", attempt, error)
                    attempt += 1
                else:
                    return flatten(result, signature.result)


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
        named = list(tff.structure.iter_elements(type_spec))
        values = [value[name] for name, _ in named] if isinstance(value, Mapping) else list(value)
        return [await _resolve(element, element_type) for element, (_, element_type) in zip(values, named, strict=True)]
    return await value.get_value() if isinstance(value, tff.program.MaterializableValueReference) else value
