"""What a device does when its owner's rules begin or cease to allow training."""

import math

import pytest

from edge_client.counts import RoundEnding
from edge_client.eligibility.conditions import IneligibleReason
from edge_client.eligibility.verdict import Eligible, Ineligible
from edge_client.events import EligibilityChanged
from edge_client.session import SessionState
from wire_protocol.messages import (
    CheckIn,
    DeviceMode,
    Piece,
    PieceListRequest,
    PieceRequest,
    Report,
    Withdrawal,
    WithdrawalReason,
)

HOT = Ineligible(reason=IneligibleReason.TOO_HOT, detail="temperature is 81 C, allowed is at most 80 C")
METERED = Ineligible(reason=IneligibleReason.METERED_NETWORK, detail="network is metered", is_network_barred=True)


def _tell(bench, verdict=None):
    return bench.handle(EligibilityChanged(verdict=verdict or Eligible()))


def test_an_ineligible_device_does_not_check_in_until_it_is_eligible(bench):
    _tell(bench, HOT)
    bench.connect()
    bench.announce()
    for _ in range(10):
        bench.tick(100.0)
    bench.disconnect()
    bench.connect()
    bench.announce()
    bench.tick(100.0)
    assert bench.take(CheckIn) == []
    assert bench.agent.state is SessionState.IDLE
    _tell(bench)
    bench.tick_when_due()
    assert len(bench.take(CheckIn)) == 1


@pytest.mark.parametrize("verdict", [HOT, METERED])
@pytest.mark.parametrize("state", [SessionState.ASSIGNED, SessionState.TRAINING])
def test_work_that_is_not_done_is_stopped_and_given_back_with_its_reason(bench, state, verdict):
    bench.assign(bench.check_in())
    if state is SessionState.TRAINING:
        bench.serve()
    assert bench.agent.state is state
    bench.take(PieceRequest), bench.take(PieceListRequest)
    _tell(bench, verdict)
    assert [message.reason for message in bench.take(Withdrawal)] == [WithdrawalReason.NOT_ELIGIBLE]
    assert bench.stopped == ([1] if state is SessionState.TRAINING else [])
    assert bench.agent.state is SessionState.IDLE
    assert (bench.agent.last_outcome.ending, bench.agent.last_outcome.reason) == (
        RoundEnding.WITHDRAWN, WithdrawalReason.NOT_ELIGIBLE,
    )  # fmt: skip
    bench.finish()
    assert bench.take(Report) == bench.take(CheckIn) == []
    bench.tick(100_000.0)
    assert bench.take(CheckIn) == []
    _tell(bench)
    bench.tick_when_due()
    assert len(bench.take(CheckIn)) == 1


def test_a_check_in_that_is_out_is_not_repeated_and_its_assignment_is_given_back_at_once(bench):
    check_in = bench.check_in()
    _tell(bench, HOT)
    for _ in range(5):
        bench.tick(1000.0)
    assert bench.take(CheckIn) == []
    assignment = bench.assign(check_in)
    [withdrawal] = bench.take(Withdrawal)
    assert (withdrawal.reason, withdrawal.nonce) == (WithdrawalReason.NOT_ELIGIBLE, assignment.nonce)
    assert bench.jobs == bench.take(PieceRequest) == bench.take(PieceListRequest) == []
    assert bench.agent.state is SessionState.IDLE


def test_a_check_in_that_nobody_answered_meanwhile_goes_on_with_the_same_nonce(bench):
    check_in = bench.check_in()
    _tell(bench, HOT)
    bench.tick(1000.0)
    _tell(bench)
    bench.tick_when_due()
    assert bench.take(CheckIn) == [check_in]


def test_a_finished_report_goes_out_although_the_device_is_hot(bench):
    assignment = bench.reach_training()
    bench.disconnect()
    bench.finish()
    _tell(bench, HOT)
    bench.connect()
    assert len(bench.take(Report)) == len(bench.take(Piece)) == 1
    bench.receipt(assignment)
    assert bench.agent.last_outcome.ending is RoundEnding.ACCEPTED
    bench.tick(1000.0)
    assert bench.take(CheckIn) == []


def test_a_finished_report_waits_for_a_network_that_its_owner_allows(bench):
    assignment = bench.reach_training()
    bench.disconnect()
    bench.finish()
    _tell(bench, METERED)
    bench.connect()
    for _ in range(20):
        bench.tick(10.0)
    assert bench.take(Report) == bench.take(Piece) == []
    assert bench.agent.state is SessionState.REPORTING
    _tell(bench, HOT)
    assert len(bench.take(Report)) == len(bench.take(Piece)) == 1
    bench.receipt(assignment)
    assert bench.agent.last_outcome.ending is RoundEnding.ACCEPTED


def test_a_report_that_waits_for_its_network_ends_with_its_deadline(bench):
    bench.reach_training(deadline_s=600.0)
    bench.finish()
    bench.take(Report)
    _tell(bench, METERED)
    bench.tick(601.0)
    assert bench.agent.last_outcome.ending is RoundEnding.DEADLINE_PASSED
    assert bench.take(Report) == []


def test_a_device_that_overheats_in_every_round_comes_back_ever_more_seldom(bench):
    waits = []
    check_in = bench.check_in()
    for round_id in range(1, 12):
        bench.assign(check_in, round_id=round_id)
        _tell(bench, HOT)
        _tell(bench)
        waits.append(bench.agent.next_wakeup() - bench.now)
        while not (found := bench.take(CheckIn)):
            bench.tick_when_due()
        check_in = found[0]
    assert waits[0] <= 20
    assert max(waits[6:]) > 60


def test_the_coordinator_hears_why_and_when_it_is_over(bench):
    assert bench.agent.health.mode is DeviceMode.OK
    _tell(bench, HOT)
    assert bench.agent.health.mode is DeviceMode.INELIGIBLE
    assert bench.agent.health.reason == "too_hot: temperature is 81 C, allowed is at most 80 C"
    _tell(bench)
    assert (bench.agent.health.mode, bench.agent.health.reason) == (DeviceMode.OK, "")


def test_shutting_down_while_ineligible_withdraws_nothing_twice(bench):
    bench.reach_training()
    _tell(bench, HOT)
    bench.take(Withdrawal)
    bench.perform(bench.agent.shut_down())
    assert bench.take(Withdrawal) == []


def test_an_ineligible_device_without_work_sleeps(bench):
    _tell(bench, HOT)
    bench.connect()
    bench.announce()
    while bench.agent.health.next_wakeup() <= bench.now:
        bench.tick()
    assert bench.agent.next_wakeup() == bench.agent.health.next_wakeup() < math.inf
