"""An assignment that was reported for is never worked on again: one nonce, one set of bytes."""

import msgspec

from edge_client.counts import RoundEnding
from edge_client.outbox import Outbox
from edge_client.session import SessionState
from edge_client.state_writer import StateWriter
from wire_protocol.messages import CheckIn, RoundClosed, Withdrawal, WithdrawalReason


def _reported_and_closed(bench):
    """The device reports, hears that the round is over, and checks in again."""
    assignment = bench.reach_training()
    bench.finish()
    stored = bench.stored
    bench.tell(RoundClosed(round_id=1))
    assert bench.stored is None
    bench.tick_when_due()
    [check_in] = bench.take(CheckIn)
    return assignment, stored, check_in


def _assign_again(bench, assignment, check_in):
    bench.tell(msgspec.structs.replace(assignment, check_in=check_in.nonce))


def test_the_same_assignment_after_its_report_was_dropped_is_given_back(bench):
    assignment, _, check_in = _reported_and_closed(bench)
    _assign_again(bench, assignment, check_in)
    [withdrawal] = bench.take(Withdrawal)
    assert (withdrawal.nonce, withdrawal.reason) == (assignment.nonce, WithdrawalReason.NOT_ELIGIBLE)
    assert bench.agent.state is SessionState.IDLE
    assert bench.agent.counts[RoundEnding.WITHDRAWN] == 1
    assert len(bench.jobs) == 1


def test_another_assignment_of_the_same_round_is_worked_on(bench):
    _, _, check_in = _reported_and_closed(bench)
    bench.assign(check_in)
    assert len(bench.jobs) == 2


def test_the_outbox_remembers_across_a_restart_what_was_answered(bench, tmp_path):
    assignment, stored, _ = _reported_and_closed(bench)
    outbox = Outbox(tmp_path / "outbox", writer=StateWriter())
    assert outbox.answered() is None
    outbox.store(stored)
    assert outbox.answered() is None
    outbox.drop(1)
    outbox.drop(1)
    again = Outbox(tmp_path / "outbox", writer=StateWriter())
    assert again.load(population="p", device_id="d1") is None
    assert again.answered() == (1, assignment.nonce)


def test_a_restarted_device_gives_back_what_it_has_answered(make_bench):
    first = make_bench()
    assignment, _, _ = _reported_and_closed(first)
    second = make_bench(blobs=first.blobs, answered=(1, assignment.nonce))
    _assign_again(second, assignment, second.check_in())
    assert len(second.take(Withdrawal)) == 1
    assert second.jobs == []


def test_a_damaged_file_of_what_was_answered_is_no_error(tmp_path):
    (tmp_path / "report.over").write_bytes(b"FWOB\x01 damaged")
    assert Outbox(tmp_path, writer=StateWriter()).answered() is None
