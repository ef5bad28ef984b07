"""The aggregator of a coordinator that has TFF: defines the server side, compiles it, runs it in this process."""

from collections.abc import Sequence

from coordinator.aggregation_spec import AggregationSpec
from coordinator.tff.artefact_aggregator import ArtefactAggregator
from coordinator.tff.contexts import replace_worker_context
from coordinator.tff.map_reduce_round import compile_server
from wire_protocol.plan import TensorSpec

__all__ = ["TffAggregator"]


class TffAggregator(ArtefactAggregator):
    """Aggregation as TFF defines it, compiled at construction (a few seconds of CPU).

    From then on TFF's default context is one that starts no worker process, unless another was chosen before.
    Its ``artefact`` can be written with `write_server_artefact` and run by `ArtefactAggregator` where there is no TFF.

    Args:
        weights: The model's trainable tensors, in the plan's order.
        spec: How updates become the next model.
    """

    def __init__(self, weights: Sequence[TensorSpec], spec: AggregationSpec) -> None:
        replace_worker_context()
        super().__init__(compile_server(tuple(weights), spec))
