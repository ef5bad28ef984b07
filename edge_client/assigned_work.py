"""What a device holds while it has an assignment: the blobs it needs, and later the report it sends."""

from collections.abc import Callable
from typing import Protocol

from edge_client.fetch import BlobFetcher
from edge_client.settings import FetchSettings, UploadSettings
from edge_client.training import TrainingJob, TrainingResult
from edge_client.upload import ReportUpload
from wire_protocol.blobs import split_blob
from wire_protocol.messages import Assignment, Report, RoundKind
from wire_protocol.plan import TrainingPlan
from wire_protocol.tensors import decode_tensors, encode_tensors

__all__ = ["AssignedWork", "BlobReader"]


class BlobReader(Protocol):
    """Where blobs may already be: a ``FileBlobStore`` on a device, a plain dict in a simulated fleet."""

    def get(self, sha256: bytes, /) -> bytes | None:
        """The blob of this hash, or None if it is not here."""


class AssignedWork:
    """One assignment and everything kept for it; dropped as a whole when the round is over for this device.

    Args:
        assignment: The assignment.
        deadline_at: When a report is too late, on the clock of ``now``.
        blobs: Where to look before fetching.
    """

    __slots__ = ("_blobs", "assignment", "deadline_at", "fetcher", "upload")

    def __init__(self, assignment: Assignment, *, deadline_at: float, blobs: BlobReader) -> None:
        self.assignment = assignment
        self.deadline_at = deadline_at
        self.fetcher: BlobFetcher | None = None
        self.upload: ReportUpload | None = None
        self._blobs: dict[bytes, bytes] = {}
        for ref in (assignment.plan, assignment.model, assignment.checkpoint):
            data = blobs.get(ref.sha256)
            if data is not None:
                self._blobs[ref.sha256] = data

    @property
    def is_ready(self) -> bool:
        """Whether plan, model and checkpoint are all at hand."""
        wanted = (self.assignment.plan, self.assignment.model, self.assignment.checkpoint)
        return all(ref.sha256 in self._blobs for ref in wanted)

    def begin_fetch(self, *, settings: FetchSettings, uniform: Callable[[float, float], float]) -> BlobFetcher:
        """Makes the fetcher for what is lacking."""
        wanted = (self.assignment.plan, self.assignment.model, self.assignment.checkpoint)
        lacking = [ref for ref in wanted if ref.sha256 not in self._blobs]
        self.fetcher = BlobFetcher(lacking, settings=settings, uniform=uniform)
        return self.fetcher

    def add_blob(self, sha256: bytes, data: bytes) -> None:
        """Takes a fetched blob."""
        self._blobs[sha256] = data

    @property
    def plan_bytes(self) -> bytes:
        """The encoded plan; only when ``is_ready``."""
        return self._blobs[self.assignment.plan.sha256]

    def make_job(self, plan: TrainingPlan, *, device_id: str) -> TrainingJob:
        """The job, when ``is_ready``. Lets go of the blobs: the job holds what it needs.

        Raises:
            WireError: The checkpoint is not what the plan says.
        """
        checkpoint = decode_tensors(self._blobs[self.assignment.checkpoint.sha256], plan.weights)
        model = self._blobs[self.assignment.model.sha256]
        self._blobs.clear()
        self.fetcher = None
        return TrainingJob(
            kind=self.assignment.kind,
            plan=plan,
            model=model,
            checkpoint=checkpoint,
            round_id=self.assignment.round_id,
            device_id=device_id,
        )

    def begin_upload(
        self,
        result: TrainingResult,
        *,
        piece_bytes: int,
        settings: UploadSettings,
        uniform: Callable[[float, float], float],
    ) -> ReportUpload:
        """Fixes the bytes of the report and makes its upload.

        Raises:
            BlobError: The update is too large for the pieces that the broker takes.
        """
        is_training = self.assignment.kind is RoundKind.TRAIN
        update = None
        if is_training and result.model_delta is not None:
            update = split_blob(encode_tensors(result.model_delta), piece_bytes=piece_bytes)
        report = Report(
            round_id=self.assignment.round_id,
            nonce=self.assignment.nonce,
            update=update.ref if update is not None else None,
            piece_digests=update.piece_digests if update is not None and update.ref.num_pieces > 1 else b"",
            num_examples=result.num_examples,
            aggregation_weight=result.aggregation_weight,
            metrics=result.metrics,
        )
        self.upload = ReportUpload(report=report, update=update, settings=settings, uniform=uniform)
        return self.upload
