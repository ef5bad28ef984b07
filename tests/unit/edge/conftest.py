"""A bench for one device agent: it plays the coordinator and the clock, by hand."""

import itertools
import random

import numpy as np
import pytest

from broker_link.link import Incoming, LinkDown, LinkUp
from edge_client.agent import DeviceAgent
from edge_client.events import DropReport, Publish, SaveBlob, StartJob, StopJob, StoreReport, Tick, TrainingFinished
from edge_client.linear_trainer import linear_weights
from edge_client.training import TrainingResult
from wire_protocol.blobs import split_blob
from wire_protocol.messages import (
    Assignment,
    CheckIn,
    DeviceHealth,
    DeviceStatus,
    Metrics,
    Piece,
    PieceList,
    PieceListRequest,
    PieceRequest,
    Receipt,
    ReceiptStatus,
    Refusal,
    RefusalReason,
    Report,
    RoundClosed,
    RoundKind,
    TaskAnnouncement,
    Withdrawal,
    decode_message,
    encode_message,
    message_kind,
)
from wire_protocol.plan import TrainingPlan, encode_plan
from wire_protocol.tensors import encode_tensors
from wire_protocol.topics import device_down, parse_device_topic, population_round, population_task

_UP = {message_kind(kind): kind for kind in (CheckIn, PieceListRequest, PieceRequest, Piece, Report, Withdrawal)}
PLAN = TrainingPlan(
    batch_size=4,
    num_epochs=2,
    learning_rate=0.1,
    input_shape=(40,),
    num_classes=10,
    weights=linear_weights(input_shape=(40,), num_classes=10),
)


class Bench:
    """One agent on a hand-driven clock. ``sent`` holds what it published since last asked, decoded."""

    def __init__(
        self, *, piece_bytes=1024, model=b"m" * 5000, blobs=None, plan=PLAN, settings=None, pending=None, **agent
    ):
        self.now = 100.0
        self.rng = random.Random(7)
        self.blobs = {} if blobs is None else blobs
        self.sent = []
        self.jobs = []
        self.stopped = []
        self.statuses = []
        self.healths = []
        self.stored = pending
        self._nonces = itertools.count(1)
        self.plan = plan
        weights = tuple(np.zeros(spec.shape, np.float32) for spec in plan.weights)
        encoded = (encode_plan(plan), model, encode_tensors(weights))
        self.split = [split_blob(data, piece_bytes=piece_bytes) for data in encoded]
        self.agent = DeviceAgent(
            population="p",
            device_id="d1",
            blobs=self.blobs,
            uniform=self.rng.uniform,
            token=lambda: self.rng.randbytes(16),
            settings=settings,
            pending=pending,
            **agent,
        )

    def handle(self, event):
        actions = self.agent.handle(event, self.now)
        self.perform(actions)
        return actions

    def perform(self, actions):
        for action in actions:
            match action:
                case Publish():
                    topic = parse_device_topic(action.topic)
                    if topic.direction == "status":
                        self.statuses.append(decode_message(action.payload, DeviceStatus).presence)
                        assert action.retain
                    elif topic.kind == "health":
                        self.healths.append(decode_message(action.payload, DeviceHealth))
                    else:
                        self.sent.append(decode_message(action.payload, _UP[topic.kind]))
                case StartJob():
                    self.jobs.append(action.job)
                case StopJob():
                    self.stopped.append(action.round_id)
                case SaveBlob():
                    self.blobs[action.sha256] = action.data
                case StoreReport():
                    self.stored = action.pending
                case DropReport():
                    self.stored = None

    def take(self, kind):
        """Removes and returns the messages of one kind sent so far."""
        found = [message for message in self.sent if isinstance(message, kind)]
        self.sent = [message for message in self.sent if not isinstance(message, kind)]
        return found

    def connect(self):
        return self.handle(LinkUp())

    def disconnect(self):
        return self.handle(LinkDown(reason="test"))

    def tell(self, message):
        match message:
            case TaskAnnouncement():
                topic = population_task("p")
            case RoundClosed():
                topic = population_round("p")
            case _:
                topic = device_down("p", "d1", message_kind(message))
        return self.handle(Incoming(topic=topic, payload=encode_message(message)))

    def tick(self, seconds=0.0):
        self.now += seconds
        return self.handle(Tick())

    def tick_when_due(self):
        """Lets time pass until the agent does something, other than saying how it does."""
        while True:
            told = len(self.healths)
            self.now = max(self.now, self.agent.next_wakeup())
            actions = self.handle(Tick())
            if len(self.healths) == told or len(actions) > 1:
                return actions

    def announce(self, task_id="t1", window=(0.0, 0.0)):
        plan, model, _ = self.split
        return self.tell(TaskAnnouncement(task_id=task_id, plan=plan.ref, model=model.ref, check_in_after_s=window))

    def check_in(self):
        """Connects, hears of the task and checks in; returns the check-in."""
        self.connect()
        self.announce()
        self.tick_when_due()
        [message] = self.take(CheckIn)
        return message

    def assign(self, check_in, *, round_id=1, kind=RoundKind.TRAIN, deadline_s=600.0, task_id="t1"):
        plan, model, checkpoint = (blob.ref for blob in self.split)
        assignment = Assignment(
            round_id=round_id,
            nonce=bytes([next(self._nonces)]) * 16,
            check_in=check_in.nonce,
            kind=kind,
            task_id=task_id,
            plan=plan,
            model=model,
            checkpoint=checkpoint,
            deadline_s=deadline_s,
        )
        self.tell(assignment)
        return assignment

    def refuse(self, check_in, window=(10.0, 20.0)):
        return self.tell(
            Refusal(
                check_in=check_in.nonce,
                reason=RefusalReason.ROUND_FULL,
                retry_min_s=window[0],
                retry_max_s=window[1],
            )
        )

    def blob(self, sha256):
        return next(blob for blob in self.split if blob.ref.sha256 == sha256)

    def serve(self, limit=10_000):
        """Answers requests until none is left, at most ``limit`` pieces; returns how many were served."""
        served = 0
        while served < limit and (requests := self.take(PieceRequest) + self.take(PieceListRequest)):
            for request in requests:
                blob = self.blob(request.sha256)
                if isinstance(request, PieceListRequest):
                    self.tell(PieceList(sha256=request.sha256, digests=blob.piece_digests))
                    continue
                for index in request.indices:
                    if served < limit:
                        self.tell(Piece(sha256=request.sha256, index=index, data=blob.piece(index)))
                        served += 1
        return served

    def reach_training(self, **assignment):
        made = self.assign(self.check_in(), **assignment)
        self.serve()
        assert self.jobs
        return made

    def finish(self, *, value=0.5, round_id=1):
        """The job ends; every number of the update is ``value`` (None: an evaluation)."""
        delta = None
        if value is not None:
            delta = tuple(np.full(spec.shape, value, np.float32) for spec in self.plan.weights)
        result = TrainingResult(
            model_delta=delta,
            num_examples=8,
            aggregation_weight=16.0,
            metrics=Metrics(loss_sum=1.0, num_correct=3.0, weight_sum=16.0),
            duration_s=0.1,
        )
        return self.handle(TrainingFinished(round_id=round_id, result=result))

    def receipt(self, assignment, status=ReceiptStatus.ACCEPTED, **fields):
        return self.tell(Receipt(round_id=assignment.round_id, nonce=assignment.nonce, status=status, **fields))


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def make_bench():
    return Bench
