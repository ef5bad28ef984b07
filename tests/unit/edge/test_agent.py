"""What one device does in the situations that rounds bring, driven event by event.

Over 400 lines, because one bench serves every test in it.
"""

import math

import msgspec
import numpy as np
import pytest

from broker_link.link import Incoming
from edge_client.counts import DeviceCount, RoundEnding
from edge_client.errors import IllegalTransition
from edge_client.events import SaveBlob, TrainingFailed
from edge_client.session import SessionState
from edge_client.settings import AgentSettings
from wire_protocol.limits import DEFAULT_PIECE_BYTES
from wire_protocol.messages import (
    CheckIn,
    Piece,
    PieceListRequest,
    PieceRequest,
    Receipt,
    ReceiptStatus,
    RejectionReason,
    Report,
    RoundClosed,
    RoundKind,
    Withdrawal,
    WithdrawalReason,
    encode_message,
)
from wire_protocol.model_contract import CONTRACT_VERSION
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.tensors import decode_tensors
from wire_protocol.topics import device_down, population_task


def _update(bench, report):
    pieces = {piece.index: piece.data for piece in bench.take(Piece)}
    assert sorted(pieces) == list(range(report.update.num_pieces))
    return b"".join(pieces[index] for index in sorted(pieces))


def test_a_training_round_from_check_in_to_receipt_and_the_next_check_in(bench):
    check_in = bench.check_in()
    assert (check_in.task_id, check_in.contract_version) == ("t1", CONTRACT_VERSION)
    assert bench.statuses == ["online"]
    assignment = bench.assign(check_in)
    assert bench.agent.state is SessionState.ASSIGNED
    bench.serve()
    [job] = bench.jobs
    assert (job.kind, job.round_id, job.device_id, job.plan) == (RoundKind.TRAIN, 1, "d1", bench.plan)
    assert job.model == b"m" * 5000
    assert [tensor.shape for tensor in job.checkpoint] == [(40, 10), (10,)]

    bench.finish(value=0.5)
    [report] = bench.take(Report)
    assert (report.round_id, report.nonce) == (1, assignment.nonce)
    assert (report.num_examples, report.aggregation_weight) == (8, 16.0)
    for tensor in decode_tensors(_update(bench, report), bench.plan.weights):
        assert (tensor == np.float32(0.5)).all()

    bench.receipt(assignment, retry_after_s=30.0)
    assert bench.agent.state is SessionState.IDLE
    assert bench.agent.last_outcome.ending is RoundEnding.ACCEPTED
    assert 30.0 <= bench.agent.next_wakeup() - bench.now <= 31.0
    bench.tick_when_due()
    [again] = bench.take(CheckIn)
    assert again.nonce != check_in.nonce


def test_an_evaluation_round_reports_metrics_without_an_update(bench):
    assignment = bench.reach_training(kind=RoundKind.EVALUATE)
    bench.finish(value=None)
    [report] = bench.take(Report)
    assert report.update is None
    assert report.piece_digests == b""
    assert bench.take(Piece) == []
    bench.receipt(assignment)
    assert bench.agent.counts[RoundEnding.ACCEPTED] == 1


def test_blobs_that_are_here_already_are_not_fetched_again(make_bench):
    first = make_bench()
    first.reach_training()
    second = make_bench(blobs=first.blobs)
    second.assign(second.check_in())
    assert second.take(PieceRequest) == second.take(PieceListRequest) == []
    assert len(second.jobs) == 1


def test_every_fetched_blob_is_saved_once_under_its_hash(bench):
    saved = []
    bench.assign(bench.check_in())
    original = bench.perform
    bench.perform = lambda actions: (saved.extend(a for a in actions if isinstance(a, SaveBlob)), original(actions))
    bench.serve()
    assert {blob.sha256: blob.data for blob in saved} == {blob.ref.sha256: blob.data for blob in bench.split}
    assert len(saved) == 3


def test_a_result_that_no_release_desk_has_made_private_is_not_sent(make_bench):
    spec = PrivacySpec(
        mode="distributed",
        clipping_norm=0.5,
        noise_multiplier=5.0,
        min_contributors=9,
        num_rounds=1,
        target_epsilon=4.0,
    )
    bench = make_bench(plan=msgspec.structs.replace(make_bench().plan, privacy=spec))
    bench.assign(bench.check_in())
    bench.serve()
    with pytest.raises(IllegalTransition, match="not been made private"):
        bench.finish(value=0.5)
    assert bench.take(Report) == []


def test_a_refused_device_comes_back_inside_the_window_with_a_new_nonce(bench):
    check_in = bench.check_in()
    bench.refuse(check_in, window=(10.0, 20.0))
    assert bench.agent.state is SessionState.IDLE
    assert 10.0 <= bench.agent.next_wakeup() - bench.now <= 20.0
    assert bench.tick(5.0) == []
    bench.tick_when_due()
    [again] = bench.take(CheckIn)
    assert again.nonce != check_in.nonce


@pytest.mark.parametrize(("window", "low", "high"), [((0.0, 0.0), 1.0, 1.0), ((1e8, 1e8), 86400.0, 86400.0)])
def test_no_refusal_makes_a_device_spin_or_sends_it_away_for_good(bench, window, low, high):
    bench.refuse(bench.check_in(), window=window)
    refused_at = bench.now
    bench.tick_when_due()
    assert len(bench.take(CheckIn)) == 1
    assert low <= bench.now - refused_at <= high


def test_a_refusal_that_answers_another_check_in_is_ignored_and_counted(bench):
    check_in = bench.check_in()
    bench.refuse(CheckIn(nonce=b"x" * 16, task_id="t1", client_version="", contract_version=CONTRACT_VERSION))
    assert bench.agent.state is SessionState.CHECKED_IN
    bench.refuse(check_in)
    bench.refuse(check_in)
    assert bench.agent.counts[DeviceCount.STALE_REFUSAL] == 2


def test_an_unanswered_check_in_is_repeated_with_the_same_nonce_and_growing_waits(bench):
    check_in = bench.check_in()
    waits = []
    for _ in range(12):
        began = bench.now
        bench.tick_when_due()
        [again] = bench.take(CheckIn)
        assert again == check_in
        waits.append(bench.now - began)
    settings = AgentSettings()
    assert min(waits) >= settings.answer_timeout_s
    assert max(waits) <= settings.answer_timeout_s + settings.answer_backoff_cap_s
    assert max(waits[6:]) > max(waits[:2])
    bench.assign(check_in)
    assert bench.agent.state is SessionState.ASSIGNED


def test_the_retained_task_after_a_reconnection_repeats_the_check_in_at_once(bench):
    check_in = bench.check_in()
    bench.disconnect()
    assert bench.agent.next_wakeup() == math.inf
    bench.tick(1.0)
    bench.connect()
    bench.announce()
    bench.tick_when_due()
    assert bench.take(CheckIn) == [check_in]


def test_an_assignment_that_answers_no_check_in_of_ours_is_ignored_and_counted(bench):
    check_in = bench.check_in()
    bench.assign(CheckIn(nonce=b"x" * 16, task_id="t1", client_version="", contract_version=CONTRACT_VERSION))
    bench.assign(check_in, task_id="other")
    assert bench.agent.state is SessionState.CHECKED_IN
    bench.assign(check_in)
    bench.assign(check_in, round_id=2)
    assert bench.agent.round_id == 1
    assert bench.agent.counts[DeviceCount.STALE_ASSIGNMENT] == 3


def test_a_forged_piece_is_counted_and_the_right_one_still_counts(bench):
    bench.assign(bench.check_in())
    model = bench.split[1]
    bench.take(PieceRequest)
    [request] = [r for r in bench.take(PieceListRequest) if r.sha256 == model.ref.sha256]
    bench.sent = [request]
    bench.serve(limit=0)
    bench.tell(Piece(sha256=model.ref.sha256, index=0, data=b"forged"))
    assert bench.agent.counts[DeviceCount.BAD_PIECE] == 1
    bench.take(PieceRequest)
    bench.tick(25.0)
    bench.serve()
    assert len(bench.jobs) == 1


def test_a_fetch_goes_on_where_the_connection_broke(bench):
    bench.assign(bench.check_in())
    total = sum(blob.ref.num_pieces for blob in bench.split)
    served = bench.serve(limit=4)
    assert served == 4
    bench.disconnect()
    assert bench.tick(15.0) == []
    bench.take(PieceRequest), bench.take(PieceListRequest)
    bench.connect()
    assert bench.serve() == total - served
    assert len(bench.jobs) == 1


def test_an_unanswered_request_is_asked_again(bench):
    bench.assign(bench.check_in())
    first = bench.take(PieceRequest) + bench.take(PieceListRequest)
    bench.tick_when_due()
    again = bench.take(PieceRequest) + bench.take(PieceListRequest)
    assert {r.sha256 for r in again} == {r.sha256 for r in first}


@pytest.mark.parametrize("state", [SessionState.ASSIGNED, SessionState.TRAINING, SessionState.REPORTING])
def test_a_closed_round_ends_everything_done_for_it(bench, state):
    bench.assign(bench.check_in())
    if state is not SessionState.ASSIGNED:
        bench.serve()
    if state is SessionState.REPORTING:
        bench.finish()
    assert bench.agent.state is state
    bench.tell(RoundClosed(round_id=2))
    assert bench.agent.state is state
    bench.tell(RoundClosed(round_id=1))
    assert bench.agent.state is SessionState.IDLE
    assert bench.stopped == ([1] if state is SessionState.TRAINING else [])
    assert bench.agent.last_outcome.ending is RoundEnding.ROUND_CLOSED
    assert bench.take(Withdrawal) == []


def test_the_result_of_a_job_that_was_stopped_is_ignored_and_counted(bench):
    bench.reach_training()
    bench.tell(RoundClosed(round_id=1))
    bench.finish()
    assert bench.take(Report) == []
    bench.tick_when_due()
    bench.assign(bench.take(CheckIn)[0], round_id=2)
    bench.finish(round_id=1)
    assert bench.agent.state is SessionState.TRAINING
    assert bench.agent.counts[DeviceCount.STALE_RESULT] == 2


def test_a_second_receipt_is_ignored_and_counted(bench):
    assignment = bench.reach_training()
    bench.finish()
    bench.receipt(assignment)
    before = bench.agent.next_wakeup()
    bench.receipt(assignment, retry_after_s=1000.0)
    bench.receipt(assignment, ReceiptStatus.REJECTED, reason=RejectionReason.DUPLICATE)
    assert bench.agent.next_wakeup() == before
    assert bench.agent.counts[RoundEnding.ACCEPTED] == 1
    assert bench.agent.counts[DeviceCount.STALE_RECEIPT] == 2


def test_a_receipt_for_another_report_is_ignored(bench):
    assignment = bench.reach_training()
    bench.finish()
    bench.tell(Receipt(round_id=1, nonce=b"z" * 16, status=ReceiptStatus.ACCEPTED))
    bench.tell(Receipt(round_id=2, nonce=assignment.nonce, status=ReceiptStatus.ACCEPTED))
    assert bench.agent.state is SessionState.REPORTING


def test_a_rejection_ends_the_round_and_its_reason_is_kept(bench):
    assignment = bench.reach_training()
    bench.finish()
    bench.receipt(assignment, ReceiptStatus.REJECTED, reason=RejectionReason.NORM_TOO_LARGE)
    assert bench.agent.state is SessionState.IDLE
    assert bench.agent.last_outcome.reason is RejectionReason.NORM_TOO_LARGE
    assert bench.agent.next_wakeup() >= bench.now + 1.0


def test_a_lost_report_is_repeated_byte_for_byte(bench):
    bench.reach_training()
    bench.finish()
    [report] = bench.take(Report)
    for _ in range(3):
        bench.take(Piece)
        bench.tick_when_due()
        [again] = bench.take(Report)
        assert encode_message(again) == encode_message(report)
    assert bench.take(Piece) == []


def test_an_incomplete_receipt_brings_exactly_the_missing_pieces(bench):
    assignment = bench.reach_training()
    bench.finish()
    report = bench.take(Report)[0]
    assert report.update.num_pieces == 1  # 1.6 kB in one default piece
    sent = bench.take(Piece)
    bench.receipt(assignment, ReceiptStatus.INCOMPLETE, missing=(0, 7))
    assert bench.take(Piece) == sent
    assert bench.take(Report) == []


def test_a_busy_coordinator_gets_everything_again_after_its_wait(bench):
    assignment = bench.reach_training()
    bench.finish()
    first = (bench.take(Report), bench.take(Piece))
    bench.receipt(assignment, ReceiptStatus.BUSY, retry_after_s=5.0)
    assert bench.sent == []
    assert 5.0 <= bench.agent.next_wakeup() - bench.now <= 10.0
    bench.tick_when_due()
    assert (bench.take(Report), bench.take(Piece)) == first


def test_a_report_made_without_a_connection_goes_out_with_the_next_one(bench):
    bench.reach_training()
    bench.disconnect()
    bench.finish()
    assert bench.sent == []
    bench.connect()
    assert len(bench.take(Report)) == 1
    assert len(bench.take(Piece)) == 1


@pytest.mark.parametrize("state", [SessionState.ASSIGNED, SessionState.TRAINING])
def test_a_deadline_before_the_report_gives_the_assignment_back(bench, state):
    assignment = bench.assign(bench.check_in(), deadline_s=60.0)
    if state is SessionState.TRAINING:
        bench.serve()
    bench.take(PieceRequest), bench.take(PieceListRequest)
    bench.tick(61.0)
    [withdrawal] = bench.take(Withdrawal)
    assert withdrawal == Withdrawal(round_id=1, nonce=assignment.nonce, reason=WithdrawalReason.DEADLINE)
    assert bench.stopped == ([1] if state is SessionState.TRAINING else [])
    assert bench.agent.state is SessionState.IDLE


def test_a_deadline_after_the_report_takes_nothing_back(bench):
    bench.reach_training(deadline_s=60.0)
    bench.finish()
    bench.tick(61.0)
    assert bench.take(Withdrawal) == []
    assert bench.agent.last_outcome.ending is RoundEnding.DEADLINE_PASSED


def test_a_failed_job_gives_the_assignment_back_with_its_reason_and_waits_longer_each_time(bench):
    check_in = bench.check_in()
    waits = []
    for round_id in range(1, 13):
        bench.assign(check_in, round_id=round_id)
        bench.serve()
        bench.handle(TrainingFailed(round_id=round_id, reason=WithdrawalReason.TOO_FEW_EXAMPLES))
        [withdrawal] = bench.take(Withdrawal)
        assert withdrawal.reason is WithdrawalReason.TOO_FEW_EXAMPLES
        waits.append(bench.agent.next_wakeup() - bench.now)
        bench.tick_when_due()
        [check_in] = bench.take(CheckIn)
    assert min(waits) >= 1.0
    assert max(waits[6:]) > 60.0 > waits[0]


def test_another_task_stops_the_job_and_is_checked_in_for(bench):
    bench.reach_training()
    bench.announce(task_id="t2", window=(3.0, 9.0))
    assert bench.stopped == [1]
    assert bench.agent.last_outcome.ending is RoundEnding.TASK_CHANGED
    assert 3.0 <= bench.agent.next_wakeup() - bench.now <= 9.0
    bench.tick_when_due()
    assert bench.take(CheckIn)[0].task_id == "t2"


def test_a_deleted_task_leaves_the_device_idle_until_there_is_one(bench):
    bench.check_in()
    bench.handle(Incoming(topic=population_task("p"), payload=b""))
    assert bench.agent.state is SessionState.IDLE
    assert bench.tick(1000.0) == []
    bench.announce()
    bench.tick_when_due()
    assert len(bench.take(CheckIn)) == 1


def test_a_checkpoint_that_does_not_fit_the_plan_is_given_back_not_trained(make_bench):
    bench = make_bench()
    bench.split[2] = bench.split[1]  # the model file's bytes where the checkpoint should be
    bench.assign(bench.check_in())
    bench.serve()
    assert bench.jobs == []
    assert bench.take(Withdrawal)[0].reason is WithdrawalReason.TRAINING_FAILED


def test_a_broker_with_a_small_packet_limit_gets_small_pieces(make_bench):
    from broker_link.link import LinkUp

    bench = make_bench()
    bench.reach_training()
    bench.handle(LinkUp(max_packet_bytes=2200))
    bench.finish()
    [report] = bench.take(Report)
    assert report.update.piece_bytes == 1176 < DEFAULT_PIECE_BYTES
    assert report.update.num_pieces > 1
    assert len(report.piece_digests) == 32 * report.update.num_pieces


def test_what_is_no_message_or_comes_on_a_strange_topic_is_counted(bench):
    bench.check_in()
    rubbish = [
        (device_down("p", "d1", "receipt"), b"FW\x01rubbish"),
        (device_down("p", "d1", "receipt"), encode_message(RoundClosed(round_id=1))),
        (device_down("p", "d1", "check-in"), b""),
        (device_down("p", "d2", "receipt"), b"FW"),
        ("somewhere/else", b"FW"),
        (population_task("p"), b"FW\x02"),
    ]
    for topic, payload in rubbish:
        assert bench.handle(Incoming(topic=topic, payload=payload)) == []
    assert bench.agent.counts[DeviceCount.UNDECODABLE] == len(rubbish)
    assert bench.agent.state is SessionState.CHECKED_IN


def test_a_goodbye_gives_the_assignment_back_and_goes_offline(bench):
    bench.reach_training()
    bench.perform(bench.agent.shut_down())
    assert bench.stopped == [1]
    assert bench.take(Withdrawal)[0].reason is WithdrawalReason.SHUTTING_DOWN
    assert bench.statuses == ["online", "offline"]


def test_a_device_without_a_task_or_a_link_sleeps_until_its_next_health_message(bench):
    assert bench.agent.next_wakeup() == math.inf
    bench.connect()
    assert 3000 < bench.agent.next_wakeup() - bench.now < 4000
    bench.disconnect()
    bench.announce()
    assert bench.agent.next_wakeup() == math.inf
    assert bench.tick(1.0) == []
