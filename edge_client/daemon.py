"""The device daemon: puts link, agent, stores and trainer together, and keeps them going. It decides nothing.

One loop in one thread takes events from a queue (from the link's threads, from the trainer's) and from the clock,
gives them to the agent, and does what the agent asks.
"""

import functools
import logging
import math
import os
import queue
import random
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Final

from broker_link.failpoints import hit
from broker_link.link import LinkDown, LinkEvent, LinkUp
from edge_client.agent import DeviceAgent
from edge_client.blob_store import FileBlobStore
from edge_client.confidential_sums import ConfidentialSums
from edge_client.config import EdgeConfig, PrivacySection
from edge_client.coordinator_voice import voice_of
from edge_client.counts import RoundEnding, RoundOutcome
from edge_client.crash_guard import CrashGuard
from edge_client.crash_record import CrashLimits
from edge_client.daemon_log import HourlyLine, log_event, log_outcome
from edge_client.device_link import MakeLink, client_version, paho_link
from edge_client.eligibility.machine import Machine
from edge_client.eligibility.watch import EligibilityWatch
from edge_client.errors import EdgeClientError, StorageError
from edge_client.events import (
    Action,
    DeviceEvent,
    DropReport,
    EligibilityChanged,
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
from edge_client.identity import DeviceIdentity, IdentityStore
from edge_client.outbox import Outbox
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.let_out import let_out, refused
from edge_client.privacy.release_desk import ReleaseDesk
from edge_client.release_part import make_release_part
from edge_client.service_manager import ServiceManager
from edge_client.session import SessionState
from edge_client.settings import AgentSettings
from edge_client.state_dir import StateDir
from edge_client.state_writer import StateWriter
from edge_client.time_floor import TimeFloor
from edge_client.trainer_options import TrainerOptions
from edge_client.trainer_process import TrainerProcess
from edge_client.training import TrainingJob

__all__ = ["Daemon", "MakeLink", "client_version", "once", "paho_link", "run"]

_LOG = logging.getLogger(__name__)
_LONGEST_SLEEP_S: Final = 3600.0
_HOUR_S: Final = 3600.0
_MEGABYTE: Final = 1024 * 1024
_WATCHED_KINDS: Final = {"check-in": "check_in", "report": "report", "piece": "piece"}


class Daemon:
    """One device on one broker. ``serve`` runs it in the calling thread; ``stop`` may be called from anywhere.

    Args:
        config: The device's configuration.
        make_link: Makes its link.
        service_manager: What the manager that started this process is told through; nobody is told if None.
        settings: The device's patience.
        machine: What its probes look at, if not this machine.

    Raises:
        StorageError: The state directory cannot be used, or another daemon uses it.
        IdentityError: The device's key cannot be used.
        ConfigError: The password file cannot be read.
    """

    def __init__(
        self,
        config: EdgeConfig,
        *,
        make_link: MakeLink = paho_link,
        service_manager: ServiceManager | None = None,
        settings: AgentSettings | None = None,
        machine: Machine | None = None,
    ) -> None:
        self._events: queue.SimpleQueue[LinkEvent | None] = queue.SimpleQueue()
        self._is_stopping = False
        self._is_connected = False
        self._is_safe_mode = False
        self._service_manager = service_manager or ServiceManager({})
        self._state_dir = StateDir(Path(config.device.state_dir))
        self._state_dir.lock()
        self._writer = StateWriter(max_bytes_per_hour=config.device.max_write_mb_per_hour * _MEGABYTE)
        self._written = HourlyLine(self._writer, now=time.monotonic())
        self._blobs = FileBlobStore(
            self._state_dir.blobs, max_bytes=config.device.blob_cache_mb * _MEGABYTE, writer=self._writer
        )
        self._outbox = Outbox(self._state_dir.outbox, writer=self._writer)
        limits = CrashLimits(safe_mode_s=config.device.safe_mode_h * _HOUR_S)
        self._guard = CrashGuard(self._state_dir.crash_record, writer=self._writer, limits=limits)
        self.agent = DeviceAgent(
            population=config.device.population,
            device_id=self._state_dir.device_id(config.device.id, writer=self._writer),
            blobs=self._blobs,
            uniform=random.SystemRandom().uniform,
            token=lambda: os.urandom(16),
            client_version=client_version(),
            answered=self._outbox.answered(),
            bytes_written=lambda: self._writer.num_bytes_in_the_last_hour,
            settings=settings,
        )
        self._desk = _release_desk(config.privacy, self._state_dir.ledger)
        machine = machine or Machine.this()
        self._job: TrainingJob | None = None
        training = config.training
        self._trainer = TrainerProcess(
            options=TrainerOptions(
                data_path=config.data.path,
                trainer=training.trainer,
                num_threads=training.num_threads,
                memory_limit_mb=training.memory_limit_mb,
            ),
            time_limit_s=training.time_limit_s,
            idle_stop_s=training.idle_stop_s,
            wake=self._wake,
        )
        self._time_floor = TimeFloor(self._state_dir.time_floor, writer=self._writer)
        self._eligibility = EligibilityWatch(
            config,
            machine=machine,
            time_floor=self._time_floor,
            trainer=self._trainer,
            wake=self._wake,
        )
        self._releases = make_release_part(
            config, state_dir=self._state_dir, device_id=self.agent.channel.device_id, writer=self._writer,
            time_floor=self._time_floor,
        )  # fmt: skip
        self._sums = ConfidentialSums(
            config,
            channel=self.agent.channel,
            identity=self._take_identity(config),
            writer=self._writer,
            machine=machine,
        )
        self._desk.sealer = self._sums.sealer
        voice = voice_of(config, self.agent.channel, position_path=self._state_dir.task_position)
        self._link = make_link(config, self.agent.channel, voice.sink(self._events.put))

    def _take_identity(self, config: EdgeConfig) -> DeviceIdentity | None:
        """Signs from here on, if this device has a key. Before the link is made: the last will, too, must be signed."""
        identity = IdentityStore.of_this_process(Path(config.device.state_dir), writer=self._writer).load()
        if identity is not None:
            self.agent.channel.seal = identity.seal
            _LOG.info("identity_loaded epoch=%d", identity.epoch)
        return identity

    def stop(self) -> None:
        """Makes ``serve`` say goodbye and return. Safe in a signal handler and from any thread."""
        self._is_stopping = True
        self._wake()

    def serve(self, *, until: Callable[[DeviceAgent], bool] = lambda _: False, timeout_s: float = math.inf) -> None:
        """Takes part until stopped, until ``until`` says so, or until ``timeout_s`` has passed. Call it once."""
        ends_at = time.monotonic() + timeout_s
        _LOG.info("daemon_started device_id=%s pid=%d", self.agent.channel.device_id, os.getpid())
        hit("device.start")
        self._is_safe_mode = not self._guard.is_safe_mode
        self._follow_guard()
        self._handle_change(self._eligibility.look_if_due(time.monotonic(), self.agent.state))
        self._link.start()
        self._service_manager.started(time.monotonic())
        try:
            while not self._is_stopping and time.monotonic() < ends_at and not until(self.agent):
                self._step(ends_at)
            self._guard.stopped_cleanly()
        finally:
            self._leave()

    def _step(self, ends_at: float) -> None:
        """Waits for the next event, of whatever kind, and handles it."""
        outside_at = min(
            self._trainer.next_wakeup(), self._guard.next_wakeup(), self._service_manager.next_wakeup(),
            self._releases.next_wakeup(), self._sums.next_wakeup(),
        )  # fmt: skip
        due_at = min(ends_at, self.agent.next_wakeup(), outside_at, self._eligibility.next_wakeup(self.agent.state))
        wait_s = min(max(due_at - time.monotonic(), 0.0), _LONGEST_SLEEP_S)
        try:
            event = self._events.get(timeout=wait_s)
        except queue.Empty:
            event = None
        if isinstance(event, LinkUp):
            self._eligibility.connected(event)
        # Before the event, which may be a connection and thus a check-in.
        self._handle_change(self._eligibility.look_if_due(time.monotonic(), self.agent.state))
        if event is not None and not self._releases.handle(event, time.monotonic()):
            self._handle(event)
            self._perform(self._sums.handle(event, time.monotonic()))
        self._perform(self._sums.tick(time.monotonic()))
        self._perform(self._releases.turn(self._link, self.agent.channel, time.monotonic()))
        ended = self._trainer.poll()
        if ended is not None:
            hit("device.job.finished")
            self._guard.job_over(ended)
            self._handle(self._let_out(ended))
        self._guard.tick()
        self._follow_guard()
        self._written.tick(time.monotonic())
        if time.monotonic() >= self.agent.next_wakeup():
            self._handle_change(self._eligibility.look_before_check_in(time.monotonic(), self.agent.state))
            self._handle(Tick())
        self._service_manager.turned(
            time.monotonic(), is_connected=self._is_connected, status=self._status(), fault=self._fault()
        )

    def _status(self) -> str:
        """One line for people."""
        link = "connected" if self._is_connected else "not connected"
        round_id = self.agent.round_id
        return f"{link}; {self.agent.state.value}" + (f", round {round_id}" if round_id is not None else "")

    def _fault(self) -> str:
        """What of this process has died without a word, so that only a new start helps; empty if nothing has."""
        if not self._link.is_supervised:
            return "the link's supervisor is dead"
        return "" if self._trainer.is_answerable else "the trainer's exchange is dead"

    def _handle_change(self, changed: EligibilityChanged | None) -> None:
        if changed is not None:
            self._handle(changed)

    def _follow_guard(self) -> None:
        """Tells the agent when safe mode begins or ends. What waited in the outbox meanwhile is sent then."""
        if self.agent.task_id:
            self._guard.task_announced(self.agent.task_id)
        if self._guard.is_safe_mode is self._is_safe_mode:
            return
        self._is_safe_mode = self._guard.is_safe_mode
        self._handle(self._guard.health())
        if not self._is_safe_mode and self.agent.state is SessionState.IDLE:
            self._resume()

    def _resume(self) -> None:
        """Takes up the report that an earlier process, or this one before safe mode, could not finish."""
        pending = self._outbox.load(population=self.agent.channel.population, device_id=self.agent.channel.device_id)
        if pending is not None:
            self.agent.resume(pending)
            _LOG.info("report_resumed round_id=%d", pending.report.round_id)

    def _handle(self, event: DeviceEvent) -> None:
        log_event(event)
        if isinstance(event, LinkUp):
            hit("device.link_up")
        if isinstance(event, LinkUp | LinkDown):
            self._is_connected = isinstance(event, LinkUp)
        state, outcome = self.agent.state, self.agent.last_outcome
        actions = self.agent.handle(event, time.monotonic())
        if self.agent.state is not state:
            _LOG.info(
                "session_moved from=%s to=%s round_id=%s", state.value, self.agent.state.value, self.agent.round_id
            )
            hit("device.session.moved")
        if self.agent.last_outcome is not outcome and self.agent.last_outcome is not None:
            if self.agent.last_outcome.ending is RoundEnding.ACCEPTED:
                self._guard.round_accepted()
            hit("device.round.over")
            log_outcome(self.agent.last_outcome)
        self._perform(actions)

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Publish():
                    self._send(action)
                case StartJob():
                    hit("device.job.before_start")
                    self._start(action.job)
                    hit("device.job.after_start")
                case StopJob():
                    self._trainer.stop()
                case SaveBlob():
                    self._save(action)
                case StoreReport():
                    if not self._is_stored(action):
                        # What follows would publish it: what is not stored is not sent.
                        self._handle(ReportNotStored(round_id=action.pending.report.round_id))
                        return
                case DropReport():
                    self._outbox.drop(action.round_id)

    def _start(self, job: TrainingJob) -> None:
        """Starts a job, unless its result could not be let out anyway."""
        self._job = job
        try:
            self._desk.check(job)
        except EdgeClientError as error:
            self._handle(refused(job, error))
            return
        self._trainer.start(job)

    def _let_out(self, ended: TrainingFinished | TrainingFailed) -> TrainingFinished | TrainingFailed:
        """What of a job's end may be published; a private update is charged here, before anything else happens to it."""
        return ended if self._job is None else let_out(self._desk, self._job, ended)

    def _is_stored(self, action: StoreReport) -> bool:
        try:
            self._outbox.store(action.pending)
        except StorageError as error:
            _LOG.error("report_not_stored error=%r", str(error))
            return False
        return True

    def _send(self, action: Publish) -> None:
        watched = _WATCHED_KINDS.get(action.topic.rpartition("/")[2])
        if watched is not None:
            hit(f"device.{watched}.before")
        self._link.publish(action.topic, self.agent.channel.seal(action.topic, action.payload), retain=action.retain)
        if watched is not None:
            hit(f"device.{watched}.after")

    def _save(self, action: SaveBlob) -> None:
        hit("device.blob.before_write")
        # A full disk costs the next process a download, not this one, and not this round.
        self._blobs.put(action.sha256, action.data)
        hit("device.blob.after_write")

    def _leave(self) -> None:
        self._service_manager.stopping()
        self._perform(self.agent.shut_down())
        self._trainer.close()
        self._releases.stop()
        self._link.stop()
        self._time_floor.flush()
        self._state_dir.unlock()
        self._service_manager.close()
        _LOG.info("daemon_stopped device_id=%s", self.agent.channel.device_id)

    def _wake(self) -> None:
        self._events.put(None)


def run(config: EdgeConfig, *, make_link: MakeLink = paho_link) -> None:
    """Takes part in rounds until SIGTERM or SIGINT; tells the service manager how it goes, if one has started it.

    Raises:
        EdgeClientError: The daemon cannot be started; see ``Daemon``.
    """
    daemon = Daemon(config, make_link=make_link, service_manager=ServiceManager(os.environ))
    _stop_on_signals(daemon)
    daemon.serve()


def once(config: EdgeConfig, *, timeout_s: float = math.inf, make_link: MakeLink = paho_link) -> RoundOutcome | None:
    """Takes part in one round, then ends.

    Returns:
        How the round ended; None if none came within ``timeout_s``, or a signal came first.

    Raises:
        EdgeClientError: The daemon cannot be started; see ``Daemon``.
    """
    daemon = Daemon(config, make_link=make_link)
    _stop_on_signals(daemon)
    daemon.serve(until=lambda agent: agent.last_outcome is not None, timeout_s=timeout_s)
    return daemon.agent.last_outcome


def _release_desk(section: PrivacySection, ledger: Path) -> ReleaseDesk:
    return ReleaseDesk(functools.partial(PrivacyLedger, ledger, budget=section.rules.budget), section.rules)


def _stop_on_signals(daemon: Daemon) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        daemon.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
