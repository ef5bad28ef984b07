"""Whatever devices do, in whatever order: nothing raises, nothing is counted twice, every round ends."""

import random

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker_link.link import Incoming, LinkDown, LinkUp
from coordinator.actions import Fold, Publish, RoundEnded, RoundOrder
from coordinator.fleet import FleetCoordinator
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import RoundEvent, RoundState
from coordinator.task_bundle import TaskBundle
from wire_protocol.blobs import split_blob
from wire_protocol.messages import (
    Assignment,
    CheckIn,
    Metrics,
    Piece,
    Report,
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
from wire_protocol.topics import device_up

DEVICES = [f"d{index}" for index in range(5)]
PLAN = TrainingPlan(
    batch_size=4, learning_rate=0.1, input_shape=(3,), num_classes=400, weights=(TensorSpec(shape=(3, 400)),)
)
WEIGHTS = (np.zeros((3, 400), np.float32),)
BUNDLE = TaskBundle(plan=PLAN, model_bytes=b"m", initial_weights=WEIGHTS)
SOME_DEVICE = st.sampled_from(DEVICES)


class Fleet(RuleBasedStateMachine):
    """A reference beside the coordinator: what was folded, by whom, in which round."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.round_id = 0
        self.assigned: dict[str, list[Assignment]] = {device: [] for device in DEVICES}
        self.folds: list[tuple[int, str]] = []
        self.ended: list[int] = []
        self.fleet = FleetCoordinator(
            population="p",
            bundle=BUNDLE,
            policy=RoundPolicy(
                report_goal=3, min_reports=2, over_selection=1.3, report_timeout_s=50.0, selection_timeout_s=20.0
            ),
            rng=random.Random(0),
            token=random.Random(1).randbytes,
            upload_budget_bytes=9000,
        )
        self.perform(self.fleet.handle(LinkUp(), now=self.now))

    def perform(self, actions) -> None:
        for action in actions:
            match action:
                case Publish() if action.topic.endswith("/assignment"):
                    self.assigned[action.topic.split("/")[4]].append(decode_message(action.payload, Assignment))
                case Fold():
                    round_ = self.fleet.current_round
                    self.folds.append((round_.round_id, action.device_id))
                    self.perform(self.fleet.folded(action.device_id, now=self.now))
                case RoundEnded():
                    self.ended.append(action.round.round_id)
                    self.fleet.close_round(RoundEvent.RESULT_STORED, now=self.now)

    def send(self, device: str, message) -> None:
        topic = device_up("p", device, message_kind(message))
        self.perform(self.fleet.handle(Incoming(topic=topic, payload=encode_message(message)), now=self.now))

    @rule()
    def open_round(self) -> None:
        if self.fleet.current_round is None:
            self.round_id += 1
            order = RoundOrder(round_id=self.round_id, kind=RoundKind.TRAIN, checkpoint=encode_tensors(WEIGHTS))
            self.perform(self.fleet.open_round(order, now=self.now))

    @rule(device=SOME_DEVICE, nonce=st.binary(min_size=16, max_size=16))
    def check_in(self, device, nonce) -> None:
        self.send(
            device, CheckIn(nonce=nonce, task_id=BUNDLE.task_id, client_version="", contract_version=CONTRACT_VERSION)
        )

    @rule(device=SOME_DEVICE, value=st.floats(-1, 1, width=32), which=st.integers(-2, -1), order=st.randoms())
    def report(self, device, value, which, order) -> None:
        """A report for the newest or the one before, its pieces in any order, some twice, some never.

        Time passes between them, so that a piece may be handled before the tick of a deadline that has passed.
        """
        if len(self.assigned[device]) < -which:
            return
        assignment = self.assigned[device][which]
        blob = split_blob(encode_tensors((np.full((3, 400), value, np.float32),)), piece_bytes=1024)
        message = Report(
            round_id=assignment.round_id,
            nonce=assignment.nonce,
            update=blob.ref,
            piece_digests=blob.piece_digests,
            num_examples=2,
            aggregation_weight=2.0,
            metrics=Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=2.0),
        )
        self.send(device, message)
        pieces = order.choices(range(blob.ref.num_pieces), k=2 * blob.ref.num_pieces)
        for index in pieces + ([] if order.random() < 0.3 else list(range(blob.ref.num_pieces))):
            self.now += order.choice([0.0, 0.0, 0.0, 7.0])
            self.send(device, Piece(sha256=blob.ref.sha256, index=index, data=blob.piece(index)))

    @rule(device=SOME_DEVICE)
    def withdraw(self, device) -> None:
        if self.assigned[device]:
            last = self.assigned[device][-1]
            reason = WithdrawalReason.TRAINING_FAILED
            self.send(device, Withdrawal(round_id=last.round_id, nonce=last.nonce, reason=reason))

    @rule(seconds=st.floats(0, 60))
    def let_time_pass(self, seconds) -> None:
        self.now += seconds
        self.perform(self.fleet.tick(now=self.now))

    @rule(device=SOME_DEVICE, kind=st.sampled_from(["report", "piece", "check-in", "status", "x"]), data=st.binary())
    def garbage(self, device, kind, data) -> None:
        for payload in (data, b"FW\x01" + data):
            topic = f"fw/v1/p/d/{device}/up/{kind}"
            self.perform(self.fleet.handle(Incoming(topic=topic, payload=payload), now=self.now))

    @rule()
    def reconnect(self) -> None:
        self.perform(self.fleet.handle(LinkDown(reason="cut"), now=self.now))
        self.perform(self.fleet.handle(LinkUp(), now=self.now))

    @invariant()
    def nobody_is_counted_twice(self) -> None:
        assert len(set(self.folds)) == len(self.folds)

    @invariant()
    def a_round_is_aggregated_with_its_minimum_or_not_at_all(self) -> None:
        for round_id, known in self.fleet.intake._rounds.items():
            folded = sum(1 for fold_round, _ in self.folds if fold_round == round_id)
            assert known.num_folded == folded
            if known.state is RoundState.COMMITTED:
                assert folded >= 2

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.fleet.uploads.num_bytes <= max(9000, 5000)
        assert self.fleet.population.num_waiting <= len(DEVICES)

    @precondition(lambda self: self.fleet.current_round is not None)
    @rule()
    def no_round_outlives_its_deadlines(self) -> None:
        self.now += 200.0
        self.perform(self.fleet.tick(now=self.now))
        round_ = self.fleet.current_round
        if round_ is not None:
            self.now += 200.0
            self.perform(self.fleet.tick(now=self.now))
        assert self.fleet.current_round is None


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
