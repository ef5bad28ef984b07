"""Enters each round that commits, and each evaluation, into the model registry, as the coordinator goes along."""

import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from coordinator.aggregation import ServerState
from coordinator.errors import RegistryDamaged
from coordinator.model_registry import CommittedCheckpoint, ModelRegistry
from coordinator.round_loop import RoundSummary
from coordinator.round_table import RoundState
from coordinator.task_bundle import TaskBundle
from wire_protocol.messages import RoundKind
from wire_protocol.tensors import encode_tensors

__all__ = ["REGISTRY_DIRECTORY", "CommitRecorder"]

REGISTRY_DIRECTORY: Final = "registry"
_LOG = logging.getLogger(__name__)


class CommitRecorder:
    """Told of every round that is over. A registry that cannot be written is logged; rounds go on.

    Args:
        state_dir: The coordinator's state directory.
        bundle: The task.

    Raises:
        RegistryDamaged: The registry that is there is not whole.
        OSError: It cannot be written.
    """

    def __init__(self, state_dir: Path, bundle: TaskBundle) -> None:
        self._registry = ModelRegistry(state_dir / REGISTRY_DIRECTORY)
        self._task_id = bundle.task_id
        self._plan_sha256 = hashlib.sha256(bundle.plan_bytes).hexdigest()

    def catch_up(self, state: ServerState) -> None:
        """Enters a state that was committed before a death and not entered: its round's figures are lost."""
        sha256 = hashlib.sha256(encode_tensors(state.weights)).hexdigest()
        known = {entry.checkpoint_sha256 for entry in self._registry.entries if entry.task_id == self._task_id}
        if state.num_commits and sha256 not in known:
            self._enter(
                state,
                kind="committed",
                round_id=0,
                num_commits=state.num_commits,
                epsilon=None,
                num_reports=0,
                metrics={},
            )

    def note(self, summary: RoundSummary, state: ServerState) -> None:
        """Notes a round that committed; any other is of no interest here."""
        if summary.state is not RoundState.COMMITTED:
            return
        self._enter(
            state,
            kind="committed" if summary.kind is RoundKind.TRAIN else "evaluated",
            round_id=summary.round_id,
            num_commits=summary.num_commits,
            epsilon=summary.epsilon,
            num_reports=summary.num_reports,
            metrics=summary.metrics,
        )

    def _enter(
        self,
        state: ServerState,
        *,
        kind: Literal["committed", "evaluated"],
        round_id: int,
        num_commits: int,
        epsilon: float | None,
        num_reports: int,
        metrics: Mapping[str, float],
    ) -> None:
        checkpoint = encode_tensors(state.weights)
        own = [
            entry for entry in self._registry.entries if entry.task_id == self._task_id and entry.kind == "committed"
        ]
        entry = CommittedCheckpoint(
            kind=kind,
            task_id=self._task_id,
            plan_sha256=self._plan_sha256,
            round_id=round_id,
            num_commits=num_commits,
            checkpoint_sha256=hashlib.sha256(checkpoint).hexdigest(),
            parent_sha256=own[-1].checkpoint_sha256 if kind == "committed" and own else "",
            epsilon=epsilon,
            num_reports=num_reports,
            metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)},
        )
        try:
            if kind == "committed":
                self._registry.commit(entry, checkpoint)
            else:
                self._registry.note(entry)
        except (OSError, RegistryDamaged) as error:
            _LOG.error("checkpoint_not_registered round_id=%d error=%r", round_id, str(error))
