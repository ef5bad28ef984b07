"""The service manager hears from a healthy daemon, and no more from one that hangs or has lost a helper thread."""

import math
import secrets
import socket
import threading
import time

import numpy as np
import pytest

from broker_link.memory_broker import MemoryBroker
from broker_link.paho_link import PahoLink
from edge_client.config import BrokerSection, DataSection, DeviceSection, EdgeConfig, TrainingSection
from edge_client.daemon import Daemon
from edge_client.example_store import write_examples
from edge_client.service_manager import READY_AFTER_S, ServiceManager

PATIENCE_S = 30.0
WATCHDOG = {"WATCHDOG_USEC": "300000"}  # fed every 0.1 s


class Manager:
    """The manager's end: a datagram socket, at a path or in the abstract namespace."""

    def __init__(self, address):
        self.environ = {"NOTIFY_SOCKET": address.replace("\0", "@")}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(PATIENCE_S)

    def take(self):
        """The lines of the next datagram."""
        return self._socket.recv(4096).decode().splitlines()

    def wait_for(self, line):
        ends_at = time.monotonic() + PATIENCE_S
        while line not in self.take():
            assert time.monotonic() < ends_at, f"no {line}"

    def drain(self):
        """What has come until now."""
        lines = []
        self._socket.settimeout(0)
        try:
            while True:
                lines += self._socket.recv(4096).decode().splitlines()
        except BlockingIOError:
            return lines
        finally:
            self._socket.settimeout(PATIENCE_S)

    def close(self):
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    address = str(tmp_path / "notify") if request.param == "path" else f"\0flockwise-{secrets.token_hex(8)}"
    opened = Manager(address)
    yield opened
    opened.close()


def _turn(told, now, **turn):
    told.turned(now, **({"is_connected": False, "status": "idle", "fault": ""} | turn))


def test_ready_is_told_once_and_when_connected(manager):
    told = ServiceManager(manager.environ)
    told.started(100.0)
    _turn(told, 100.1)
    assert manager.drain() == ["STATUS=idle"]
    _turn(told, 100.2, is_connected=True)
    assert manager.drain() == ["READY=1"]
    _turn(told, 100.3, is_connected=False)
    _turn(told, 100.4, is_connected=True)
    assert manager.drain() == []


def test_a_device_without_a_network_counts_as_started_after_a_bounded_time(manager):
    told = ServiceManager(manager.environ)
    told.started(100.0)
    assert told.next_wakeup() <= 100.0 + READY_AFTER_S
    _turn(told, 100.0 + READY_AFTER_S - 0.1)
    assert "READY=1" not in manager.drain()
    _turn(told, 100.0 + READY_AFTER_S)
    assert manager.drain() == ["READY=1"]


def test_the_watchdog_is_fed_three_times_in_its_patience_and_not_while_something_is_dead(manager):
    told = ServiceManager(manager.environ | {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "77"}, pid=77)
    told.started(0.0)
    _turn(told, 0.0)
    assert manager.drain() == ["WATCHDOG=1", "STATUS=idle"]
    assert told.next_wakeup() == pytest.approx(20.0)
    _turn(told, 19.9)
    assert manager.drain() == []
    _turn(told, 20.0, fault="the exchange is dead")
    assert manager.drain() == ["STATUS=the exchange is dead"]
    assert told.next_wakeup() == pytest.approx(READY_AFTER_S)
    _turn(told, 40.0, fault="the exchange is dead")
    assert "WATCHDOG=1" not in manager.drain()
    assert told.next_wakeup() == pytest.approx(60.0), "a loop must not spin while it may not feed"
    _turn(told, 60.0)
    assert manager.drain() == ["WATCHDOG=1", "STATUS=idle"]


@pytest.mark.parametrize(
    "environ",
    [{"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {}],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(manager, environ):
    told = ServiceManager(manager.environ | environ, pid=77)
    told.started(0.0)
    _turn(told, 1e6, is_connected=True)
    assert manager.drain() == ["READY=1", "STATUS=idle"]
    assert told.next_wakeup() == math.inf


def test_a_status_is_one_line(manager):
    told = ServiceManager(manager.environ)
    told.started(0.0)
    _turn(told, 0.0, status="first\nREADY=1\nWATCHDOG=trigger")
    [line] = manager.drain()
    assert line == "STATUS=first READY=1 WATCHDOG=trigger"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/nowhere/at/all", "@nobody-listens"])
def test_nobody_to_tell_is_no_trouble(address):
    told = ServiceManager({"NOTIFY_SOCKET": address} | WATCHDOG)
    told.started(0.0)
    _turn(told, 1.0, is_connected=True)
    told.stopping()
    told.close()
    told.stopping()
    assert told.next_wakeup() == math.inf


@pytest.fixture
def config(tmp_path):
    write_examples(tmp_path / "data", x=np.ones((20, 5), np.float32), y=np.arange(20) % 3)
    return EdgeConfig(
        device=DeviceSection(population="p", id="d1", state_dir=str(tmp_path / "state")),
        broker=BrokerSection(url="mqtt://127.0.0.1:9"),
        data=DataSection(path=str(tmp_path / "data")),
        training=TrainingSection(trainer="linear"),
    )


class Running:
    """A real daemon in a thread of its own."""

    def __init__(self, config, manager, make_link):
        told = ServiceManager(manager.environ | WATCHDOG)
        self.daemon = Daemon(config, make_link=make_link, service_manager=told)
        self._thread = threading.Thread(target=self.daemon.serve)
        self._thread.start()

    def stop(self):
        self.daemon.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def _memory_link(config, channel, sink):
    broker = MemoryBroker(schedule=lambda delay_s, deliver: deliver())
    return broker.link(subscriptions=channel.subscriptions, sink=sink, will=channel.will)


def _paho_link(config, channel, sink):
    return PahoLink(url=config.broker.url, client_id="d1", subscriptions=channel.subscriptions, sink=sink)


def test_a_healthy_daemon_is_ready_feeds_the_watchdog_and_says_goodbye(config, manager):
    running = Running(config, manager, _memory_link)
    try:
        manager.wait_for("READY=1")
        for _ in range(3):
            manager.wait_for("WATCHDOG=1")
    finally:
        running.stop()
    assert manager.drain()[-2:] == ["STOPPING=1", "STATUS=leaving"]


def test_a_daemon_that_finds_no_broker_is_alive(config, manager):
    running = Running(config, manager, _paho_link)
    try:
        for _ in range(3):
            manager.wait_for("WATCHDOG=1")
    finally:
        running.stop()


def test_a_loop_that_hangs_starves_the_watchdog(config, manager):
    running = Running(config, manager, _memory_link)
    release = threading.Event()
    try:
        manager.wait_for("WATCHDOG=1")
        # The loop's own thread waits inside the handling of an event, as it would in a call that never returns.
        running.daemon._perform = lambda actions: release.wait(PATIENCE_S)
        running.daemon._link.lose("test")
        time.sleep(0.2)
        manager.drain()
        time.sleep(0.5)  # five feeds
        assert manager.drain() == []
    finally:
        release.set()
        running.stop()


def test_a_dead_supervisor_starves_the_watchdog_though_the_loop_turns(config, manager, monkeypatch):
    # As paho #894: the thread that should keep the connection ends without a word.
    monkeypatch.setattr(PahoLink, "_supervise", lambda self: None)
    running = Running(config, manager, _paho_link)
    try:
        manager.wait_for("STATUS=the link's supervisor is dead")
        time.sleep(0.5)
        assert "WATCHDOG=1" not in manager.drain()
    finally:
        running.stop()


def test_a_dead_exchange_starves_the_watchdog_only_while_a_job_waits_for_it(config, manager):
    running = Running(config, manager, _memory_link)
    trainer = running.daemon._trainer
    try:
        manager.wait_for("WATCHDOG=1")
        trainer._job = object()  # a job whose thread has died without an answer
        manager.wait_for("STATUS=the trainer's exchange is dead")
        manager.drain()
        time.sleep(0.3)
        assert "WATCHDOG=1" not in manager.drain()
        trainer._job = None
        manager.wait_for("WATCHDOG=1")
    finally:
        trainer._job = None
        running.stop()
