"""TFF's compiler: a federated computation becomes a MapReduceForm, and that becomes flat graphs."""

import tensorflow_federated as tff

from coordinator.aggregation_spec import AggregationSpec
from coordinator.errors import UnsupportedAggregation
from coordinator.tff.in_process import compiled_graph, leaf_specs, leaf_types
from coordinator.tff.processes import build_evaluation, build_fleet_process
from coordinator.tff.server_artefact import CompiledGraph, RoundGraphs, ServerArtefact
from wire_protocol.plan import TensorSpec

__all__ = ["compile_initialize", "compile_round", "compile_server"]


def compile_round(computation: tff.Computation) -> RoundGraphs:
    """Compiles ``(S@SERVER, C@CLIENTS) -> (S@SERVER, M@SERVER)``.

    Raises:
        UnsupportedAggregation: The computation needs secure sums.
    """
    form = tff.backends.mapreduce.get_map_reduce_form_for_computation(computation)
    if form.securely_aggregates_tensors:
        raise UnsupportedAggregation("secure sums need a fleet that masks its updates; use a plain aggregator")
    work = compiled_graph(form.work)
    num_uplink = len(list(leaf_types(form.work.type_signature.result[0])))
    # What follows the uplink are inputs of the three kinds of secure sums, which are empty here.
    uplink = CompiledGraph(graph_def=work.graph_def, feeds=work.feeds, fetches=work.fetches[:num_uplink])
    return RoundGraphs(
        prepare=compiled_graph(form.prepare),
        work=uplink,
        zero=compiled_graph(form.zero),
        accumulate=compiled_graph(form.accumulate),
        report=compiled_graph(form.report),
        update=compiled_graph(form.update),
        state_leaves=leaf_specs(computation.type_signature.parameter[0]),
        accumulator_leaves=leaf_specs(form.zero.type_signature.result),
        measurements=tuple(path for path, _ in leaf_types(computation.type_signature.result[1])),
    )


def compile_initialize(computation: tff.Computation) -> CompiledGraph:
    """Compiles ``( -> S@SERVER)``."""
    return compiled_graph(tff.backends.mapreduce.get_state_initialization_computation(computation))


def compile_server(weights: tuple[TensorSpec, ...], spec: AggregationSpec) -> ServerArtefact:
    """Builds the fleet process for a model of these shapes and compiles it: training and evaluation.

    Args:
        weights: The model's trainable tensors, in the plan's order.
        spec: How updates become the next model.
    """
    process = build_fleet_process(weights, spec)
    return ServerArtefact(
        spec=spec,
        weights=weights,
        initialize=compile_initialize(process.initialize),
        training=compile_round(process.next),
        evaluation=compile_round(build_evaluation()),
    )
