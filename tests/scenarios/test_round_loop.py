"""The round loop makes a state durable before any device can see it, and goes on after a failure."""

import random

import msgspec
import numpy as np
import pytest

from broker_link.link import Incoming, LinkUp
from coordinator.aggregation_spec import AggregationSpec
from coordinator.errors import AggregationError
from coordinator.fleet import FleetCoordinator
from coordinator.late_aggregator import LateAggregator
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.round_ids import RoundIds
from coordinator.round_journal import RoundJournal
from coordinator.round_loop import RoundLoop, RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import RoundState
from coordinator.task_bundle import TaskBundle
from wire_protocol.blobs import split_blob
from wire_protocol.messages import (
    Assignment,
    CheckIn,
    Metrics,
    Piece,
    Receipt,
    ReceiptStatus,
    Refusal,
    RefusalReason,
    RejectionReason,
    Report,
    RoundKind,
    decode_message,
    encode_message,
    message_kind,
)
from wire_protocol.model_contract import CONTRACT_VERSION
from wire_protocol.plan import TensorSpec, TrainingPlan
from wire_protocol.tensors import encode_tensors
from wire_protocol.topics import device_up

PLAN = TrainingPlan(batch_size=4, learning_rate=0.1, input_shape=(2,), num_classes=2, weights=(TensorSpec(shape=(2,)),))
BUNDLE = TaskBundle(plan=PLAN, model_bytes=b"m", initial_weights=(np.zeros(2, np.float32),))


class Bench:
    """A loop with one device, and a log of what was stored and what was published, in order."""

    def __init__(
        self, *, aggregator=None, num_commits=2, state=None, round_ids=None, journal=None, evaluate_every=0,
        report_goal=1, min_reports=1,
    ) -> None:  # fmt: skip
        self.now = 1.0
        self.holder = "d"
        self.log: list[str] = []
        self.assignments: list[Assignment] = []
        self.refusals: list[Refusal] = []
        self.receipts: list[tuple[str, ReceiptStatus, RejectionReason | None]] = []
        self.summaries = []
        mean = NumpyMeanAggregator(PLAN.weights, AggregationSpec())
        self.loop = RoundLoop(
            fleet=FleetCoordinator(
                population="p",
                bundle=BUNDLE,
                policy=RoundPolicy(report_goal=report_goal, min_reports=min_reports, over_selection=1.0),
                rng=random.Random(0),
                token=random.Random(0).randbytes,
            ),
            aggregator=aggregator or mean,
            state=state or mean.initialize(BUNDLE.initial_weights),
            schedule=RoundSchedule(num_commits=num_commits, evaluate_every=evaluate_every, max_abandoned_in_a_row=3),
            store=self,
            publish=self.publish,
            round_ids=round_ids or RoundIds(),
            journal=journal,
            on_round=lambda summary, state: self.summaries.append((summary, state)),
        )
        self.loop.handle(LinkUp(), now=0.0)
        self.loop.start(now=0.0)

    def save(self, state) -> None:
        self.log.append(f"stored {state.num_commits}")

    def publish(self, topic, payload, retain) -> None:
        if topic.endswith("/assignment"):
            self.assignments.append(decode_message(payload, Assignment))
            self.holder = topic.split("/")[4]
            self.log.append(f"assigned round {self.assignments[-1].round_id}")
        if topic.endswith("/receipt"):
            receipt = decode_message(payload, Receipt)
            self.receipts.append((topic.split("/")[4], receipt.status, receipt.reason))
        if topic.endswith("/refusal"):
            self.refusals.append(decode_message(payload, Refusal))

    def send(self, message, device="d") -> None:
        topic = device_up("p", device, message_kind(message))
        self.loop.handle(Incoming(topic=topic, payload=encode_message(message)), now=self.now)

    def check_in(self, device="d") -> None:
        self.send(
            CheckIn(nonce=bytes(16), task_id=BUNDLE.task_id, client_version="", contract_version=CONTRACT_VERSION),
            device,
        )

    def evaluation(self) -> None:
        last = self.assignments[-1]
        metrics = Metrics(loss_sum=1.0, num_correct=0.0, weight_sum=1.0)
        report = Report(
            round_id=last.round_id, nonce=last.nonce, update=None, piece_digests=b"", num_examples=1,
            aggregation_weight=1.0, metrics=metrics,
        )  # fmt: skip
        self.send(report, self.holder)

    def report(self, value: float, *, pieces_at: float | None = None) -> None:
        blob = split_blob(encode_tensors((np.full(2, value, np.float32),)))
        last = self.assignments[-1]
        report = Report(
            round_id=last.round_id,
            nonce=last.nonce,
            update=blob.ref,
            piece_digests=b"",
            num_examples=1,
            aggregation_weight=1.0,
            metrics=Metrics(loss_sum=1.0, num_correct=0.0, weight_sum=1.0),
        )
        self.send(report, self.holder)
        self.now = pieces_at or self.now
        self.send(Piece(sha256=blob.ref.sha256, index=0, data=blob.data), self.holder)


def test_a_state_is_durable_before_a_device_is_sent_its_checkpoint():
    bench = Bench()
    for value in (1.0, 0.5):
        bench.check_in()
        bench.report(value)
    assert bench.log == ["assigned round 1", "stored 1", "assigned round 2", "stored 2"]
    assert bench.loop.is_done
    np.testing.assert_allclose(bench.loop.state.weights[0], [1.5, 1.5])


def test_a_state_that_cannot_be_stored_stops_the_loop_and_reaches_no_device():
    bench = Bench()

    def full_disk(state):
        raise OSError("no space left on device")

    bench.save = full_disk
    bench.loop._store = bench
    bench.check_in()
    with pytest.raises(OSError, match="no space"):
        bench.report(1.0)
    assert bench.log == ["assigned round 1"]


def test_a_failing_aggregation_abandons_the_round_and_the_next_one_starts_from_the_old_state():
    class FailsOnce(NumpyMeanAggregator):
        failed = False

        def begin(self, state):
            accumulator = super().begin(state)
            if not FailsOnce.failed:
                FailsOnce.failed = True

                def finish():
                    raise AggregationError("a fault")

                accumulator.finish = finish
            return accumulator

    bench = Bench(aggregator=FailsOnce(PLAN.weights, AggregationSpec()), num_commits=1)
    bench.check_in()
    bench.report(7.0)
    assert bench.summaries[0][0].state is RoundState.ABANDONED
    assert bench.summaries[0][0].abandon_reason == "aggregation_failed"
    bench.check_in()
    bench.report(1.0)
    assert bench.summaries[1][0].state is RoundState.COMMITTED
    assert bench.summaries[1][0].round_id == 2
    np.testing.assert_allclose(bench.loop.state.weights[0], [1.0, 1.0])


def test_a_restarted_loop_counts_the_commits_before_the_restart():
    first = Bench()
    first.check_in()
    first.report(1.0)
    again = Bench(state=first.loop.state)
    assert again.loop.num_commits == 1
    again.check_in()
    again.report(1.0)
    assert again.loop.is_done


def test_devices_that_wait_at_the_end_are_told_that_no_round_is_coming():
    bench = Bench(num_commits=1)
    bench.check_in()
    nonce = bench.assignments[-1].nonce
    bench.send(
        CheckIn(nonce=bytes(15) + b"x", task_id=BUNDLE.task_id, client_version="", contract_version=CONTRACT_VERSION)
    )
    assert bench.assignments[-1].nonce == nonce
    topic = device_up("p", "e", "check-in")
    waiting = CheckIn(nonce=b"e" * 16, task_id=BUNDLE.task_id, client_version="", contract_version=CONTRACT_VERSION)
    bench.loop.handle(Incoming(topic=topic, payload=encode_message(waiting)), now=1.0)
    bench.report(1.0)
    assert [refusal.reason for refusal in bench.refusals] == [RefusalReason.NO_ROUND]


def test_round_ids_are_never_reused_across_restarts(tmp_path):
    path = tmp_path / "last_round_id"
    ids = RoundIds(path)
    assert [ids.next_id(), ids.next_id()] == [1, 2]
    assert RoundIds(path).next_id() == 3
    assert RoundIds(path, start=10).next_id() == 11


@pytest.mark.parametrize("min_reports", [1, 2])
def test_the_last_piece_of_an_update_after_the_deadline_and_before_the_tick_still_counts(min_reports):
    bench = Bench(num_commits=1, report_goal=2, min_reports=min_reports)
    bench.check_in()
    bench.check_in("e")
    bench.report(1.0, pieces_at=700.0)
    bench.loop.tick(now=bench.now)
    ended = RoundState.COMMITTED if min_reports == 1 else RoundState.ABANDONED
    assert [(summary.state, summary.num_reports) for summary, _ in bench.summaries] == [(ended, 1)]


def test_devices_with_assignments_of_a_coordinator_that_was_killed_are_answered_and_asked_again():
    killed = Bench()
    killed.check_in()
    ids = RoundIds(start=1)
    bench = Bench(round_ids=ids)
    bench.assignments = list(killed.assignments)
    bench.report(5.0)
    assert bench.loop.rejections[RejectionReason.WRONG_ROUND] == 1
    bench.check_in()
    assert bench.assignments[-1].round_id == 2
    bench.report(1.0)
    np.testing.assert_allclose(bench.loop.state.weights[0], [1.0, 1.0])


def test_an_evaluation_that_a_kill_prevented_is_made_up_for_and_made_once(tmp_path):
    killed = Bench(num_commits=1)
    killed.check_in()
    killed.report(1.0)
    with RoundJournal(tmp_path / "journal.sqlite") as journal:
        again = Bench(num_commits=1, evaluate_every=1, state=killed.loop.state, journal=journal)
        assert not again.loop.is_done
        again.check_in()
        again.evaluation()
        assert again.loop.is_done
        assert [summary.kind for summary, _ in again.summaries] == [RoundKind.EVALUATE]
        assert Bench(num_commits=1, evaluate_every=1, state=killed.loop.state, journal=journal).loop.is_done


LATE = (ReceiptStatus.REJECTED, RejectionReason.LATE)


def test_a_report_that_came_too_late_stays_out_although_the_coordinator_restarts_while_it_waits_for_its_aggregator(
    tmp_path,
):
    """Told late, and then counted after all, would be a broken promise: the journal knows that reporting is over."""
    never = LateAggregator(lambda: NumpyMeanAggregator(PLAN.weights, AggregationSpec()))
    with RoundJournal(tmp_path / "journal.sqlite") as journal:
        bench = Bench(aggregator=never, journal=journal, report_goal=2, num_commits=1)
        for device in ("a", "b"):
            bench.check_in(device)
        by_holder = {device: member.nonce for device, member in bench.loop._fleet.current_round.cohort.items()}
        last = bench.assignments[-1]
        for bench.holder in ("a", "b"):
            bench.now += 10.0 if bench.holder == "a" else 700.0
            bench.loop.tick(now=bench.now)
            bench.assignments[-1] = msgspec.structs.replace(last, nonce=by_holder[bench.holder])
            bench.report(1.0)
        assert bench.receipts == [("a", ReceiptStatus.ACCEPTED, None), ("b", *LATE)]
        assert bench.log == ["assigned round 1", "assigned round 1"]
    with RoundJournal(tmp_path / "journal.sqlite") as journal:
        late = LateAggregator(lambda: NumpyMeanAggregator(PLAN.weights, AggregationSpec()))
        again = Bench(aggregator=late, journal=journal, report_goal=2, num_commits=1, round_ids=RoundIds(start=1))
        again.assignments, again.holder = bench.assignments, "b"
        again.report(1.0)
        assert again.receipts == [("b", *LATE)]
        late.make_now()
        again.loop.tick(now=again.now)
        assert again.log == ["stored 1"]
        assert again.loop.is_done
        assert again.summaries[-1][0].num_reports == 1


def test_reports_that_cannot_be_read_again_end_the_round_and_the_next_one_is_opened(tmp_path):
    late = LateAggregator(lambda: NumpyMeanAggregator(PLAN.weights, AggregationSpec()))
    with RoundJournal(tmp_path / "journal.sqlite") as journal:
        bench = Bench(aggregator=late, journal=journal, report_goal=2, num_commits=1)
        for device in ("a", "b"):
            bench.check_in(device)
        bench.report(1.0)
        assert [status for _, status, _ in bench.receipts] == [ReceiptStatus.ACCEPTED]
        journal._write("UPDATE contributions SET model_delta = x'00'", ())
        late.make_now()
        bench.loop.tick(now=bench.now)
        assert [(summary.state, summary.abandon_reason) for summary, _ in bench.summaries] == [
            (RoundState.ABANDONED, "aggregation_failed")
        ]
        assert bench.loop._fleet.current_round.round_id == 2


def test_an_aggregator_that_cannot_be_made_ends_the_loop_and_what_was_counted_stays(tmp_path):
    def fail():
        raise AggregationError("compiled for another model")

    late = LateAggregator(fail)
    with RoundJournal(tmp_path / "journal.sqlite") as journal:
        bench = Bench(aggregator=late, journal=journal)
        bench.check_in()
        bench.report(1.0)
        late.make_now()
        with pytest.raises(AggregationError, match="another model"):
            bench.loop.tick(now=bench.now)
        assert [row.device_id for row in journal.contributions(1)] == ["d"]
