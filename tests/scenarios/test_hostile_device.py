"""A hostile device's messages are refused, counted by reason, and crash nothing; an honest round goes on beside it.

Over 400 lines, because one bench serves every test in it.
"""

import random

import numpy as np
import pytest

from broker_link.link import Incoming, LinkUp
from coordinator.actions import Fold, FoldMetrics, Publish, RoundEnded, RoundOrder
from coordinator.admission import AdmissionPolicy
from coordinator.fleet import FleetCoordinator
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import RoundEvent, RoundState
from coordinator.task_bundle import TaskBundle
from wire_protocol.blobs import split_blob
from wire_protocol.limits import MAX_CONTROL_BYTES
from wire_protocol.messages import (
    Assignment,
    CheckIn,
    Metrics,
    Piece,
    PieceRequest,
    Receipt,
    ReceiptStatus,
    Refusal,
    RejectionReason,
    Report,
    RoundClosed,
    RoundKind,
    Withdrawal,
    WithdrawalReason,
    decode_message,
    encode_message,
    message_kind,
)
from wire_protocol.model_contract import CONTRACT_VERSION
from wire_protocol.plan import TensorSpec, TrainingPlan
from wire_protocol.tensors import encode_tensors
from wire_protocol.topics import device_down, device_up, population_round

SHAPE = (40, 10)
PLAN = TrainingPlan(
    batch_size=4, learning_rate=0.1, input_shape=(40,), num_classes=10, weights=(TensorSpec(shape=SHAPE),)
)
WEIGHTS = (np.zeros(SHAPE, np.float32),)
BUNDLE = TaskBundle(plan=PLAN, model_bytes=b"model" * 100, initial_weights=WEIGHTS)


class Bench:
    """A coordinator in a round with the given devices, and the means to send it bytes as any of them."""

    def __init__(self, *devices: str, kind: RoundKind = RoundKind.TRAIN, **policy) -> None:
        settings = {"report_goal": len(devices), "min_reports": 1, "over_selection": 1.0, "report_timeout_s": 100.0}
        self.fleet = FleetCoordinator(
            population="p",
            bundle=BUNDLE,
            policy=RoundPolicy(**(settings | policy)),
            admission=AdmissionPolicy(max_update_norm=50.0),
            rng=random.Random(0),
            token=random.Random(1).randbytes,
        )
        self.folded: list[str] = []
        self.sent: list[Publish] = []
        self.ended: list[RoundState] = []
        self.now = 0.0
        self.run(self.fleet.handle(LinkUp(), now=self.now))
        for device in devices:
            self.check_in(device)
        order = RoundOrder(round_id=1, kind=kind, checkpoint=encode_tensors(WEIGHTS))
        self.run(self.fleet.open_round(order, now=self.now))

    def run(self, actions) -> None:
        for action in actions:
            match action:
                case Publish():
                    self.sent.append(action)
                case Fold() | FoldMetrics():
                    self.folded.append(action.device_id)
                    self.run(self.fleet.folded(action.device_id, now=self.now))
                case RoundEnded():
                    self.ended.append(action.round.state)

    def raw(self, topic: str, payload: bytes) -> None:
        self.run(self.fleet.handle(Incoming(topic=topic, payload=payload), now=self.now))

    def send(self, device: str, message) -> None:
        self.raw(device_up("p", device, message_kind(message)), encode_message(message))

    def check_in(self, device: str) -> None:
        nonce = device.encode().ljust(16, b".")
        self.send(
            device, CheckIn(nonce=nonce, task_id=BUNDLE.task_id, client_version="t", contract_version=CONTRACT_VERSION)
        )

    def last(self, device: str, kind):
        topic = device_down("p", device, message_kind(kind))
        found = [message for message in self.sent if message.topic == topic]
        return decode_message(found[-1].payload, kind) if found else None

    def report(self, device: str, tensors=None, **changes) -> None:
        """Sends an honest report, with the changes a hostile device would make."""
        data = changes.pop("data", None) or encode_tensors(tensors or (np.ones(SHAPE, np.float32),))
        blob = split_blob(data, piece_bytes=1024)
        assignment = self.last(device, Assignment)
        fields = {
            "round_id": 1 if assignment is None else assignment.round_id,
            "nonce": bytes(16) if assignment is None else assignment.nonce,
            "update": blob.ref,
            "piece_digests": blob.piece_digests if blob.ref.num_pieces > 1 else b"",
            "num_examples": 10,
            "aggregation_weight": 10.0,
            "metrics": Metrics(loss_sum=5.0, num_correct=3.0, weight_sum=10.0),
        } | changes
        self.send(device, Report(**fields))
        for index in range(blob.ref.num_pieces):
            self.send(device, Piece(sha256=blob.ref.sha256, index=index, data=blob.piece(index)))

    def count(self, reason: RejectionReason) -> int:
        return self.fleet.intake.rejections[reason]


def _with(value: float):
    tensor = np.zeros(SHAPE, np.float32)
    tensor[3, 3] = value
    return (tensor,)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        (RejectionReason.NON_FINITE, {"tensors": _with(np.nan)}),
        (RejectionReason.NON_FINITE, {"tensors": _with(np.inf)}),
        (RejectionReason.NORM_TOO_LARGE, {"tensors": _with(51.0)}),
        (RejectionReason.NORM_TOO_LARGE, {"tensors": _with(3e38)}),
        (RejectionReason.WRONG_SHAPE, {"tensors": (np.ones((10, 40), np.float32),)}),
        (RejectionReason.WRONG_SHAPE, {"tensors": (np.ones((4, 10), np.float32),)}),
        (RejectionReason.OVERSIZED, {"tensors": (np.ones((400, 100), np.float32),)}),
        (RejectionReason.MALFORMED, {"data": b"not tensors at all"}),
        (RejectionReason.MALFORMED, {"piece_digests": b"x"}),
        (RejectionReason.BAD_HASH, {"piece_digests": bytes(64)}),
        (RejectionReason.WRONG_ROUND, {"round_id": 2}),
        (RejectionReason.NOT_ASSIGNED, {"nonce": b"forged.nonce...."}),
        (RejectionReason.BAD_WEIGHT, {"aggregation_weight": 10.5}),
        (RejectionReason.BAD_WEIGHT, {"aggregation_weight": 0.0}),
        (RejectionReason.BAD_WEIGHT, {"num_examples": 0}),
        (RejectionReason.BAD_WEIGHT, {"num_examples": 10**9}),
        (RejectionReason.BAD_METRICS, {"metrics": Metrics(loss_sum=1.0, num_correct=11.0, weight_sum=10.0)}),
        (RejectionReason.BAD_METRICS, {"metrics": Metrics(loss_sum=1.0, num_correct=0.0, weight_sum=1e9)}),
        (RejectionReason.BAD_METRICS, {"metrics": Metrics(loss_sum=-1.0, num_correct=0.0, weight_sum=10.0)}),
        (RejectionReason.WRONG_SHAPE, {"update": None, "piece_digests": b""}),
    ],
)
def test_a_bad_report_is_rejected_for_its_reason_and_the_honest_round_commits(reason, changes):
    bench = Bench("evil", "good")
    bench.report("evil", **changes)
    assert bench.count(reason) == 1
    assert "evil" not in bench.folded
    receipt = bench.last("evil", Receipt)
    assert (receipt.status, receipt.reason) == (ReceiptStatus.REJECTED, reason)
    bench.report("good")
    assert bench.folded == ["good"]
    bench.now = 200.0
    bench.run(bench.fleet.tick(now=bench.now))
    assert bench.ended == [RoundState.AGGREGATING]


def test_a_piece_that_is_not_the_announced_one_rejects_the_report():
    bench = Bench("evil", "good")
    data = encode_tensors((np.ones(SHAPE, np.float32),))
    blob = split_blob(data, piece_bytes=1024)
    assignment = bench.last("evil", Assignment)
    bench.send(
        "evil",
        Report(
            round_id=1,
            nonce=assignment.nonce,
            update=blob.ref,
            piece_digests=blob.piece_digests,
            num_examples=1,
            aggregation_weight=1.0,
            metrics=Metrics(loss_sum=0.0, num_correct=0.0, weight_sum=1.0),
        ),
    )
    bench.send("evil", Piece(sha256=blob.ref.sha256, index=0, data=bytes(1024)))
    assert bench.count(RejectionReason.BAD_HASH) == 1
    assert bench.fleet.uploads.num_bytes == 0


def test_a_device_outside_the_cohort_is_not_assigned():
    bench = Bench("good")
    bench.report("stranger")
    assert bench.count(RejectionReason.NOT_ASSIGNED) == 1
    assert bench.folded == []


def test_a_stolen_nonce_is_useless_on_another_devices_topic():
    bench = Bench("good", "evil")
    bench.report("evil", nonce=bench.last("good", Assignment).nonce)
    assert bench.count(RejectionReason.NOT_ASSIGNED) == 1
    assert bench.folded == []


def test_a_report_that_comes_twice_is_folded_once_and_accepted_twice():
    bench = Bench("good", "slow")
    bench.report("good")
    bench.report("good")
    assert bench.folded == ["good"]
    assert bench.count(RejectionReason.DUPLICATE) == 1
    assert bench.last("good", Receipt).status is ReceiptStatus.ACCEPTED


def test_a_late_report_is_refused_as_late_also_when_the_next_round_is_open():
    bench = Bench("slow", "good", report_goal=1, over_selection=2.0)
    bench.report("good")
    assert bench.ended == [RoundState.AGGREGATING]
    bench.report("slow")
    assert bench.count(RejectionReason.LATE) == 1
    bench.fleet.close_round(RoundEvent.RESULT_STORED, now=1.0)
    bench.report("slow")
    assert bench.count(RejectionReason.LATE) == 2
    assert bench.folded == ["good"]


def test_a_device_that_missed_its_receipt_is_told_accepted_after_the_round_too():
    bench = Bench("good", report_goal=1)
    bench.report("good")
    bench.fleet.close_round(RoundEvent.RESULT_STORED, now=1.0)
    bench.sent.clear()
    bench.report("good", round_id=1, nonce=bench.fleet.intake._rounds[1].cohort["good"].nonce)
    assert bench.last("good", Receipt).status is ReceiptStatus.ACCEPTED
    assert bench.folded == ["good"]


def test_an_evaluation_report_with_an_update_is_refused():
    bench = Bench("evil", "good", kind=RoundKind.EVALUATE)
    bench.report("evil")
    assert bench.count(RejectionReason.WRONG_SHAPE) == 1
    bench.report("good", update=None, piece_digests=b"")
    assert bench.folded == ["good"]


@pytest.mark.parametrize("size", [0, 1, 3, 100, MAX_CONTROL_BYTES + 1, 3_000_000])
@pytest.mark.parametrize("kind", ["report", "piece", "check-in", "piece-request", "withdrawal", "nonsense", "status"])
def test_garbage_of_any_size_on_any_topic_is_counted_and_ignored(size, kind):
    bench = Bench("good")
    garbage = random.Random(size).randbytes(size)
    bench.raw(f"fw/v1/p/d/evil/up/{kind}", garbage)
    bench.raw("fw/v1/p/d/evil/status", garbage)
    bench.raw(f"fw/v1/p/d/evil/sideways/{kind}", garbage)
    bench.raw("fw/v1/p/d/../up/report", garbage)
    assert sum(bench.fleet.num_undecodable.values()) == 4
    bench.report("good")
    assert bench.folded == ["good"]


def test_requests_for_blobs_and_pieces_that_do_not_exist_are_answered_with_nothing():
    bench = Bench("good")
    before = len(bench.sent)
    bench.send("evil", PieceRequest(sha256=bytes(32), indices=(0, 1)))
    model = bench.last("good", Assignment).model
    bench.send("evil", PieceRequest(sha256=model.sha256, indices=(2000,)))
    assert len(bench.sent) == before
    assert bench.fleet.shelf.num_unknown_requests == 1


def test_uploads_never_hold_more_than_their_budget():
    devices = [f"d{i}" for i in range(20)]
    bench = Bench(*devices)
    bench.fleet.uploads._budget_bytes = 5000
    data = encode_tensors((np.ones(SHAPE, np.float32),))
    blob = split_blob(data, piece_bytes=1024)
    for device in devices:
        report = Report(
            round_id=1,
            nonce=bench.last(device, Assignment).nonce,
            update=blob.ref,
            piece_digests=blob.piece_digests,
            num_examples=1,
            aggregation_weight=1.0,
            metrics=Metrics(loss_sum=0.0, num_correct=0.0, weight_sum=1.0),
        )
        bench.send(device, report)
        assert bench.fleet.uploads.num_bytes <= 5000
    assert bench.last("d19", Receipt).status is ReceiptStatus.BUSY
    for device in devices:
        bench.report(
            device,
            num_examples=1,
            aggregation_weight=1.0,
            metrics=Metrics(loss_sum=0.0, num_correct=0.0, weight_sum=1.0),
        )
    assert len(bench.folded) == len(devices)


def test_a_flood_of_check_ins_is_bounded_and_the_rest_get_a_retry_window():
    bench = Bench("good", report_goal=1)
    for number in range(500):
        bench.check_in(f"d{number}")
    assert bench.fleet.population.num_waiting <= 4
    refusal = bench.last("d499", Refusal)
    assert 0 < refusal.retry_min_s < refusal.retry_max_s


def test_a_lost_assignment_is_sent_again_with_the_same_nonce():
    bench = Bench("good", "other")
    first = bench.last("good", Assignment)
    bench.now = 40.0
    bench.check_in("good")
    again = bench.last("good", Assignment)
    assert (again.nonce, again.round_id) == (first.nonce, first.round_id)
    assert again.deadline_s == pytest.approx(60.0)


def test_a_withdrawal_needs_the_nonce_of_the_assignment():
    bench = Bench("good", "other")
    forged = Withdrawal(round_id=1, nonce=bytes(16), reason=WithdrawalReason.DEADLINE)
    bench.send("good", forged)
    bench.report("good")
    assert bench.folded == ["good"]
    real = Withdrawal(round_id=1, nonce=bench.last("other", Assignment).nonce, reason=WithdrawalReason.TOO_FEW_EXAMPLES)
    bench.send("other", real)
    assert bench.ended == [RoundState.AGGREGATING]


def test_everyone_is_told_which_round_has_closed():
    bench = Bench("good", "slow", report_goal=1, over_selection=2.0)
    bench.report("good")
    closed = [message for message in bench.sent if message.topic == population_round("p")]
    assert [decode_message(message.payload, RoundClosed).round_id for message in closed] == [1]


def test_an_evaluation_report_after_the_deadline_but_before_the_tick_ends_the_round_cleanly():
    bench = Bench("good", "slow", kind=RoundKind.EVALUATE)
    bench.now = 100.5
    bench.report("good", update=None, piece_digests=b"")
    assert bench.folded == ["good"]
    assert bench.ended == [RoundState.AGGREGATING]


def test_a_round_does_not_end_between_an_admitted_update_and_its_fold():
    bench = Bench("good", "slow")
    perform, handed_out = bench.run, []
    bench.run = handed_out.extend
    bench.now = 99.0
    bench.report("good")
    assert any(isinstance(action, Fold) for action in handed_out)
    bench.now = 101.0
    assert bench.fleet.tick(now=bench.now) == []
    bench.report("good")
    assert sum(isinstance(action, Fold) for action in handed_out) == 1
    bench.run = perform
    perform(handed_out)
    assert bench.folded == ["good"]
    assert bench.ended == [RoundState.AGGREGATING]


def test_the_last_piece_of_an_update_is_late_once_the_round_takes_no_more():
    bench = Bench("slow", "good", report_goal=1, over_selection=2.0)
    blob = split_blob(encode_tensors((np.ones(SHAPE, np.float32),)), piece_bytes=1024)
    last = blob.ref.num_pieces - 1
    report = Report(
        round_id=1,
        nonce=bench.last("slow", Assignment).nonce,
        update=blob.ref,
        piece_digests=blob.piece_digests,
        num_examples=1,
        aggregation_weight=1.0,
        metrics=Metrics(loss_sum=0.0, num_correct=0.0, weight_sum=1.0),
    )
    bench.send("slow", report)
    for index in range(last):
        bench.send("slow", Piece(sha256=blob.ref.sha256, index=index, data=blob.piece(index)))
    bench.report("good")
    assert bench.ended == [RoundState.AGGREGATING]
    bench.send("slow", Piece(sha256=blob.ref.sha256, index=last, data=blob.piece(last)))
    assert bench.last("slow", Receipt).reason is RejectionReason.LATE
    assert bench.folded == ["good"]
    assert bench.fleet.uploads.num_bytes == 0


def test_a_device_that_stops_in_the_middle_of_its_upload_does_not_keep_the_others_out_of_the_budget():
    bench = Bench("dead", "good", report_goal=2, min_reports=1)
    bench.fleet.uploads._budget_bytes = 2000
    blob = split_blob(encode_tensors((np.zeros(SHAPE, np.float32),)), piece_bytes=1024)
    report = Report(
        round_id=1,
        nonce=bench.last("dead", Assignment).nonce,
        update=blob.ref,
        piece_digests=blob.piece_digests,
        num_examples=1,
        aggregation_weight=1.0,
        metrics=Metrics(loss_sum=0.0, num_correct=0.0, weight_sum=1.0),
    )
    bench.send("dead", report)
    bench.report("good")
    assert bench.last("good", Receipt).status is ReceiptStatus.BUSY
    bench.now = 20.0
    bench.send("dead", Piece(sha256=blob.ref.sha256, index=0, data=blob.piece(0)))
    bench.now = 49.0
    bench.report("good")
    assert bench.folded == []
    bench.now = 51.0
    bench.report("good")
    assert bench.folded == ["good"]
    bench.send("dead", report)
    bench.send("dead", report)
    assert bench.last("dead", Receipt).missing == tuple(range(blob.ref.num_pieces))


def test_a_refusal_can_be_decoded_however_many_devices_were_made_up():
    bench = Bench("good", report_goal=1)
    bench.fleet.population._known = {str(number) for number in range(1_000_000)}
    bench.fleet._last_round_s = 600.0
    for number in range(5):
        bench.check_in(f"d{number}")
    refusal = bench.last("d4", Refusal)
    assert 600.0 <= refusal.retry_min_s < refusal.retry_max_s


def test_a_cancelled_round_is_told_to_those_who_still_train_for_it():
    bench = Bench("slow", "good")
    bench.run(bench.fleet.close_round(RoundEvent.CANCELLED, now=1.0))
    closed = [message for message in bench.sent if message.topic == population_round("p")]
    assert [decode_message(message.payload, RoundClosed).round_id for message in closed] == [1]


def test_the_size_of_a_cohort_is_fixed_when_its_round_opens():
    bench = Bench(report_goal=2, over_selection=1.5)
    bench.fleet.completion._outcomes.extend([False] * 1000)
    for device in ("a", "b", "c"):
        bench.check_in(device)
    assert len(bench.fleet.current_round.cohort) == 3


def test_a_fleet_that_seldom_answers_is_not_asked_for_more_devices_than_may_wait():
    bench = Bench("a", report_goal=1, over_selection=2.0, max_waiting_per_cohort=1.0)
    bench.run(bench.fleet.close_round(RoundEvent.CANCELLED, now=0.0))
    bench.fleet.completion._outcomes.extend([False] * 1000)
    bench.run(bench.fleet.open_round(RoundOrder(round_id=2, kind=RoundKind.TRAIN, checkpoint=b"w"), now=0.0))
    bench.check_in("b")
    bench.check_in("c")
    assert {"b", "c"} & set(bench.fleet.current_round.cohort)


def test_a_cohort_that_is_named_is_asked_as_it_is_whatever_the_completion_rate():
    bench = Bench("x", report_goal=1)
    bench.run(bench.fleet.close_round(RoundEvent.CANCELLED, now=0.0))
    bench.fleet.completion._outcomes.extend([False] * 1000)
    order = RoundOrder(
        round_id=2, kind=RoundKind.TRAIN, checkpoint=encode_tensors(WEIGHTS), only=frozenset({"a", "b", "c"})
    )
    bench.run(bench.fleet.open_round(order, now=0.0))
    for device in ("a", "b", "z", "c"):
        bench.check_in(device)
    assert set(bench.fleet.current_round.cohort) == {"a", "b", "c"}


def test_a_revoked_device_loses_its_place_but_not_what_was_counted():
    bench = Bench("a", "b", "c", report_goal=3)
    bench.report("a")
    assert bench.folded == ["a"]
    bench.run(bench.fleet.expel("a", now=bench.now))
    bench.run(bench.fleet.expel("b", now=bench.now))
    assert bench.fleet.current_round.num_folded == 1
    assert bench.ended == []
    bench.report("c")
    assert bench.folded == ["a", "c"]
    assert bench.ended == [RoundState.AGGREGATING], "nobody waits for the one that was shut out"


def test_a_revoked_device_that_waits_is_not_drawn():
    bench = Bench("a", "b")
    bench.check_in("z")
    assert bench.fleet.population.num_waiting == 1
    bench.run(bench.fleet.expel("z", now=bench.now))
    assert bench.fleet.population.num_waiting == 0


def test_a_fleet_that_reports_fast_gets_less_time_in_the_next_round():
    bench = Bench("a", report_goal=1, report_timeout_s=3600.0)
    assert bench.last("a", Assignment).deadline_s == 3600.0
    for _ in range(19):
        bench.fleet.completion.note_report(100.0)
    bench.now = 100.0
    bench.report("a")
    bench.run(bench.fleet.close_round(RoundEvent.RESULT_STORED, now=bench.now))
    bench.run(bench.fleet.open_round(RoundOrder(round_id=2, kind=RoundKind.TRAIN, checkpoint=b"w"), now=bench.now))
    bench.check_in("a")
    assert bench.last("a", Assignment).deadline_s == 200.0
