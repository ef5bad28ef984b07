"""What a job runs: the trainer's `train` or `evaluate`, or the answer to a question. Shared by daemon and simulations."""

import msgspec

from edge_client.local_answer import answer_locally
from edge_client.training import Examples, Trainer, TrainingJob, TrainingResult
from wire_protocol.messages import RoundKind

__all__ = ["run_job"]


def run_job(trainer: Trainer, job: TrainingJob, examples: Examples) -> TrainingResult:
    """Runs a job.

    Raises:
        DataError: The examples are too few, or do not fit.
        TrainingError: The trainer failed.
    """
    if job.plan.query is not msgspec.UNSET:
        return answer_locally(job.plan.query, examples)
    run = trainer.train if job.kind is RoundKind.TRAIN else trainer.evaluate
    return run(job, examples)
