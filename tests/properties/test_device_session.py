"""Whatever the network sends, in whatever order, a device never raises and never makes an illegal move."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_link.link import Incoming, LinkDown, LinkUp
from edge_client.agent import DeviceAgent
from edge_client.eligibility.conditions import IneligibleReason
from edge_client.eligibility.verdict import Eligible, Ineligible
from edge_client.events import EligibilityChanged, SaveBlob, StartJob, StopJob, Tick, TrainingFailed, TrainingFinished
from edge_client.linear_trainer import linear_weights
from edge_client.session import SESSION_TRANSITIONS, SessionState
from edge_client.training import TrainingResult
from wire_protocol.blobs import split_blob
from wire_protocol.messages import (
    Assignment,
    Metrics,
    Piece,
    PieceList,
    Receipt,
    ReceiptStatus,
    Refusal,
    RefusalReason,
    RoundClosed,
    RoundKind,
    TaskAnnouncement,
    WithdrawalReason,
    encode_message,
    message_kind,
)
from wire_protocol.plan import TrainingPlan, encode_plan
from wire_protocol.tensors import encode_tensors
from wire_protocol.topics import device_down, population_round, population_task

PLAN = TrainingPlan(
    batch_size=2,
    learning_rate=0.1,
    input_shape=(300,),
    num_classes=3,
    weights=linear_weights(input_shape=(300,), num_classes=3),
)
WEIGHTS = tuple(np.zeros(spec.shape, np.float32) for spec in PLAN.weights)
GOOD = [split_blob(data, piece_bytes=1024) for data in (encode_plan(PLAN), b"model", encode_tensors(WEIGHTS))]
BAD = split_blob(b"neither a plan nor a checkpoint" * 50, piece_bytes=1024)
ARROWS = {(source, target) for (source, _), target in SESSION_TRANSITIONS.items()}
RESULT = TrainingResult(
    model_delta=WEIGHTS,
    num_examples=2,
    aggregation_weight=2.0,
    metrics=Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=2.0),
    duration_s=0.0,
)


class World:
    """One agent and a mischievous network that knows its nonces, so that deep states are reached too."""

    def __init__(self, seed: int, *, malice: float) -> None:
        self.rng = random.Random(seed)
        self.malice = malice
        self.now = 0.0
        self.job = None
        self.visited = set()
        self.is_eligible = True
        self.nonces = [b"?" * 16]
        self.agent = DeviceAgent(population="p", device_id="d", blobs={}, uniform=self.rng.uniform, token=self._token)

    def _token(self) -> bytes:
        self.nonces.append(self.rng.randbytes(16))
        return self.nonces[-1]

    def handle(self, event) -> None:
        before = self.agent.state
        for action in self.agent.handle(event, self.now):
            match action:
                case StartJob():
                    assert self.job is None
                    assert self.is_eligible
                    self.job = action.job
                case StopJob():
                    assert self.job is not None
                    self.job = None
                case SaveBlob():
                    assert action.ref.num_bytes == len(action.data)
        after = self.agent.state
        # One event makes at most two moves: a last piece that makes no job, an assignment that needs no fetch.
        direct = after is before or (before, after) in ARROWS
        assert direct or any((before, via) in ARROWS and (via, after) in ARROWS for via in SessionState)
        assert (after is SessionState.TRAINING) == (self.job is not None)
        assert self.is_eligible or after not in {SessionState.ASSIGNED, SessionState.TRAINING}
        assert (self.agent.round_id is None) == (after in {SessionState.IDLE, SessionState.CHECKED_IN})
        self.visited.add(after)

    def step(self) -> None:
        if self.rng.random() < (0.01 if self.is_eligible else 0.3):
            self._eligibility()
        self.rng.choice([self._message, self._message, self._message, self._time, self._link, self._job_end])()

    def _time(self) -> None:
        due = self.agent.next_wakeup()
        self.now = due if self.now < due < 1e9 else self.now + self.rng.choice([0.0, 1.0, 30.0])
        self.handle(Tick())

    def _link(self) -> None:
        if self.rng.random() < 0.3:
            self.handle(LinkDown(reason=""))
        self.handle(LinkUp(max_packet_bytes=self.rng.choice([None, 1, 4000])))

    def _eligibility(self) -> None:
        is_barred, reason = self.rng.random() < 0.5, self.rng.choice(list(IneligibleReason))
        ineligible = Ineligible(reason=reason, detail="", is_network_barred=is_barred)
        verdict = self.rng.choice([Eligible(), Eligible(), ineligible])
        self.is_eligible = verdict == Eligible()
        self.handle(EligibilityChanged(verdict=verdict))

    def _job_end(self) -> None:
        round_id = self.job.round_id if self.job and self.rng.random() < 0.8 else self.rng.randint(1, 3)
        is_current = self.job is not None and self.job.round_id == round_id
        if self.rng.random() < 0.3:
            event = TrainingFailed(round_id=round_id, reason=self.rng.choice(list(WithdrawalReason)))
        elif is_current and self.job.kind is RoundKind.EVALUATE:
            return
        else:
            event = TrainingFinished(round_id=round_id, result=RESULT)
        if is_current:
            self.job = None  # it has ended; the agent will not ask to stop it
        self.handle(event)

    def _message(self) -> None:
        topic, payload = self._topic_and_payload()
        if self.rng.random() < self.malice:
            cut = self.rng.randrange(len(payload) + 1)
            payload = payload[:cut] + self.rng.randbytes(self.rng.randrange(4)) + payload[cut + 1 :]
        self.handle(Incoming(topic=topic, payload=payload))

    def _topic_and_payload(self) -> tuple[str, bytes]:
        rng = self.rng
        nonce = rng.choice([self.nonces[-1], self.nonces[-1], rng.choice(self.nonces)])
        refs = [blob.ref for blob in GOOD]
        if rng.random() < self.malice:
            refs[rng.randrange(3)] = BAD.ref
        blob = rng.choice([*GOOD, *GOOD, BAD])
        index = rng.randrange(blob.ref.num_pieces)
        [message] = rng.choices(
            [
                TaskAnnouncement(
                    task_id=rng.choice(["t1"] * 30 + ["t2"]), plan=refs[0], model=refs[1], check_in_after_s=(5.0, 0.0)
                ),
                Assignment(
                    round_id=rng.randint(1, 3),
                    nonce=b"a" * 16,
                    check_in=nonce,
                    kind=rng.choice([RoundKind.TRAIN, RoundKind.TRAIN, RoundKind.EVALUATE]),
                    task_id=rng.choice(["t1"] * 9 + ["t2"]),
                    plan=refs[0],
                    model=refs[1],
                    checkpoint=refs[2],
                    deadline_s=rng.choice([0.0, 500.0, 1e8, 1e8]),
                ),
                Refusal(check_in=nonce, reason=RefusalReason.NO_ROUND, retry_min_s=9.0, retry_max_s=3.0),
                PieceList(sha256=blob.ref.sha256, digests=blob.piece_digests),
                Piece(sha256=blob.ref.sha256, index=index, data=blob.piece(index)),
                Piece(sha256=blob.ref.sha256, index=rng.randrange(9), data=blob.piece(index)),
                Receipt(
                    round_id=rng.randint(1, 3),
                    nonce=b"a" * 16,
                    status=rng.choice(list(ReceiptStatus)),
                    missing=(0, 2999),
                    retry_after_s=3.0,
                ),
                RoundClosed(round_id=rng.randint(1, 60)),
            ],
            weights=[3, 3, 1, 3, 8, 1, 1, 1],
        )
        kind = message_kind(message)
        topics = {"task": population_task("p"), "round-closed": population_round("p")}
        return topics.get(kind, device_down("p", "d", kind)), encode_message(message)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), malice=st.sampled_from([0.0, 0.1, 0.5]))
def test_random_messages_never_raise_and_never_make_an_illegal_move(seed, malice):
    world = World(seed, malice=malice)
    world.handle(LinkUp())
    for _ in range(300):
        world.step()


def test_the_random_world_reaches_every_state():
    visited = set()
    for seed in range(30):
        world = World(seed, malice=0.1)
        world.handle(LinkUp())
        for _ in range(300):
            world.step()
        visited |= world.visited
    assert visited == set(SessionState)


@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=200), kind=st.sampled_from(["task", "round", "piece", "assignment", "receipt", ""]))
def test_random_bytes_never_raise(payload, kind):
    world = World(0, malice=0.0)
    world.handle(LinkUp())
    topic = {"task": population_task("p"), "round": population_round("p")}.get(kind, device_down("p", "d", kind))
    for prefix in (b"", b"FW\x01"):
        world.handle(Incoming(topic=topic, payload=prefix + payload))


def test_the_result_of_the_wrong_kind_is_a_bug_and_raises():
    from edge_client.errors import IllegalTransition

    world = World(3, malice=0.0)
    world.handle(LinkUp())
    while world.agent.state is not SessionState.TRAINING or world.job.kind is RoundKind.TRAIN:
        world.step()
    with pytest.raises(IllegalTransition):
        world.agent.handle(TrainingFinished(round_id=world.job.round_id, result=RESULT), world.now)
