"""The daemon with its real parts: agent, stores, trainer process; the broker is the one in memory."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import pytest

from broker_link.link import Incoming, LinkUp
from broker_link.memory_broker import MemoryBroker
from edge_client import state_writer
from edge_client.config import BrokerSection, DataSection, DeviceSection, EdgeConfig, TrainingSection
from edge_client.counts import RoundEnding
from edge_client.crash_guard import read_record
from edge_client.crash_record import CrashRecord, encode_record
from edge_client.daemon import Daemon, once
from edge_client.eligibility.machine import Machine, Unknown
from edge_client.eligibility.policy import EligibilitySection
from edge_client.errors import StorageError
from edge_client.example_store import write_examples
from edge_client.linear_trainer import LinearTrainer, linear_weights
from edge_client.session import SessionState
from edge_client.state_writer import StateWriter
from edge_client.time_floor import RELEASED_AT, TimeFloor
from edge_client.training import ArrayExamples, TrainingJob
from wire_protocol.blobs import BlobAssembler, split_blob
from wire_protocol.messages import (
    Assignment,
    CheckIn,
    DeviceHealth,
    DeviceMode,
    DeviceStatus,
    Piece,
    PieceList,
    PieceListRequest,
    PieceRequest,
    Receipt,
    ReceiptStatus,
    RejectionReason,
    Report,
    RoundKind,
    TaskAnnouncement,
    Withdrawal,
    WithdrawalReason,
    decode_message,
    encode_message,
    message_kind,
)
from wire_protocol.plan import TrainingPlan, encode_plan
from wire_protocol.tensors import decode_tensors, encode_tensors
from wire_protocol.topics import device_down, parse_device_topic, population_task, status_filter, up_filter

WEIGHTS = linear_weights(input_shape=(300,), num_classes=3)
PLAN = TrainingPlan(
    batch_size=4, num_epochs=2, learning_rate=0.1, input_shape=(300,), num_classes=3, weights=WEIGHTS, min_examples=10
)
CHECKPOINT = tuple(np.zeros(spec.shape, np.float32) for spec in WEIGHTS)
X = np.random.default_rng(3).normal(size=(20, 300)).astype(np.float32)
Y = np.arange(20, dtype=np.int32) % 3
_UP = {
    message_kind(kind): kind
    for kind in (CheckIn, PieceListRequest, PieceRequest, Piece, Report, Withdrawal, DeviceHealth)
}
PATIENCE_S = 60.0


class ScriptedCoordinator:
    """Answers one device on an in-memory broker: one round, and a receipt of the given status."""

    def __init__(self, *, status=ReceiptStatus.ACCEPTED, max_rounds=10**9):
        self.broker = MemoryBroker(schedule=lambda delay_s, deliver: deliver())
        self.blobs = [split_blob(d, piece_bytes=1024) for d in (encode_plan(PLAN), b"m" * 2000, self._checkpoint())]
        self.status, self.rounds_left = status, max_rounds
        self.received, self.presence, self.update = [], [], None
        self.round_id = 0
        self._link = self.broker.link(subscriptions=[up_filter("p"), status_filter("p")], sink=self._on_event)
        self._link.start()
        task = TaskAnnouncement(task_id="t", plan=self.blobs[0].ref, model=self.blobs[1].ref)
        self.broker.publish(population_task("p"), encode_message(task), retain=True)

    @staticmethod
    def _checkpoint():
        return encode_tensors(CHECKPOINT)

    def make_link(self, config, channel, sink):
        del config
        return self.broker.link(subscriptions=channel.subscriptions, sink=sink, will=channel.will)

    def of(self, kind):
        return [message for message in self.received if isinstance(message, kind)]

    def _on_event(self, event):
        if not isinstance(event, Incoming):
            return
        topic = parse_device_topic(event.topic)
        if topic.direction == "status":
            self.presence.append(decode_message(event.payload, DeviceStatus).presence)
            return
        message = decode_message(event.payload, _UP[topic.kind])
        self.received.append(message)
        for answer in self._answers(message):
            self.broker.publish(device_down("p", topic.device_id, message_kind(answer)), encode_message(answer))

    def _answers(self, message):
        match message:
            case CheckIn() if self.rounds_left > 0:
                self.rounds_left -= 1
                self.round_id += 1
                plan, model, checkpoint = (blob.ref for blob in self.blobs)
                yield Assignment(
                    round_id=self.round_id,
                    nonce=b"n" * 16,
                    check_in=message.nonce,
                    kind=RoundKind.TRAIN,
                    task_id="t",
                    plan=plan,
                    model=model,
                    checkpoint=checkpoint,
                    deadline_s=600.0,
                )
            case PieceListRequest():
                blob = self._blob(message.sha256)
                yield PieceList(sha256=message.sha256, digests=blob.piece_digests)
            case PieceRequest():
                blob = self._blob(message.sha256)
                for index in message.indices:
                    yield Piece(sha256=message.sha256, index=index, data=blob.piece(index))
            case Report():
                self.update = BlobAssembler(message.update)
            case Piece():
                self.update.add(message.index, message.data)
                if self.update.is_complete:
                    reason = RejectionReason.LATE if self.status is ReceiptStatus.REJECTED else None
                    yield Receipt(round_id=self.round_id, nonce=b"n" * 16, status=self.status, reason=reason)

    def _blob(self, sha256):
        return next(blob for blob in self.blobs if blob.ref.sha256 == sha256)


@pytest.fixture
def config(tmp_path):
    write_examples(tmp_path / "data", x=X, y=Y)
    return _config(tmp_path)


def _config(tmp_path, **training):
    return EdgeConfig(
        device=DeviceSection(population="p", id="d1", state_dir=str(tmp_path / "state")),
        broker=BrokerSection(url="mqtt://localhost"),
        data=DataSection(path=str(tmp_path / "data")),
        training=TrainingSection(trainer="linear", **training),
    )


@pytest.fixture(autouse=True)
def _keep_signal_handlers():
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_one_round_reports_what_the_trainer_computes_from_the_local_examples(config):
    coordinator = ScriptedCoordinator()
    outcome = once(config, timeout_s=PATIENCE_S, make_link=coordinator.make_link)
    assert outcome.ending is RoundEnding.ACCEPTED
    assert coordinator.presence == ["online", "offline"]
    job = TrainingJob(kind=RoundKind.TRAIN, plan=PLAN, model=b"", checkpoint=CHECKPOINT, round_id=1, device_id="d1")
    expected = LinearTrainer().train(job, ArrayExamples(x=X, y=Y))
    [report] = coordinator.of(Report)
    assert report.num_examples == 20
    assert report.aggregation_weight == 40.0
    assert report.metrics == expected.metrics
    for delta, wanted in zip(decode_tensors(coordinator.update.result(), WEIGHTS), expected.model_delta, strict=True):
        np.testing.assert_array_equal(delta, wanted)


def test_blobs_fetched_once_are_there_after_a_restart(config):
    coordinator = ScriptedCoordinator()
    once(config, timeout_s=PATIENCE_S, make_link=coordinator.make_link)
    assert coordinator.of(PieceRequest)
    coordinator.received.clear()
    once(config, timeout_s=PATIENCE_S, make_link=coordinator.make_link)
    assert coordinator.of(PieceRequest) == coordinator.of(PieceListRequest) == []
    assert len(coordinator.of(Report)) == 1


def test_a_rejected_report_is_told_with_its_reason(config):
    coordinator = ScriptedCoordinator(status=ReceiptStatus.REJECTED)
    outcome = once(config, timeout_s=PATIENCE_S, make_link=coordinator.make_link)
    assert (outcome.ending, outcome.reason) == (RoundEnding.REJECTED, RejectionReason.LATE)


def test_too_few_examples_decline_the_round(tmp_path):
    write_examples(tmp_path / "data", x=X[:9], y=Y[:9])
    coordinator = ScriptedCoordinator()
    outcome = once(_config(tmp_path), timeout_s=PATIENCE_S, make_link=coordinator.make_link)
    assert (outcome.ending, outcome.reason) == (RoundEnding.WITHDRAWN, WithdrawalReason.TOO_FEW_EXAMPLES)
    assert [message.reason for message in coordinator.of(Withdrawal)] == [WithdrawalReason.TOO_FEW_EXAMPLES]


def test_no_round_in_time_gives_no_outcome(config):
    coordinator = ScriptedCoordinator(max_rounds=0)
    assert once(config, timeout_s=0.2, make_link=coordinator.make_link) is None
    assert coordinator.presence == ["online", "offline"]


def test_a_disk_that_takes_no_blobs_costs_a_download_and_not_the_round(config, tmp_path, caplog):
    coordinator = ScriptedCoordinator()
    daemon = Daemon(config, make_link=coordinator.make_link)
    (tmp_path / "state" / "blobs").write_bytes(b"a file where the directory belongs")
    daemon.serve(until=lambda agent: agent.last_outcome is not None, timeout_s=PATIENCE_S)
    assert daemon.agent.last_outcome.ending is RoundEnding.ACCEPTED
    assert "file_quarantined" in caplog.text


def test_a_second_daemon_on_the_same_state_is_refused_until_the_first_has_left(config):
    coordinator = ScriptedCoordinator(max_rounds=0)
    first = Daemon(config, make_link=coordinator.make_link)
    with pytest.raises(StorageError, match="another daemon"):
        Daemon(config, make_link=coordinator.make_link)
    first.stop()
    first.serve()
    second = Daemon(config, make_link=coordinator.make_link)
    second.stop()
    second.serve()


@pytest.fixture
def endless(tmp_path):
    """A coordinator whose job does not end by itself, and the configuration of its device."""
    write_examples(tmp_path / "data", x=np.tile(X, (500, 1)), y=np.tile(Y, 500))
    coordinator = ScriptedCoordinator(max_rounds=1)
    plan = encode_plan(TrainingPlan(**{name: getattr(PLAN, name) for name in PLAN.__struct_fields__} | {
        "num_epochs": 1000, "batch_size": 1}))  # fmt: skip
    coordinator.blobs[0] = split_blob(plan, piece_bytes=1024)
    return coordinator, _config(tmp_path)


def _when_training(daemon, act):
    """Calls ``act`` in another thread as soon as a job runs; returns that thread, and where the child's id will be."""
    pids = []

    def watch():
        ends_at = time.monotonic() + PATIENCE_S
        while daemon._trainer.pid is None and time.monotonic() < ends_at:
            time.sleep(0.01)
        pids.append(daemon._trainer.pid)
        act()

    watcher = threading.Thread(target=watch)
    watcher.start()
    return watcher, pids


def test_stop_in_the_middle_of_a_job_gives_the_assignment_back_and_leaves_no_process(endless):
    coordinator, config = endless
    daemon = Daemon(config, make_link=coordinator.make_link)
    watcher, pids = _when_training(daemon, daemon.stop)
    daemon.serve(timeout_s=2 * PATIENCE_S)
    watcher.join()
    assert [message.reason for message in coordinator.of(Withdrawal)] == [WithdrawalReason.SHUTTING_DOWN]
    assert coordinator.presence == ["online", "offline"]
    assert pids[0] is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@pytest.fixture
def sensor(tmp_path):
    """A machine with one thermal zone, and a function that sets it, in degrees Celsius."""
    zone = tmp_path / "machine/sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")

    def show(celsius):
        (zone / "next").write_text(f"{celsius}000\n")
        (zone / "next").replace(zone / "temp")

    show(50)
    return Machine(root=tmp_path / "machine", run=lambda command: Unknown("no such program"), num_cores=4), show


def test_a_device_that_grows_too_hot_kills_its_trainer_and_gives_the_assignment_back(endless, sensor):
    coordinator, config = endless
    machine, show = sensor
    daemon = Daemon(config, make_link=coordinator.make_link, machine=machine)
    watcher, pids = _when_training(daemon, lambda: show(95))
    daemon.serve(until=lambda agent: agent.last_outcome is not None, timeout_s=2 * PATIENCE_S)
    watcher.join()
    assert [message.reason for message in coordinator.of(Withdrawal)] == [WithdrawalReason.NOT_ELIGIBLE]
    assert pids[0] is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_time_that_the_broker_proved_is_kept_for_the_next_start(config, tmp_path):
    class ProvingCoordinator(ScriptedCoordinator):
        def make_link(self, config, channel, sink):
            def proving(event):
                sink(LinkUp(proved_unix_s=RELEASED_AT + 86400.5) if isinstance(event, LinkUp) else event)

            return super().make_link(config, channel, proving)

    once(config, timeout_s=PATIENCE_S, make_link=ProvingCoordinator().make_link)
    assert TimeFloor(tmp_path / "state" / "time_floor", writer=StateWriter()).floor == RELEASED_AT + 86400


def test_a_hot_device_is_online_but_checks_in_only_when_it_has_cooled(config, sensor):
    coordinator = ScriptedCoordinator()
    machine, show = sensor
    show(85)
    daemon = Daemon(config, make_link=coordinator.make_link, machine=machine)
    daemon.serve(timeout_s=0.5)
    assert coordinator.presence == ["online", "offline"]
    assert coordinator.of(CheckIn) == []
    assert [health.mode for health in coordinator.of(DeviceHealth)] == [DeviceMode.INELIGIBLE]
    show(40)
    outcome = once(config, timeout_s=PATIENCE_S, make_link=coordinator.make_link)
    assert outcome.ending is RoundEnding.ACCEPTED


def test_a_made_up_id_is_kept(tmp_path):
    write_examples(tmp_path / "data", x=X, y=Y)
    config = EdgeConfig(
        device=DeviceSection(population="p", state_dir=str(tmp_path / "state")),
        broker=BrokerSection(url="mqtt://localhost"),
        data=DataSection(path=str(tmp_path / "data")),
    )
    ids = []
    for _ in range(2):
        daemon = Daemon(config, make_link=ScriptedCoordinator(max_rounds=0).make_link)
        ids.append(daemon.agent.channel.device_id)
        daemon.stop()
        daemon.serve()
    assert ids[0] == ids[1]
    (tmp_path / "state" / "device_id").write_text("not/an/id")
    assert Daemon(config, make_link=ScriptedCoordinator().make_link).agent.channel.device_id not in ids
    assert (tmp_path / "state" / "device_id.corrupt").read_text() == "not/an/id"


def test_the_log_names_events_and_holds_no_numbers_of_the_model(config, caplog):
    caplog.set_level(logging.DEBUG)
    once(config, timeout_s=PATIENCE_S, make_link=ScriptedCoordinator().make_link)
    events = [record.getMessage().split(" ")[0] for record in caplog.records if record.name.startswith("edge_client")]
    for event in ("daemon_started", "connected", "session_moved", "job_finished", "round_over", "daemon_stopped"):
        assert event in events
    assert "array" not in caplog.text


def _write_record(tmp_path, **fields):
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state" / "crashes").write_bytes(encode_record(CrashRecord(**fields)))


def test_after_five_bad_starts_the_daemon_is_online_says_why_and_takes_no_part(config, tmp_path):
    _write_record(tmp_path, num_bad_starts=5)
    coordinator = ScriptedCoordinator()
    assert once(config, timeout_s=0.3, make_link=coordinator.make_link) is None
    assert coordinator.presence == ["online", "offline"]
    [health] = coordinator.received
    assert (health.mode, health.reason) == (DeviceMode.SAFE_MODE, "5 starts in a row ended badly")


def test_a_daemon_that_leaves_safe_mode_sends_what_waited_in_its_outbox(config, tmp_path):
    silent = ScriptedCoordinator(status=ReceiptStatus.BUSY)
    daemon = Daemon(config, make_link=silent.make_link)
    daemon.serve(until=lambda agent: agent.state is SessionState.REPORTING, timeout_s=PATIENCE_S)
    stored = (tmp_path / "state" / "outbox" / "report").read_bytes()
    _write_record(tmp_path, task_id="t", safe_left_s=0.3, reason="bad starts")
    answering = ScriptedCoordinator(max_rounds=0)
    answering.round_id = 1
    daemon = Daemon(config, make_link=answering.make_link)
    daemon.serve(timeout_s=0.1)
    assert [type(message) for message in answering.received] == [DeviceHealth]
    assert (tmp_path / "state" / "outbox" / "report").read_bytes() == stored
    outcome = once(config, timeout_s=PATIENCE_S, make_link=answering.make_link)
    assert outcome.ending is RoundEnding.ACCEPTED
    assert answering.of(Report) == silent.of(Report)
    assert not (tmp_path / "state" / "outbox" / "report").exists()


def test_the_death_of_the_trainer_is_remembered_and_an_orderly_refusal_is_not(tmp_path, monkeypatch):
    write_examples(tmp_path / "data", x=X, y=Y)
    monkeypatch.setenv("FLOCKWISE_FAILPOINTS", "device.trainer.before_train=1")
    outcome = once(_config(tmp_path), timeout_s=PATIENCE_S, make_link=ScriptedCoordinator().make_link)
    assert outcome.reason is WithdrawalReason.TRAINING_FAILED
    record = read_record(tmp_path / "state" / "crashes", StateWriter())
    assert (record.num_trainer_deaths, record.num_bad_starts) == (1, 0)
    monkeypatch.delenv("FLOCKWISE_FAILPOINTS")
    write_examples(tmp_path / "data", x=X[:9], y=Y[:9])
    once(_config(tmp_path), timeout_s=PATIENCE_S, make_link=ScriptedCoordinator().make_link)
    assert read_record(tmp_path / "state" / "crashes", StateWriter()).num_trainer_deaths == 0


def _refuse_writes(monkeypatch, *, number, only=None):
    """Makes writes into the state directory fail: all, or only the one of this position."""
    real, seen = state_writer.write_atomically, []

    def write(path, data, **mode):
        seen.append(path.name)
        if only is None or len(seen) - 1 == only:
            raise OSError(number, "injected")
        real(path, data, **mode)

    monkeypatch.setattr(state_writer, "write_atomically", write)
    return seen


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_device_that_can_store_nothing_gives_the_round_back_and_sends_no_report(config, monkeypatch, caplog, number):
    _refuse_writes(monkeypatch, number=number)
    coordinator = ScriptedCoordinator()
    outcome = once(config, timeout_s=PATIENCE_S, make_link=coordinator.make_link)
    assert (outcome.ending, outcome.reason) == (RoundEnding.WITHDRAWN, WithdrawalReason.NOT_ELIGIBLE)
    assert coordinator.of(Report) == coordinator.of(Piece) == []
    assert len(coordinator.of(Withdrawal)) == 1
    assert coordinator.presence == ["online", "offline"]
    assert caplog.text.count("file_not_written") == 1


@pytest.mark.parametrize("position", range(8))
def test_each_single_write_may_fail_and_the_daemon_goes_on(config, monkeypatch, position):
    number = (errno.ENOSPC, errno.EIO, errno.EROFS)[position % 3]
    seen = _refuse_writes(monkeypatch, number=number, only=position)
    coordinator = ScriptedCoordinator()
    outcome = once(config, timeout_s=PATIENCE_S, make_link=coordinator.make_link)
    if seen[min(position, len(seen) - 1)] == "report" and len(seen) > position:
        assert outcome.ending is RoundEnding.WITHDRAWN
        assert coordinator.of(Report) == []
    else:
        assert outcome.ending is RoundEnding.ACCEPTED


def test_a_file_in_the_place_of_the_state_directory_is_refused_and_not_moved(config, tmp_path):
    (tmp_path / "state").write_bytes(b"a file")
    with pytest.raises(StorageError, match="is a file"):
        Daemon(config, make_link=ScriptedCoordinator().make_link)
    assert (tmp_path / "state").read_bytes() == b"a file"


def test_a_state_directory_that_cannot_be_made_is_said_and_the_daemon_runs_without_memory(config, caplog):
    device = msgspec.structs.replace(config.device, state_dir="/proc/flockwise/state")
    # That place has no free space either, which alone would keep the device from training.
    config = msgspec.structs.replace(config, device=device, eligibility=EligibilitySection(enforce=False))
    coordinator = ScriptedCoordinator()
    outcome = once(config, timeout_s=PATIENCE_S, make_link=coordinator.make_link)
    assert outcome.ending is RoundEnding.WITHDRAWN
    assert coordinator.of(Report) == []
    assert "state_not_persistent" in caplog.text


def test_every_file_of_the_state_directory_may_be_damaged_and_the_daemon_starts(config, tmp_path):
    once(config, timeout_s=PATIENCE_S, make_link=ScriptedCoordinator().make_link)
    state = tmp_path / "state"
    files = {path: path.read_bytes() for path in sorted(state.rglob("*")) if path.is_file()}
    assert {"crashes", "report.over", "lock"} <= {path.name for path in files}
    link = ScriptedCoordinator(max_rounds=0).make_link
    for path, good in files.items():
        # A blob is not read at the start, and test_blob_store damages it everywhere.
        places = range(0, len(good), 64) if path.parent.name != "blobs" else (0,)
        flips = (good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in places)
        for damaged in (*flips, good[: len(good) // 2], b"", None):
            path.unlink(missing_ok=True)
            path.mkdir() if damaged is None else path.write_bytes(damaged)
            daemon = Daemon(config, make_link=link)
            daemon.stop()
            daemon.serve()
            if path.is_dir():
                path.rmdir()
            path.write_bytes(good)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_real_command_cleanly(tmp_path, number):
    write_examples(tmp_path / "data", x=X, y=Y)
    path = tmp_path / "client.toml"
    path.write_text(
        f'[device]\npopulation = "p"\nstate_dir = {json.dumps(str(tmp_path / "state"))}\n'
        '[broker]\nurl = "mqtt://127.0.0.1:9"\n[data]\npath = "data"\n'
    )
    command = [sys.executable, "-c", "from flockwise.cli import main; main()", "edge", "run", "--config", str(path)]
    process = subprocess.Popen([*command, "--json"], stderr=subprocess.PIPE, text=True)
    first = json.loads(process.stderr.readline())
    assert first["event"] == "daemon_started"
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait(PATIENCE_S) == 0
    process.stderr.close()
    assert json.loads(rest.splitlines()[-1])["event"] == "daemon_stopped"
