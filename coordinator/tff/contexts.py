"""TFF contexts that run in this process: no worker process, no gRPC, and CLIENTS may be real devices.

TFF's own contexts start a ``worker_binary`` child, which costs about 200 ns per parameter and call and can outlive its
parent. Here computations run as TensorFlow functions. TFF's source recommends this shape for a MapReduce backend
(``tff.backends.mapreduce``): a ``tff.framework.SyncContext`` that compiles to MapReduceForm.
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import tensorflow_federated as tff

from coordinator.aggregation import ClientUpdate
from coordinator.errors import QuorumMissed
from coordinator.round_ids import RoundIds
from coordinator.tff.compiled_round import CompiledRound, update_leaves
from coordinator.tff.graph_function import GraphFunction
from coordinator.tff.in_process import compiled_graph, flatten, is_tensorflow, unflatten
from coordinator.tff.map_reduce_round import compile_initialize, compile_round
from wire_protocol.tensors import Tensors

__all__ = ["Cohort", "FleetContext", "InProcessContext", "RoundTransport", "replace_worker_context"]

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cohort:
    """What stands for a CLIENTS value in a `FleetContext`: the devices that are asked."""

    device_ids: tuple[str, ...]
    quorum: int
    """Fewest reports that make a round."""

    def __post_init__(self) -> None:
        if not 1 <= self.quorum <= len(self.device_ids) or len(set(self.device_ids)) != len(self.device_ids):
            raise ValueError(f"a quorum of {self.quorum} among {len(self.device_ids)} devices, each named once")


class RoundTransport(Protocol):
    """How a cohort is reached. Called from one thread at a time."""

    def publish(self, round_id: int, cohort: Cohort, weights: Tensors) -> None:
        """Asks the cohort to train from these weights."""

    def reports(self, round_id: int) -> Iterable[tuple[str, ClientUpdate]]:
        """Yields (device_id, admitted update) as they arrive, blocking; ends when all have reported, or at the deadline.

        Asking for the next one says that the last one has been folded. Duplicates and strangers are allowed; the
        context drops them.
        """

    def close_round(self, round_id: int) -> None:
        """No further report is wanted. Called once per published round, however it went."""


class InProcessContext(tff.framework.SyncContext):
    """Runs TFF computations in this process.

    Three kinds: TensorFlow computations; ``( -> S@SERVER)``; and whatever compiles to a MapReduceForm,
    ``(S@SERVER, C@CLIENTS) -> (S@SERVER, M@SERVER)``, one client after the other. Each is compiled once.
    """

    def __init__(self) -> None:
        # By identity: TFF hashes a computation by serializing it. The computation is kept, so that its id stays taken.
        self._functions: dict[int, tuple[tff.Computation, GraphFunction]] = {}
        self._rounds: dict[int, tuple[tff.Computation, CompiledRound]] = {}

    def invoke(self, comp: tff.Computation, arg: Any) -> Any:
        """Runs a computation.

        Args:
            comp: What to run.
            arg: Its argument, as TFF passes it; None if it takes none.

        Returns:
            Numpy values in the containers of the result's type.
        """
        signature = comp.type_signature
        if is_tensorflow(comp) or signature.parameter is None:
            leaves = [] if signature.parameter is None else flatten(arg, signature.parameter)
            results = self._function(comp)(*leaves)
        else:
            state, clients = arg
            results = self._run_round(self._round(comp), flatten(state, signature.parameter[0]), clients, comp)
        return unflatten((tensor.numpy() for tensor in results), signature.result)

    def _run_round(
        self, compiled: CompiledRound, state: list[Any], clients: Any, comp: tff.Computation
    ) -> tuple[Any, ...]:
        """Runs one round over a list of client values."""
        client_type = comp.type_signature.parameter[1].member
        running = compiled.begin(state)
        for client in clients:
            running.fold(flatten(client, client_type))
        return running.finish()

    def _function(self, comp: tff.Computation) -> GraphFunction:
        if id(comp) not in self._functions:
            graph = compiled_graph(comp) if is_tensorflow(comp) else compile_initialize(comp)
            self._functions[id(comp)] = (comp, GraphFunction(graph))
        return self._functions[id(comp)][1]

    def _round(self, comp: tff.Computation) -> CompiledRound:
        if id(comp) not in self._rounds:
            self._rounds[id(comp)] = (comp, CompiledRound(compile_round(comp)))
        return self._rounds[id(comp)][1]


def replace_worker_context() -> None:
    """Puts an `InProcessContext` in the place of TFF's own default, whose first use would start the worker process.

    A context that someone chose stays.
    """
    if isinstance(tff.framework.get_context_stack().current, tff.framework.SyncExecutionContext):
        tff.framework.set_default_context(InProcessContext())


class FleetContext(InProcessContext):
    """A context in which the fleet process's CLIENTS are devices: ``fleet.next(state, cohort)`` runs on them.

    A list of reports in the place of the `Cohort` is folded as it is.

    Args:
        transport: Reaches the devices.
        get_model_weights: The fleet process's own: what devices download.
        round_ids: Numbers the rounds; an abandoned round's number is not used again.
    """

    def __init__(self, transport: RoundTransport, *, get_model_weights: tff.Computation, round_ids: RoundIds) -> None:
        super().__init__()
        self._transport = transport
        self._get_model_weights = get_model_weights
        self._round_ids = round_ids

    def _run_round(
        self, compiled: CompiledRound, state: list[Any], clients: Any, comp: tff.Computation
    ) -> tuple[Any, ...]:
        """Runs one round on devices: folds each report as it arrives and keeps none.

        Raises:
            QuorumMissed: Too few reports came.
        """
        if not isinstance(clients, Cohort):
            return super()._run_round(compiled, state, clients, comp)
        weights = tuple(tensor.numpy() for tensor in self._function(self._get_model_weights)(*state))
        round_id = self._round_ids.next_id()
        running = compiled.begin(state)
        self._transport.publish(round_id, clients, weights)
        try:
            for update in self._wanted(round_id, clients):
                running.fold(update_leaves(update))
        finally:
            self._transport.close_round(round_id)
        _LOG.info(
            "cohort_reported round_id=%d updates=%d assigned=%d",
            *(round_id, running.num_folded, len(clients.device_ids)),
        )
        if running.num_folded < clients.quorum:
            raise QuorumMissed(f"round {round_id}: {running.num_folded} reports; {clients.quorum} were needed")
        return running.finish()

    def _wanted(self, round_id: int, cohort: Cohort) -> Iterator[ClientUpdate]:
        """Yields the first report of each device of the cohort."""
        awaited = set(cohort.device_ids)
        for device_id, update in self._transport.reports(round_id):
            if device_id in awaited:
                awaited.remove(device_id)
                yield update
