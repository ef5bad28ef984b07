"""The protocol model: a random walk and hypothesis take the same rules; seeded faults turn it red."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from coordinator.intake import ReportIntake
from coordinator.round_table import MemberState
from edge_client.round_work import DeviceContext
from simulators.trials.protocol_model import RULES, ProtocolModel, walk
from wire_protocol.messages import Receipt, ReceiptStatus

SEEDS = (1, 2)


def test_a_walk_with_every_fault_finds_no_mismatch_and_takes_every_rule():
    report = walk(4000, seed=7)
    assert report.first_mismatch == ""
    assert set(RULES) <= report.rules.keys()
    assert report.rounds_committed >= 10
    assert report.rounds_abandoned >= 1
    assert report.updates_acknowledged >= 20


def test_the_same_seed_takes_the_same_walk():
    assert walk(1000, seed=11) == walk(1000, seed=11)


class Machine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed):
        self.disk = tempfile.TemporaryDirectory()
        self.model = ProtocolModel(Path(self.disk.name), seed)

    def teardown(self):
        if hasattr(self, "model"):
            self.model.calm(0)
            self.model.close()
            self.disk.cleanup()


def _as_rule(name):
    def take(self, pick):
        RULES[name][0](self.model, pick)

    take.__name__ = name
    return rule(pick=st.integers(0, 2**40 - 1))(take)


for _name in RULES:
    setattr(Machine, _name, _as_rule(_name))

TestProtocol = Machine.TestCase
TestProtocol.settings = settings(max_examples=15, stateful_step_count=60, deadline=None)


def _first_mismatch():
    return next((report.first_mismatch for seed in SEEDS if (report := walk(6000, seed=seed)).mismatches), "")


def test_a_receipt_for_what_is_not_counted_is_found(monkeypatch):
    """A fault seeded into the intake: an admitted report is acknowledged before it is durable."""
    admit = ReportIntake.take_report

    def acknowledge_early(self, device_id, report, *, now):
        answer = admit(self, device_id, report, now=now)
        round_ = self._rounds.get(report.round_id)
        member = round_.cohort.get(device_id) if round_ is not None else None
        if member is not None and member.state is MemberState.ADMITTED:
            early = Receipt(round_id=report.round_id, nonce=member.nonce, status=ReceiptStatus.ACCEPTED)
            return type(answer)(receipt=early, action=answer.action)
        return answer

    monkeypatch.setattr(ReportIntake, "take_report", acknowledge_early)
    assert "is not durable" in _first_mismatch()


def test_a_report_under_another_nonce_is_found_if_admission_lets_it_in(monkeypatch):
    """A fault seeded into the intake: the nonce of a report is not compared with the member's."""
    find = ReportIntake._find

    def by_device_alone(self, device_id, report):
        round_ = self._rounds.get(report.round_id)
        if round_ is None or device_id not in round_.cohort:
            return find(self, device_id, report)
        return round_, round_.cohort[device_id]

    monkeypatch.setattr(ReportIntake, "_find", by_device_alone)
    assert _first_mismatch()


def test_a_device_that_trains_again_for_an_assignment_it_has_reported_for_is_found(monkeypatch):
    """The fault that this model found in the device, seeded again: what was answered is not remembered."""
    monkeypatch.setattr(DeviceContext, "answered", property(lambda self: None, lambda self, value: None))
    assert "made other bytes" in _first_mismatch()
