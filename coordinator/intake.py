"""The intake of reports: from the first byte of a report to an admitted update or a counted rejection.

Idempotent: a report that comes again (MQTT may deliver twice, and a device that missed its receipt repeats itself)
is answered as before and never folded twice, also after its round is over.
"""

import collections
import dataclasses

from coordinator.actions import Action, Fold, FoldMetrics
from coordinator.admission import AdmissionPolicy, admit_header, admit_sealed, admit_update
from coordinator.errors import UpdateRejected
from coordinator.round_table import Member, MemberState, Round, RoundState
from coordinator.sealed_admission import SealedAdmission
from coordinator.uploads import Upload, Uploads
from wire_protocol.errors import BlobError
from wire_protocol.messages import Piece, Receipt, ReceiptStatus, RejectionReason, Report
from wire_protocol.plan import TrainingPlan

__all__ = ["Answer", "ReportIntake"]

_ROUNDS_REMEMBERED = 8
_BUSY_RETRY_S = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the intake decided about one message: a receipt for the device, an action for the coordinator, or none."""

    receipt: Receipt | None = None
    action: Action | None = None


class ReportIntake:
    """Admits or rejects reports for the current round and for those just over.

    Args:
        plan: What updates must look like.
        policy: Bounds on one device's contribution.
        uploads: Where pieces are put together.
    """

    def __init__(self, *, plan: TrainingPlan, policy: AdmissionPolicy, uploads: Uploads) -> None:
        self._plan = plan
        self._policy = policy
        self._uploads = uploads
        self.sealed: SealedAdmission | None = None
        """What updates of a confidential task must be; set by whoever opens its sums."""
        self._rounds: collections.OrderedDict[int, Round] = collections.OrderedDict()
        self.rejections: collections.Counter[RejectionReason] = collections.Counter()

    def may_report(self, device_id: str) -> bool:
        """Whether a report of this device could count: of a confidential task, whether the key directory has it."""
        return self.sealed is None or device_id in self.sealed.registered

    def add_round(self, round_: Round) -> None:
        """Begins to take reports for a round; the oldest remembered one is forgotten."""
        self._rounds[round_.round_id] = round_
        while len(self._rounds) > _ROUNDS_REMEMBERED:
            self._rounds.popitem(last=False)

    def count(self, reason: RejectionReason) -> None:
        """Counts a rejection that the intake itself never saw (bytes that did not decode)."""
        self.rejections[reason] += 1

    def take_report(self, device_id: str, report: Report, *, now: float) -> Answer:
        """Takes a report's header, at monotonic time ``now`` in seconds."""
        try:
            round_, member = self._find(device_id, report)
        except UpdateRejected as error:
            return self._reject(report, error.reason, None)
        if member.state is MemberState.FOLDED:
            self.count(RejectionReason.DUPLICATE)
            return Answer(receipt=_receipt(report, ReceiptStatus.ACCEPTED))
        if member.state is MemberState.ADMITTED:
            return Answer()  # it is being folded; its receipt follows
        if member.state is MemberState.REJECTED and member.rejection is not None:
            return self._reject(report, member.rejection, member)
        if round_.state is not RoundState.REPORTING:
            return self._reject(report, RejectionReason.LATE, None)
        try:
            admit_header(report, kind=round_.kind, plan=self._plan, policy=self._policy, sealed=self.sealed)
            return self._open(device_id, report, member, now)
        except UpdateRejected as error:
            return self._reject(report, error.reason, member)

    def take_piece(self, device_id: str, piece: Piece, *, now: float) -> Answer:
        """Takes one piece of an update, at monotonic time ``now`` in seconds; the last one brings the decision."""
        open_upload = self._uploads.get(device_id)
        if open_upload is None:
            self._uploads.num_stray_pieces += 1
            return Answer()
        report = open_upload.report
        round_ = self._rounds[report.round_id]
        member = round_.cohort[device_id]
        if round_.state is not RoundState.REPORTING:
            self._uploads.discard(device_id)
            return self._reject(report, RejectionReason.LATE, None)
        try:
            upload = self._uploads.add_piece(device_id, piece, now=now)
            if upload is None or not upload.assembler.is_complete:
                return Answer()
            return _hand_out(self._complete(device_id, upload), member)
        except UpdateRejected as error:
            self._uploads.discard(device_id)
            return self._reject(report, error.reason, member)

    def accepted(self, device_id: str, round_: Round) -> Receipt:
        """The receipt for an update that counts."""
        return Receipt(round_id=round_.round_id, nonce=round_.cohort[device_id].nonce, status=ReceiptStatus.ACCEPTED)

    def _find(self, device_id: str, report: Report) -> tuple[Round, Member]:
        round_ = self._rounds.get(report.round_id)
        if round_ is None:
            raise UpdateRejected(RejectionReason.WRONG_ROUND, f"round {report.round_id} is not open")
        member = round_.cohort.get(device_id)
        if member is None or member.nonce != report.nonce:
            raise UpdateRejected(RejectionReason.NOT_ASSIGNED, "the device holds no such assignment")
        return round_, member

    def _open(self, device_id: str, report: Report, member: Member, now: float) -> Answer:
        if report.update is None:
            return _hand_out(FoldMetrics(device_id=device_id, metrics=report.metrics), member)
        is_first = self._uploads.get(device_id) is None
        upload = self._uploads.open(device_id, report, report.update, now=now)
        if upload is None:
            return Answer(receipt=_receipt(report, ReceiptStatus.BUSY, retry_after_s=_BUSY_RETRY_S))
        if is_first:
            # The pieces follow by themselves; asking for them now would bring each one twice.
            return Answer()
        missing = tuple(upload.assembler.missing())
        return Answer(receipt=_receipt(report, ReceiptStatus.INCOMPLETE, missing=missing))

    def _complete(self, device_id: str, upload: Upload) -> Fold:
        try:
            data = upload.assembler.result()
        except BlobError as error:
            raise UpdateRejected(RejectionReason.BAD_HASH, str(error)) from error
        if self.sealed is not None:
            update = admit_sealed(data, upload.report, device_id=device_id, sealed=self.sealed)
        else:
            update = admit_update(data, upload.report, plan=self._plan, policy=self._policy)
        self._uploads.discard(device_id)
        return Fold(device_id=device_id, update=update, encoded=data)

    def _reject(self, report: Report, reason: RejectionReason, member: Member | None) -> Answer:
        self.count(reason)
        if member is not None and member.state is MemberState.ASSIGNED:
            member.state = MemberState.REJECTED
            member.rejection = reason
        return Answer(receipt=_receipt(report, ReceiptStatus.REJECTED, reason=reason))


def _hand_out(action: Fold | FoldMetrics, member: Member) -> Answer:
    """Hands an admitted report out to be folded."""
    member.state = MemberState.ADMITTED
    return Answer(action=action)


def _receipt(
    report: Report,
    status: ReceiptStatus,
    *,
    reason: RejectionReason | None = None,
    missing: tuple[int, ...] = (),
    retry_after_s: float = 0.0,
) -> Receipt:
    return Receipt(
        round_id=report.round_id,
        nonce=report.nonce,
        status=status,
        reason=reason,
        missing=missing,
        retry_after_s=retry_after_s,
    )
