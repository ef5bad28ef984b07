"""The coordinator of a chaos run: the real server, but its journal keeps every contribution for the audit.

`python -m simulators.chaos_coordinator DIRECTORY BROKER_URL NUM_COMMITS LATE_S`. Runs until it is killed or done. Its
aggregator is there LATE_S seconds after it has begun to answer devices, as one that TFF compiles would be.
"""

import logging
import sys
import threading
import time
from pathlib import Path

from coordinator.admission import AdmissionPolicy
from coordinator.aggregation_spec import AggregationSpec
from coordinator.checkpoints import CheckpointStore
from coordinator.late_aggregator import LateAggregator
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.round_ids import RoundIds
from coordinator.round_journal import RoundJournal
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import RoundState
from coordinator.server import ServerConfig, TaskState, run_rounds
from coordinator.task_bundle import TaskBundle
from simulators.virtual_run import linear_task

__all__ = ["POPULATION", "AuditJournal", "chaos_task", "main", "open_chaos_state"]

POPULATION = "chaos"
_AUDIT = """
CREATE TABLE IF NOT EXISTS audit (
    round_id INTEGER NOT NULL, device_id TEXT NOT NULL, model_delta BLOB, aggregation_weight REAL NOT NULL,
    base_commits INTEGER NOT NULL, state TEXT NOT NULL
) STRICT;
"""


class AuditJournal(RoundJournal):
    """The real journal; the contributions that a closed round drops go into a table of their own, in one transaction."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._db.executescript(_AUDIT)

    def close_round(self, round_id: int, state: RoundState) -> None:
        """Copies the round's contributions, then closes it."""
        self._write(
            "INSERT INTO audit SELECT round_id, device_id, model_delta, aggregation_weight, base_commits, ?"
            " FROM contributions JOIN rounds USING (round_id) WHERE round_id = ? ORDER BY position",
            (state.value, round_id),
        )
        super().close_round(round_id, state)

    def audit(self) -> list[tuple[int, str, bytes, float, int, str]]:
        """Everything ever counted: round, device, encoded update, weight, commits before, how the round ended."""
        return list(self._execute("SELECT * FROM audit ORDER BY rowid", ()))


def chaos_task() -> TaskBundle:
    """Softmax regression on the digits."""
    return linear_task(64, 10, batch_size=8, num_epochs=1, learning_rate=0.2)


def open_chaos_state(directory: Path, aggregator: NumpyMeanAggregator, bundle: TaskBundle) -> TaskState:
    """Opens what earlier lives have left."""
    store = CheckpointStore(directory / "states")
    found = store.load_latest()
    state = aggregator.initialize(bundle.initial_weights) if found is None else found
    return TaskState(
        store=store,
        journal=AuditJournal(directory / "journal.sqlite"),
        round_ids=RoundIds(directory / "last_round_id", start=state.num_commits),
        state=state,
        is_resumed=found is not None,
    )


def main(directory: Path, broker_url: str, num_commits: int, late_s: float) -> None:
    """Runs the coordinator."""

    def make() -> NumpyMeanAggregator:
        time.sleep(late_s)
        return aggregator

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    bundle = chaos_task()
    aggregator = NumpyMeanAggregator(bundle.plan.weights, AggregationSpec())
    config = ServerConfig(
        broker_url=broker_url,
        population=POPULATION,
        # One report is enough, so that no round that has counted anything is ever given up.
        policy=RoundPolicy(
            report_goal=3, min_reports=1, over_selection=1.0, selection_timeout_s=5.0, report_timeout_s=8.0
        ),
        schedule=RoundSchedule(num_commits=num_commits, max_abandoned_in_a_row=1_000_000),
        admission=AdmissionPolicy(),
    )
    run_rounds(
        config,
        bundle=bundle,
        aggregator=LateAggregator(make),
        task=open_chaos_state(directory, aggregator, bundle),
        on_round=lambda *_: None,
        stop=threading.Event(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
