"""A device's machine in the protocol model: the real agent, and storage that survives its death."""

import random
from collections.abc import Callable
from typing import Final

import numpy as np

from broker_link.link import LinkEvent, LinkUp
from broker_link.memory_broker import MemoryBroker
from edge_client.agent import DeviceAgent
from edge_client.events import (
    DeviceEvent,
    DropReport,
    Publish,
    ReportNotStored,
    SaveBlob,
    StartJob,
    StopJob,
    StoreReport,
    Tick,
    TrainingFailed,
    TrainingFinished,
)
from edge_client.pending_report import decode_pending, encode_pending
from edge_client.settings import AgentSettings
from edge_client.training import TrainingJob, TrainingResult
from simulators.trials.protocol_reference import ProtocolReference
from simulators.trials.protocol_trial import POPULATION, SHAPE, Fuse, PowerCut, trial_task
from wire_protocol.messages import Metrics, Report, RoundKind, WithdrawalReason, decode_message
from wire_protocol.tensors import decode_tensors

__all__ = ["DeviceHost"]

_PACKET_BYTES: Final = 2048
"""A broker that takes no more makes devices cut their updates into pieces of 1 KiB: two of them."""
_SETTINGS: Final = AgentSettings(failure_backoff_cap_s=60.0, max_wait_s=300.0)


class DeviceHost:
    """A device's machine: its memory goes when it dies, its blobs and its outbox stay.

    Args:
        device_id: Its id.
        broker: Where its link goes.
        reference: Told of every report.
        rng: Everything random.
    """

    def __init__(
        self, *, device_id: str, broker: MemoryBroker, reference: ProtocolReference, rng: random.Random
    ) -> None:
        self.device_id = device_id
        self._reference = reference
        self._rng = rng
        self._blobs: dict[bytes, bytes] = {}
        self._outbox: bytes | None = None
        self._answered: tuple[int, bytes] | None = None
        self.is_disk_full = False
        self.fuse = Fuse()
        self.job: TrainingJob | None = None
        self.now = 0.0
        self.sent: Callable[[str, bytes], None] = lambda _topic, _payload: None
        self.agent: DeviceAgent | None = None
        probe = self._new_agent()
        self.link = broker.link(
            subscriptions=probe.channel.subscriptions, sink=self._on_link_event, will=probe.channel.will
        )

    def _new_agent(self) -> DeviceAgent:
        return DeviceAgent(
            population=POPULATION,
            device_id=self.device_id,
            blobs=self._blobs,
            uniform=self._rng.uniform,
            token=lambda: self._rng.randbytes(16),
            settings=_SETTINGS,
            pending=None if self._outbox is None else decode_pending(self._outbox),
            answered=self._answered,
        )

    def boot(self, now: float) -> None:
        """Starts a new process on what the device has stored, and connects."""
        self.now = now
        self.fuse.left = None
        self.agent = self._new_agent()
        self.link.start()

    def die(self) -> None:
        """The process ends, in the middle of whatever it was doing."""
        self.agent = None
        self.job = None
        self.link.lose("died")

    def _on_link_event(self, event: LinkEvent) -> None:
        self.handle(LinkUp(max_packet_bytes=_PACKET_BYTES) if isinstance(event, LinkUp) else event)

    def handle(self, event: DeviceEvent) -> None:
        """Gives the agent an event and does what it asks, as the daemon does."""
        if self.agent is None:
            return
        try:
            for action in self.agent.handle(event, self.now):
                self.fuse.burn()
                match action:
                    case Publish():
                        self._publish(action)
                    case StartJob():
                        self.job = action.job
                    case StopJob():
                        self.job = None
                    case SaveBlob():
                        self._blobs[action.sha256] = action.data
                    case StoreReport() if self.is_disk_full:
                        self.handle(ReportNotStored(round_id=action.pending.report.round_id))
                        return
                    case StoreReport():
                        self._store(action)
                    case DropReport() if self._outbox is not None:
                        report = decode_pending(self._outbox).report
                        self._answered, self._outbox = (report.round_id, report.nonce), None
        except PowerCut:
            self.die()

    def _store(self, action: StoreReport) -> None:
        pending = action.pending
        update = pending.update
        delta = None if update is None else decode_tensors(update.data, trial_task().plan.weights)
        key = (self.device_id, pending.report.round_id, pending.report.nonce)
        self._reference.report_made(key, b"" if update is None else update.data, delta)
        self._outbox = encode_pending(pending)

    def _publish(self, action: Publish) -> None:
        if action.topic.endswith("/up/report"):
            self._reference.report_sent(self.device_id, decode_message(action.payload, Report), action.payload)
        self.sent(action.topic, action.payload)
        self.link.publish(action.topic, action.payload, retain=action.retain)

    def tick(self, now: float) -> None:
        """Lets time pass."""
        self.now = now
        if self.agent is not None and now >= self.agent.next_wakeup():
            self.handle(Tick())

    def end_job(self, *, is_failure: bool) -> None:
        """The running job ends: with numbers that no other run has, as noise would make them."""
        job, self.job = self.job, None
        if job is None:
            return
        if is_failure:
            self.handle(TrainingFailed(round_id=job.round_id, reason=WithdrawalReason.TRAINING_FAILED))
            return
        noise = np.frombuffer(self._rng.randbytes(2 * 300), dtype="<u2").astype(np.float32) / np.float32(
            65536
        ) - np.float32(0.5)
        num_examples = self._rng.randint(1, 5)
        result = TrainingResult(
            model_delta=(noise.reshape(SHAPE),) if job.kind is RoundKind.TRAIN else None,
            num_examples=num_examples,
            aggregation_weight=float(num_examples),
            metrics=Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=float(num_examples)),
            duration_s=0.0,
        )
        self.handle(TrainingFinished(round_id=job.round_id, result=result))
