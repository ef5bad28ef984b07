"""From the end of a job to what may be said about it. For a private task, failures that depend on local data say nothing.

A plan could ask for ever more examples, or name ever fewer classes, and learn from who withdraws what a device holds:
answers that nobody has priced. A device whose data cannot be used therefore contributes as everybody does, zero and
its noise, and is charged as everybody is. The owner reads the reason in the device's own log.
"""

import logging
from typing import Final, TypeAlias

import numpy as np

from edge_client.errors import EdgeClientError, NonFiniteUpdate, PrivacyRefused
from edge_client.events import TrainingFailed, TrainingFinished
from edge_client.privacy.release_desk import ReleaseDesk
from edge_client.training import TrainingJob, TrainingResult, withdrawal_reason
from wire_protocol.messages import RoundKind, WithdrawalReason
from wire_protocol.private_reports import PRIVATE_METRICS, PRIVATE_NUM_EXAMPLES, PRIVATE_WEIGHT

__all__ = ["JobEnd", "let_out", "refused"]

_LOG = logging.getLogger(__name__)
_OF_LOCAL_DATA: Final = frozenset(
    {WithdrawalReason.TOO_FEW_EXAMPLES, WithdrawalReason.DATA_MISMATCH, WithdrawalReason.NON_FINITE_UPDATE}
)

JobEnd: TypeAlias = TrainingFinished | TrainingFailed
"""How a job ended."""


def let_out(desk: ReleaseDesk, job: TrainingJob, ended: JobEnd) -> JobEnd:
    """What may be said of a job's end.

    Args:
        desk: Lets the result out, or not.
        job: The job that was started last.
        ended: The end of it; that of another job is refused, for nobody knows what it may say.

    Returns:
        A result that may be published, or a failure whose reason may be.
    """
    if job.round_id != ended.round_id:
        return TrainingFailed(round_id=ended.round_id, reason=WithdrawalReason.TRAINING_FAILED, detail="stale")
    try:
        if isinstance(ended, TrainingFinished):
            return TrainingFinished(round_id=job.round_id, result=_released(desk, job, ended.result))
        if not _is_silent(job) or ended.reason not in _OF_LOCAL_DATA:
            return ended
        _LOG.warning("only_noise_sent round_id=%d reason=%s: %s", job.round_id, ended.reason.value, ended.detail)
        return TrainingFinished(round_id=job.round_id, result=desk.release(job, _nothing(job)))
    except EdgeClientError as error:
        return refused(job, error)


def refused(job: TrainingJob, error: EdgeClientError) -> TrainingFailed:
    """A job that came to nothing because of ``error``."""
    detail = f"{type(error).__name__}: {error}"
    return TrainingFailed(round_id=job.round_id, reason=withdrawal_reason(error), detail=detail)


def _released(desk: ReleaseDesk, job: TrainingJob, result: TrainingResult) -> TrainingResult:
    try:
        return desk.release(job, result)
    except NonFiniteUpdate as error:
        if not _is_silent(job):
            raise
        _LOG.warning("only_noise_sent round_id=%d reason=%s", job.round_id, error)
        return desk.release(job, _nothing(job))


def _is_silent(job: TrainingJob) -> bool:
    return job.plan.privacy is not None and job.kind is RoundKind.TRAIN


def _nothing(job: TrainingJob) -> TrainingResult:
    """What a device without usable data has learnt."""
    if job.plan.privacy is None:
        raise PrivacyRefused("zeros without noise would be an answer about local data")
    return TrainingResult(
        model_delta=tuple(np.zeros(spec.shape, np.float32) for spec in job.plan.weights),
        num_examples=PRIVATE_NUM_EXAMPLES,
        aggregation_weight=PRIVATE_WEIGHT,
        metrics=PRIVATE_METRICS,
        duration_s=0.0,
    )
