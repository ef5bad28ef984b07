"""Real daemons, each killed at another instant between the end of its job and its receipt; the real coordinator counts.

One round, one device per failpoint. While a device is dead its examples are replaced by others: what it would train
now is not what it trained before, so the bytes can be the same only if they came from the outbox.
"""

import collections
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from broker_link.link import Incoming
from broker_link.paho_link import PahoLink
from coordinator.admission import AdmissionPolicy
from coordinator.aggregation_spec import AggregationSpec
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.server import ServerConfig, run_rounds
from edge_client.example_store import write_examples
from simulators.chaos_coordinator import chaos_task, open_chaos_state
from simulators.process_fleet import write_device_config
from wire_protocol.tensors import decode_tensors
from wire_protocol.topics import parse_device_topic, up_filter

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

# What is killed before the report is stored has published nothing of it: it may train again, on whatever there is.
BEFORE_STORED = ("device.job.finished=1", "device.outbox.before_store=1")
STORED = (
    "device.outbox.after_store=1",
    "device.report.before=1",
    "device.report.after=1",
    "device.piece.before=1",
    "device.piece.after=1",
    "device.round.over=1",
    "device.outbox.before_drop=1",
)
DROPPED = ("device.outbox.after_drop=1",)
KILLS = (*BEFORE_STORED, *STORED, *DROPPED)
POPULATION = "kills"
PATIENCE_S = 60.0


class _Device:
    """One daemon in a process of its own."""

    def __init__(self, root, index, url):
        self.device_id = f"device-{index}"
        self.log = root / f"{self.device_id}.log"
        self._config = write_device_config(
            root, device_id=self.device_id, population=POPULATION, broker_url=url, num_threads=1
        )
        text = self._config.read_text()
        self._config.write_text(text.replace("[training]\n", '[training]\ntrainer = "linear"\n'))
        self.write_examples(seed=index)

    def write_examples(self, seed):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(12, 64)).astype(np.float32), rng.integers(0, 10, 12).astype(np.int32)
        write_examples(self._config.parent / "data", x=x, y=y)

    def start(self, failpoint=""):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "simulators.device_host", str(self._config)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=os.environ | {"FLOCKWISE_FAILPOINTS": failpoint},
            )  # fmt: skip

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()


class _Spy:
    """Everything that devices publish of their reports."""

    def __init__(self, url):
        self.payloads = collections.defaultdict(set)
        self._link = PahoLink(url=url, client_id="spy", subscriptions=[up_filter(POPULATION)], sink=self._on_event)
        self._link.start()

    def _on_event(self, event):
        if isinstance(event, Incoming):
            topic = parse_device_topic(event.topic)
            if topic.kind in {"report", "piece"}:
                self.payloads[topic.device_id, topic.kind].add(event.payload)

    def stop(self):
        self._link.stop()


def _serve(url, directory, stop):
    bundle = chaos_task()
    aggregator = NumpyMeanAggregator(bundle.plan.weights, AggregationSpec())
    config = ServerConfig(
        broker_url=url,
        population=POPULATION,
        policy=RoundPolicy(
            report_goal=len(KILLS), min_reports=len(KILLS), over_selection=1.0,
            selection_timeout_s=PATIENCE_S, report_timeout_s=PATIENCE_S,
        ),
        schedule=RoundSchedule(num_commits=1),
        admission=AdmissionPolicy(),
    )  # fmt: skip
    directory.mkdir()
    task = open_chaos_state(directory, aggregator, bundle)
    run_rounds(config, bundle=bundle, aggregator=aggregator, task=task, on_round=lambda *_: None, stop=stop)
    return bundle, aggregator


def _wait_until(condition, devices):
    ends_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_at, "\n".join(device.log.read_text()[-500:] for device in devices)
        time.sleep(0.05)


def test_a_device_killed_anywhere_between_job_and_receipt_resends_the_same_bytes_and_is_counted_once(
    tmp_path, embedded_url
):
    devices = [_Device(tmp_path, index, embedded_url) for index in range(len(KILLS))]
    spy, stop = _Spy(embedded_url), threading.Event()
    server = threading.Thread(target=_serve, args=(embedded_url, tmp_path / "coordinator", stop))
    server.start()
    try:
        for device, failpoint in zip(devices, KILLS, strict=True):
            device.start(failpoint)
        waiting = dict(enumerate(devices))
        while waiting:
            _wait_until(lambda: any(d.process.poll() is not None for d in waiting.values()), devices)
            for index in [i for i, device in waiting.items() if device.process.poll() is not None]:
                device = waiting.pop(index)
                assert device.process.returncode == -signal.SIGKILL, device.log.read_text()
                device.stop()
                device.write_examples(seed=1000 + index)
                device.start()
        _wait_until(lambda: not server.is_alive(), devices)
        _wait_until(lambda: all("round_id=1 ending=accepted" in d.log.read_text() for d in devices[:-1]), devices)
    finally:
        stop.set()
        server.join(PATIENCE_S)
        for device in devices:
            device.stop()
        spy.stop()
    _check_bytes(spy, devices)
    _check_resumed(devices)
    _check_counted(tmp_path / "coordinator", devices)


def _check_bytes(spy, devices):
    """Whatever a device published of its report, it published the same each time; one piece is a whole update here."""
    for device in devices:
        assert len(spy.payloads[device.device_id, "report"]) == 1, device.device_id
        assert len(spy.payloads[device.device_id, "piece"]) == 1, device.device_id


def _check_resumed(devices):
    """Those whose report was stored sent it without training again; the others trained again."""
    for device, failpoint in zip(devices, KILLS, strict=True):
        log = device.log.read_text()
        assert bool(re.search("report_resumed round_id=1", log)) is (failpoint in STORED), failpoint
        assert log.count("job_finished round_id=1") == (2 if failpoint == "device.outbox.before_store=1" else 1), (
            failpoint
        )


def _check_counted(directory, devices):
    """Each device once, and the model is the mean of what the journal says was counted."""
    bundle = chaos_task()
    task = open_chaos_state(directory, NumpyMeanAggregator(bundle.plan.weights, AggregationSpec()), bundle)
    rows = task.journal.audit()
    task.journal.close()
    assert sorted(row[1] for row in rows) == sorted(device.device_id for device in devices)
    updates = [decode_tensors(row[2], bundle.plan.weights) for row in rows]
    for index, weight in enumerate(task.state.weights):
        mean = np.mean([update[index].astype(np.float64) for update in updates], axis=0)
        np.testing.assert_allclose(weight, mean, atol=1e-6)
