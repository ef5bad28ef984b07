"""Plan, model, checkpoint, and what the plan needs to seal an update: found or fetched, then made into a job. No I/O."""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from edge_client.fetch import BlobFetcher, FetchRequest, Taken
from edge_client.settings import FetchSettings
from edge_client.training import TrainingJob
from secure_sum.errors import SecureSumError
from secure_sum.round_roster import decode_roster
from wire_protocol.blobs import BlobRef
from wire_protocol.errors import MalformedMessage, WireError
from wire_protocol.messages import Assignment, Piece, PieceList
from wire_protocol.plan import TrainingPlan, decode_plan
from wire_protocol.tensors import decode_tensors

__all__ = ["BlobReader", "PlanReader", "RoundBlobs"]


class BlobReader(Protocol):
    """Where blobs may already be: a ``FileBlobStore`` on a device, a plain dict in a simulated fleet."""

    def get(self, sha256: bytes, /) -> bytes | None:
        """The blob of this hash, or None if it is not here."""


class PlanReader:
    """Decodes the plan of each round, and remembers the last one: it seldom changes."""

    __slots__ = ("_plan", "_sha256")

    def __init__(self) -> None:
        self._sha256 = b""
        self._plan: TrainingPlan | None = None

    def read(self, sha256: bytes, data: bytes) -> TrainingPlan:
        """The plan in ``data``, whose hash is ``sha256``.

        Raises:
            WireError: It is no plan.
        """
        if self._plan is None or self._sha256 != sha256:
            self._plan = decode_plan(data)
            self._sha256 = sha256
        return self._plan


class RoundBlobs:
    """What an assignment needs.

    Args:
        assignment: Names the blobs.
        reader: Where to look before fetching.
        plans: Reads the plan, as soon as it is here.
        settings: Window and waiting times of the fetch.
        uniform: ``uniform(low, high)`` for its jitter.
    """

    __slots__ = ("_assignment", "_blobs", "_fetcher", "_is_planned", "_plans", "_reader", "_settings", "_uniform")

    def __init__(
        self,
        assignment: Assignment,
        *,
        reader: BlobReader,
        plans: PlanReader,
        settings: FetchSettings,
        uniform: Callable[[float, float], float],
    ) -> None:
        self._assignment = assignment
        self._reader = reader
        self._plans = plans
        self._settings = settings
        self._uniform = uniform
        self._blobs: dict[bytes, bytes] = {}
        self._fetcher: BlobFetcher | None = None
        self._is_planned = False
        self.want((assignment.plan, assignment.model, assignment.checkpoint))
        if assignment.roster is not msgspec.UNSET:
            self.want((assignment.roster,))
        self._want_what_the_plan_needs()

    def want(self, refs: Iterable[BlobRef]) -> None:
        """Needs these blobs too."""
        lacking: list[BlobRef] = []
        for ref in refs:
            data = self._reader.get(ref.sha256)
            if data is None:
                lacking.append(ref)
            else:
                self._blobs[ref.sha256] = data
        if lacking and self._fetcher is None:
            self._fetcher = BlobFetcher((), settings=self._settings, uniform=self._uniform)
        if lacking and self._fetcher is not None:
            self._fetcher.add(lacking)

    def _want_what_the_plan_needs(self) -> None:
        data = self._blobs.get(self._assignment.plan.sha256)
        if data is None or self._is_planned:
            return
        self._is_planned = True
        with contextlib.suppress(WireError):  # `make_job` says so
            self.want(self._plans.read(self._assignment.plan.sha256, data).sealing_blobs)

    @property
    def is_ready(self) -> bool:
        """Whether everything is at hand."""
        return self._fetcher is None or self._fetcher.is_done

    def next_wakeup(self) -> float:
        """When ``requests`` is due: 0 is at once, infinity never."""
        return math.inf if self._fetcher is None else self._fetcher.next_wakeup()

    def requests(self, now: float) -> Sequence[FetchRequest]:
        """What to ask the coordinator for now."""
        return () if self._fetcher is None else self._fetcher.requests(now)

    def reconnect(self) -> None:
        """After a new connection: ask again for what was under way."""
        if self._fetcher is not None:
            self._fetcher.reconnect()

    def take(self, message: Piece | PieceList, now: float) -> Taken:
        """Takes a piece or a list of piece digests."""
        return Taken.USELESS if self._fetcher is None else self._fetcher.take(message, now)

    def pop_blob(self) -> tuple[BlobRef, bytes] | None:
        """A blob that has just become whole, to be saved; it is kept here too.

        Raises:
            BlobError: The reference contradicts itself and can never be fetched.
        """
        fetched = self._fetcher.pop_blob() if self._fetcher is not None else None
        if fetched is not None:
            self._blobs[fetched[0].sha256] = fetched[1]
            self._want_what_the_plan_needs()
        return fetched

    def make_job(self, *, device_id: str) -> TrainingJob:
        """The job, when ``is_ready``.

        Raises:
            WireError: The plan is none, the checkpoint is not what the plan says, or the roster is none.
        """
        assignment = self._assignment
        plan = self._plans.read(assignment.plan.sha256, self._blobs[assignment.plan.sha256])
        return TrainingJob(
            kind=assignment.kind,
            plan=plan,
            model=self._blobs[assignment.model.sha256],
            checkpoint=decode_tensors(self._blobs[assignment.checkpoint.sha256], plan.weights),
            round_id=assignment.round_id,
            device_id=device_id,
            nonce=assignment.nonce,
            clipping_norm=None if assignment.clipping_norm is msgspec.UNSET else assignment.clipping_norm,
            task_id=assignment.task_id,
            plan_sha256=assignment.plan.sha256,
            roster=self._roster(),
            sealing_blobs={ref.sha256: self._blobs[ref.sha256] for ref in plan.sealing_blobs},
        )

    def _roster(self) -> tuple[str, ...]:
        ref = self._assignment.roster
        if ref is msgspec.UNSET:
            return ()
        try:
            return decode_roster(self._blobs[ref.sha256])
        except SecureSumError as error:
            raise MalformedMessage(str(error)) from error
