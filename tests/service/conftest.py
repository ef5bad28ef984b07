"""systemd's own tools, a unit whose program exists, and a coordinator and a manager for a real daemon."""

import contextlib
import os
import shutil
import socket
import threading
import time
from importlib import resources
from pathlib import Path

import pytest

from broker_link.link import Incoming, LinkUp
from broker_link.paho_link import PahoLink
from coordinator.broker_choice import broker_at
from wire_protocol.blobs import BlobAssembler, split_blob
from wire_protocol.messages import (
    Assignment,
    CheckIn,
    DeviceStatus,
    Piece,
    PieceList,
    PieceListRequest,
    PieceRequest,
    Receipt,
    ReceiptStatus,
    Report,
    RoundKind,
    TaskAnnouncement,
    Withdrawal,
    decode_message,
    encode_message,
    message_kind,
)
from wire_protocol.model_contract import BUNDLE_CHECKPOINT, BUNDLE_MODEL, BUNDLE_PLAN
from wire_protocol.topics import device_down, parse_device_topic, population_task, status_filter, up_filter

ROOT = Path(__file__).resolve().parents[2]
_UP = {message_kind(kind): kind for kind in (CheckIn, PieceListRequest, PieceRequest, Piece, Report, Withdrawal)}


@pytest.fixture(scope="session")
def systemd_analyze():
    """The program; without it these tests prove nothing, so in CI it must be there."""
    program = shutil.which("systemd-analyze")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze must be installed in CI: .ci/run installs it")
        pytest.skip("systemd-analyze is not installed; 'apt install systemd' brings it")
    return program


@pytest.fixture(params=["flockwise-edge.service", "flockwise-coordinator.service"])
def unit(request, tmp_path):
    """A copy of a shipped unit that starts a program which exists, so that `verify` has nothing to say about that."""
    program = tmp_path / "opt" / "bin" / "flockwise"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / request.param
    text = (ROOT / "deploy" / request.param).read_text()
    assert text.count("ExecStart=/opt/flockwise/bin/flockwise ") == 1
    copy.write_text(text.replace("/opt/flockwise/bin/flockwise", str(program)))
    return copy


@pytest.fixture(scope="session")
def embedded_url():
    """Address of a running broker."""
    with broker_at("embedded") as url:
        yield url


class ScriptedCoordinator:
    """Over a real broker: gives every check-in the packaged probe model, and accepts the update."""

    def __init__(self, url, population):
        self.population = population
        self.messages = []
        self.accepted = threading.Event()
        self.blobs = [split_blob(data, piece_bytes=8192) for data in probe_files()]
        self._update = None
        filters = (up_filter(population), status_filter(population))
        self._link = PahoLink(
            url=url, client_id=f"{population}-coordinator", subscriptions=filters, sink=self._on_event
        )
        self._link.start()

    def close(self):
        self._link.stop()

    def _on_event(self, event):
        plan, model, _ = (blob.ref for blob in self.blobs)
        if isinstance(event, LinkUp):
            task = encode_message(TaskAnnouncement(task_id="t", plan=plan, model=model))
            self._link.publish(population_task(self.population), task, retain=True)
        if not isinstance(event, Incoming):
            return
        topic = parse_device_topic(event.topic)
        if topic.direction == "status":
            self.messages.append(decode_message(event.payload, DeviceStatus))
            return
        if topic.kind not in _UP:
            return
        message = decode_message(event.payload, _UP[topic.kind])
        self.messages.append(message)
        for answer in self._answers(message):
            name = device_down(self.population, topic.device_id, message_kind(answer))
            self._link.publish(name, encode_message(answer))

    def _answers(self, message):
        plan, model, checkpoint = (blob.ref for blob in self.blobs)
        match message:
            case CheckIn() if not self.accepted.is_set():
                yield Assignment(round_id=1, nonce=b"n" * 16, check_in=message.nonce, kind=RoundKind.TRAIN, task_id="t",
                                 plan=plan, model=model, checkpoint=checkpoint, deadline_s=600.0)  # fmt: skip
            case PieceListRequest() | PieceRequest():
                blob = next(blob for blob in self.blobs if blob.ref.sha256 == message.sha256)
                if isinstance(message, PieceListRequest):
                    yield PieceList(sha256=message.sha256, digests=blob.piece_digests)
                    return
                for index in message.indices:
                    yield Piece(sha256=message.sha256, index=index, data=blob.piece(index))
            case Report():
                self._update = BlobAssembler(message.update)
            case Piece():
                self._update.add(message.index, message.data)
                if self._update.is_complete:
                    self.accepted.set()
                    yield Receipt(round_id=1, nonce=b"n" * 16, status=ReceiptStatus.ACCEPTED)


def probe_files():
    """Plan, model file and checkpoint of the packaged probe model."""
    names = (BUNDLE_PLAN, BUNDLE_MODEL, BUNDLE_CHECKPOINT)
    return [(resources.files("edge_client") / "probe_model" / name).read_bytes() for name in names]


@pytest.fixture
def scripted_coordinator():
    """Makes coordinators; ends them."""
    made = []

    def make(url, population):
        made.append(ScriptedCoordinator(url, population))
        return made[-1]

    yield make
    for coordinator in made:
        coordinator.close()


class Manager:
    """The service manager's end of a notify socket."""

    def __init__(self, path):
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self.lines = []

    def read(self, wanted, timeout_s=30.0):
        """Reads until a line has come; returns whether it has."""
        ends_at = time.monotonic() + timeout_s
        while wanted not in self.lines and time.monotonic() < ends_at:
            self._socket.settimeout(max(ends_at - time.monotonic(), 0.001))
            with contextlib.suppress(TimeoutError):
                self.lines += self._socket.recv(4096).decode().splitlines()
        return wanted in self.lines

    def close(self):
        self._socket.close()


@pytest.fixture
def manager(tmp_path):
    opened = Manager(tmp_path / "notify")
    yield opened
    opened.close()
