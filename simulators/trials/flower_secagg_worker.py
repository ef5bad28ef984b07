"""One round of Flower's SecAgg+ in one process: its own workflow and client mod, joined by a grid that calls functions.

A program of its own: its interpreter has Flower and numpy, and none of this project. Times are CPU seconds; bytes are
those of the arrays and byte strings in the messages, without framing.

    python flower_secagg_worker.py NUM_PARAMETERS NUM_DEVICES NUM_NEIGHBOURS NUM_DROPPED
"""

import copy
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict  # type: ignore[import-not-found]
from flwr.client.mod import secaggplus_mod  # type: ignore[import-not-found]
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters  # type: ignore[import-not-found]
from flwr.compat.common import recorddict_compat as compat  # type: ignore[import-not-found]
from flwr.server import SimpleClientManager  # type: ignore[import-not-found]
from flwr.server.compat.grid_client_proxy import GridClientProxy  # type: ignore[import-not-found]
from flwr.server.compat.legacy_context import LegacyContext  # type: ignore[import-not-found]
from flwr.server.strategy import FedAvg  # type: ignore[import-not-found]
from flwr.server.workflow import SecAggPlusWorkflow  # type: ignore[import-not-found]
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD  # type: ignore[import-not-found]
from flwr.supercore.task_identity import TaskIdentity  # type: ignore[import-not-found]

__all__ = ["main"]

_STAGE_OF_VECTORS = 2


class _Grid:
    """Hands each message to its client, in this process; some clients are gone when the vectors are collected."""

    def __init__(self, clients: "dict[int, _Client]", dropped: set[int]) -> None:
        self._clients = clients
        self._dropped = dropped
        self._num_stages = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies of those who are there."""
        del timeout
        stage, self._num_stages = self._num_stages, self._num_stages + 1
        gone = self._dropped if stage >= _STAGE_OF_VECTORS else set()
        asked = [message for message in messages if message.metadata.dst_node_id not in gone]
        return [self._clients[message.metadata.dst_node_id].answer(message) for message in asked]


class _Client:
    """One client: Flower's mod around a fit that returns zeros."""

    def __init__(self, node_id: int, num_parameters: int) -> None:
        self._context = Context(run_id=1, node_id=node_id, node_config={}, state=RecordDict(), run_config={})
        self._update = np.zeros(num_parameters, np.float32)
        self.cpu_s = 0.0
        self.wire_s = 0.0
        self.up_bytes = 0
        self.down_bytes = 0

    def answer(self, message: Message) -> Message:
        """Answers one stage."""
        self.down_bytes += _num_bytes(message.content)
        # As if it had come over the wire, on nobody's account: the mod takes what it is given apart.
        began = time.process_time()
        message = copy.deepcopy(message)
        self.wire_s += time.process_time() - began
        began = time.process_time()
        reply = secaggplus_mod(message, self._context, self._fit)
        self.cpu_s += time.process_time() - began
        self.up_bytes += _num_bytes(reply.content)
        return reply

    def _fit(self, message: Message, context: Context) -> Message:
        del context
        result = FitRes(
            status=Status(code=Code.OK, message=""),
            parameters=ndarrays_to_parameters([self._update]),
            num_examples=1,
            metrics={},
        )
        return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)


def _num_bytes(content: RecordDict) -> int:
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    values = sum(_size(value) for record in content.config_records.values() for value in record.values())
    return arrays + values


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(_size(one) for one in value)
    return len(value) if isinstance(value, bytes | str) else 8


def main(num_parameters: int, num_devices: int, num_neighbours: int, num_dropped: int) -> None:
    """Runs a round and prints what it cost, as JSON."""
    logging.disable(logging.INFO)
    TaskIdentity.node_id, TaskIdentity.run_id, TaskIdentity.task_id = 1, 1, 1
    clients = {node_id: _Client(node_id, num_parameters) for node_id in range(1, num_devices + 1)}
    grid = _Grid(clients, set(range(1, num_dropped + 1)))
    manager = SimpleClientManager()
    for node_id in clients:
        manager.register(GridClientProxy(node_id, grid, 1))
    strategy = FedAvg(min_fit_clients=num_devices, min_available_clients=num_devices)
    server = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    context = LegacyContext(server, strategy=strategy, client_manager=manager)
    from flwr.app import ConfigRecord

    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({"current_round": 1})
    start = ndarrays_to_parameters([np.zeros(num_parameters, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(start, keep_input=False)
    num_shares = min(num_devices, num_neighbours + 1)
    workflow = SecAggPlusWorkflow(num_shares=num_shares, reconstruction_threshold=max(2, num_shares // 2 + 1))
    began = time.process_time()
    workflow(grid, context)
    total_s = time.process_time() - began
    arrived = [client for node_id, client in clients.items() if node_id > num_dropped]
    figures = {
        "device_ms": 1e3 * statistics.median(client.cpu_s for client in arrived),
        "coordinator_s": total_s - sum(client.cpu_s + client.wire_s for client in clients.values()),
        "up_bytes": max(client.up_bytes for client in arrived),
        "down_bytes": max(client.down_bytes for client in arrived),
        "is_done": bool(context.history.metrics_distributed_fit) or MAIN_PARAMS_RECORD in context.state.array_records,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:5]))
