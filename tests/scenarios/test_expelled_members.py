"""A member of the open round is revoked: what has come of its report is dropped, whatever else happens meanwhile.

The real guard over a roster file, the real round loop over a journal file; the same with TFF's transport.
"""

import os
import random

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_link.link import Incoming, LinkUp
from broker_link.memory_broker import MemoryBroker
from coordinator.aggregation_spec import AggregationSpec
from coordinator.checkpoints import CheckpointStore
from coordinator.device_guard import RosterGuard, roster_guard
from coordinator.enrolment_tokens import make_token
from coordinator.fleet import FleetCoordinator
from coordinator.fleet_transport import FleetTransport
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.refusals import GuardRefusal
from coordinator.roster import DeviceState, Roster
from coordinator.round_ids import RoundIds
from coordinator.round_journal import RoundJournal
from coordinator.round_loop import RoundLoop, RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import MemberState, RoundState
from coordinator.task_bundle import TaskBundle
from edge_client.enrolment import enrolment_request
from edge_client.identity import DeviceIdentity
from wire_protocol.blobs import split_blob
from wire_protocol.messages import (
    Assignment,
    CheckIn,
    Metrics,
    Piece,
    Receipt,
    ReceiptStatus,
    Report,
    decode_message,
    encode_message,
    message_kind,
)
from wire_protocol.model_contract import CONTRACT_VERSION
from wire_protocol.plan import TensorSpec, TrainingPlan
from wire_protocol.tensors import encode_tensors
from wire_protocol.topics import device_up

POPULATION = "p"
SIZE = 1000
PLAN = TrainingPlan(
    batch_size=4, learning_rate=0.1, input_shape=(2,), num_classes=2, weights=(TensorSpec(shape=(SIZE,)),)
)
BUNDLE = TaskBundle(plan=PLAN, model_bytes=b"m", initial_weights=(np.zeros(SIZE, np.float32),))
POLICY = RoundPolicy(report_goal=2, min_reports=1, over_selection=1.0, report_timeout_s=60.0)
DEVICES = ("dev-1", "dev-2")
LATE_S = 100.0


class Machine:
    """One device: its key, and the bytes that it would send."""

    def __init__(self, device_id: str, value: float) -> None:
        self.device_id = device_id
        self.identity = DeviceIdentity(Ed25519PrivateKey.generate(), epoch=1)
        self.blob = split_blob(encode_tensors((np.full(SIZE, value, np.float32),)), piece_bytes=1024)
        assert self.blob.ref.num_pieces >= 4

    def sealed(self, message) -> Incoming:
        topic = device_up(POPULATION, self.device_id, message_kind(message))
        return Incoming(topic=topic, payload=self.identity.seal(topic, encode_message(message)))

    def check_in(self) -> Incoming:
        return self.sealed(
            CheckIn(nonce=os.urandom(16), task_id=BUNDLE.task_id, client_version="", contract_version=CONTRACT_VERSION)
        )

    def report(self, assignment: Assignment) -> Incoming:
        metrics = Metrics(loss_sum=1.0, num_correct=0.0, weight_sum=1.0)
        return self.sealed(
            Report(
                round_id=assignment.round_id, nonce=assignment.nonce, update=self.blob.ref,
                piece_digests=self.blob.piece_digests, num_examples=1, aggregation_weight=1.0, metrics=metrics,
            )
        )  # fmt: skip

    def pieces(self, first: int = 0, stop: int | None = None) -> list[Incoming]:
        indices = range(self.blob.ref.num_pieces)[first:stop]
        sha256 = self.blob.ref.sha256
        return [self.sealed(Piece(sha256=sha256, index=index, data=self.blob.piece(index))) for index in indices]


class Bench:
    """A coordinator's files, its life at present, and two devices."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.now = 0.0
        self.wall = 1_000_000.0
        self.assignments: dict[str, Assignment] = {}
        self.receipts: list[tuple[str, Receipt]] = []
        self.summaries: list = []
        self.machines = {name: Machine(name, value) for name, value in zip(DEVICES, (100.0, 1.0), strict=True)}
        self.be_born()

    def be_born(self) -> None:
        self.guard = RosterGuard(
            Roster(self.directory / "roster.sqlite"), population=POPULATION,
            publish=lambda topic, payload: None, wall_clock=lambda: self.wall,
        )  # fmt: skip
        self.journal = RoundJournal(self.directory / "journal.sqlite")
        aggregator = NumpyMeanAggregator(PLAN.weights, AggregationSpec())
        store = CheckpointStore(self.directory / "states")
        state = store.load_latest() or aggregator.initialize(BUNDLE.initial_weights)
        self.fleet = FleetCoordinator(
            population=POPULATION, bundle=BUNDLE, policy=POLICY, rng=random.Random(0), token=os.urandom
        )
        self.loop = RoundLoop(
            fleet=self.fleet, aggregator=aggregator, state=state, schedule=RoundSchedule(num_commits=1), store=store,
            publish=self._publish, round_ids=RoundIds(self.directory / "id", start=state.num_commits),
            on_round=lambda summary, _: self.summaries.append(summary), journal=self.journal, flushes_itself=False,
        )  # fmt: skip
        self.loop.handle(LinkUp(), now=self.now)
        self.loop.start(now=self.now)

    def be_killed_and_born(self) -> None:
        self.guard._roster.close()
        self.journal._db.close()
        self.now += 3.0
        self.be_born()

    def _publish(self, topic, payload, retain) -> None:
        if topic.endswith("/assignment"):
            self.assignments[topic.split("/")[4]] = decode_message(payload, Assignment)
        if topic.endswith("/receipt"):
            self.receipts.append((topic.split("/")[4], decode_message(payload, Receipt)))

    def step(self, *events: Incoming) -> None:
        """What the server does with what has come: see `coordinator.server`."""
        for event in events:
            screened = self.guard.screen(event)
            if screened is not None:
                self.loop.handle(screened, now=self.now)
        for device_id in self.guard.refresh(now=self.now):
            self.loop.expel(device_id, now=self.now)
        self.loop.tick(now=self.now)

    def operator(self, act) -> None:
        roster = Roster(self.directory / "roster.sqlite")
        act(roster)
        roster.close()

    def enrol(self, machine: Machine) -> None:
        token, record = make_token(
            population=POPULATION, device_id=machine.device_id, valid_s=60.0, num_uses=1, now=self.wall,
            random_bytes=os.urandom,
        )  # fmt: skip
        self.operator(lambda roster: roster.add_token(record))
        public_key = machine.identity.public_key
        request = enrolment_request(
            token, population=POPULATION, device_id=machine.device_id, public_key=public_key, nonce=bytes(16)
        )
        assert self.guard.screen(machine.sealed(request)) is None
        assert sum(self.guard.enrolments.values()) >= 1

    def revoke(self, device_id: str) -> None:
        self.wall += 1
        self.operator(lambda roster: roster.set_state(POPULATION, device_id, DeviceState.REVOKED, now=self.wall))
        self.wall += 1
        self.now += 2.0

    def send_halves(self) -> None:
        """Both devices are in the round; of dev-1's report two pieces have come."""
        for machine in self.machines.values():
            self.enrol(machine)
        self.step(*[machine.check_in() for machine in self.machines.values()])
        assert set(self.assignments) == set(DEVICES)
        first = self.machines["dev-1"]
        self.step(first.report(self.assignments["dev-1"]), *first.pieces(0, 2))
        assert self.fleet.uploads.get("dev-1") is not None

    def send_rest(self, first_piece: int) -> None:
        """What is missing of dev-1's, as the protocol has it; then all of dev-2's; then the deadline."""
        one, two = self.machines["dev-1"], self.machines["dev-2"]
        self.step(one.report(self.assignments["dev-1"]), *one.pieces(first_piece))
        self.step(two.report(self.assignments["dev-2"]), *two.pieces())
        self.now += LATE_S
        self.step()

    @property
    def result(self):
        assert [summary.state for summary in self.summaries] == [RoundState.COMMITTED]
        return self.summaries[0].num_reports, float(self.loop.state.weights[0][0])

    @property
    def accepted(self) -> set[str]:
        return {device for device, receipt in self.receipts if receipt.status is ReceiptStatus.ACCEPTED}


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.journal.close()
    bench.guard.close()


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_half_sent_report_counts_when_the_rest_comes(bench, is_restarted):
    """The yardstick of the tests below: without a revocation both reports count."""
    bench.send_halves()
    if is_restarted:
        bench.be_killed_and_born()
    bench.send_rest(0 if is_restarted else 2)
    assert bench.result == (2, 50.5)
    assert bench.accepted == set(DEVICES)


def test_an_expelled_members_half_sent_report_is_discarded_and_its_rest_is_not_heard(bench):
    bench.send_halves()
    bench.revoke("dev-1")
    bench.step()
    assert bench.fleet.uploads.num_bytes == 0
    assert bench.fleet.current_round.cohort["dev-1"].state is MemberState.WITHDRAWN
    bench.send_rest(2)
    assert bench.result == (1, 1.0)
    assert bench.accepted == {"dev-2"}
    assert bench.guard.refusals[GuardRefusal.REVOKED] == 1 + bench.machines["dev-1"].blob.ref.num_pieces - 2


def test_a_member_revoked_while_the_coordinator_was_down_is_not_counted_by_the_next_life(bench):
    bench.send_halves()
    bench.revoke("dev-1")
    bench.be_killed_and_born()
    assert bench.fleet.current_round.state is RoundState.REPORTING, "the round goes on"
    bench.send_rest(0)
    assert bench.result == (1, 1.0)
    assert bench.accepted == {"dev-2"}


def test_a_member_revoked_before_the_kill_is_not_counted_by_any_later_life(bench):
    bench.send_halves()
    bench.revoke("dev-1")
    bench.step()
    for _ in range(2):
        bench.be_killed_and_born()
        bench.step()
        assert bench.fleet.current_round.cohort["dev-1"].state is MemberState.WITHDRAWN
    bench.send_rest(0)
    assert bench.result == (1, 1.0)


def test_a_round_that_waits_for_the_revoked_alone_ends_at_once(bench):
    bench.send_halves()
    two = bench.machines["dev-2"]
    bench.step(two.report(bench.assignments["dev-2"]), *two.pieces())
    assert bench.summaries == []
    bench.revoke("dev-1")
    bench.step()
    assert bench.result == (1, 1.0)


def test_what_the_old_key_has_half_sent_is_not_finished_by_the_new_one(bench):
    bench.send_halves()
    bench.revoke("dev-1")
    old, new = bench.machines["dev-1"], Machine("dev-1", 100.0)
    assert old.blob.ref == new.blob.ref
    bench.enrol(new)  # so fast that no refresh has seen the revocation
    bench.step()
    assert bench.fleet.uploads.num_bytes == 0
    bench.step(*new.pieces(2))
    bench.step(*old.pieces(2))
    two = bench.machines["dev-2"]
    bench.step(two.report(bench.assignments["dev-2"]), *two.pieces())
    bench.now += LATE_S
    bench.step()
    assert bench.result == (1, 1.0)


class Cohort:
    device_ids = DEVICES


def test_tffs_transport_hears_enrolled_devices_alone_and_forgets_a_revoked_one(tmp_path):
    """The rounds of a TFF program under the same guard: a stranger, an unsigned copy and a revoked member are shut out."""
    bench = Bench(tmp_path)
    for machine in bench.machines.values():
        bench.enrol(machine)
    bench.guard.close()
    broker = MemoryBroker(schedule=lambda _, deliver: deliver())
    now = [0.0]
    fleet = FleetCoordinator(
        population=POPULATION, bundle=BUNDLE, policy=POLICY, rng=random.Random(0), token=os.urandom
    )
    transport = FleetTransport(
        fleet=fleet,
        connect=lambda sink: broker.link(subscriptions=fleet.subscriptions, sink=sink),
        clock=lambda: now[0],
        make_guard=roster_guard(
            bench.directory / "roster.sqlite", population=POPULATION, wall_clock=lambda: bench.wall
        ),
    )
    assignments: dict[str, Assignment] = {}

    def on_down(event) -> None:
        if isinstance(event, Incoming) and event.topic.endswith("/assignment"):
            assignments[event.topic.split("/")[4]] = decode_message(event.payload, Assignment)

    broker.link(subscriptions=("fw/v1/p/d/+/down/+",), sink=on_down).start()
    transport.start()
    one, two = bench.machines["dev-1"], bench.machines["dev-2"]
    stranger = Machine("dev-9", 5.0)
    transport.publish(1, Cohort(), BUNDLE.initial_weights)
    reports = transport.reports(1)

    def send(*events: Incoming) -> None:
        for event in events:
            broker.publish(event.topic, event.payload)

    bare = encode_message(Piece(sha256=bytes(32), index=0, data=b"x"))
    send(Incoming(topic=device_up(POPULATION, "dev-1", "piece"), payload=bare), stranger.check_in())
    send(one.check_in(), two.check_in())
    while len(assignments) < 2:
        transport._pending.extend(transport._next_actions())
        while transport._pending:
            transport._perform(transport._pending.popleft())
    send(one.report(assignments["dev-1"]), *one.pieces(0, 2))
    while fleet.uploads.get("dev-1") is None or not transport._events.empty():
        transport._next_actions()
    bench.revoke("dev-1")
    now[0] += 2.0
    send(*one.pieces(2), two.report(assignments["dev-2"]), *two.pieces())
    assert [device for device, _ in reports] == ["dev-2"]
    assert set(transport.refusals) == {GuardRefusal.UNSIGNED, GuardRefusal.UNKNOWN_DEVICE, GuardRefusal.REVOKED}
    transport.close_round(1)
    transport.stop()
    roster = Roster(bench.directory / "roster.sqlite")
    assert roster.device(POPULATION, "dev-2").high_water.counter == two.identity._counter, "it is kept at the end"
    roster.close()
    bench.journal.close()
