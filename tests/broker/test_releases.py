"""Releases over a real broker, to real daemons, with real models: good ones reach everybody, bad ones stay with the canary."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.releases.drafting import GoldenRules, draft_release
from coordinator.releases.gates import GateRules
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.rollout_table import RolloutState
from coordinator.releases.serving import KEYS_DIRECTORY, open_channel, run_station
from coordinator.releases.signing_keys import KeyFiles
from edge_client.inference import ReleasedModel
from edge_client.releases.golden import GoldenExamples, encode_golden
from tests.releases.real_models import build_model, crashing_model
from wire_protocol.release import ModelTensor, ReleaseLineage, ReleaseNeeds
from wire_protocol.release_report import ReleaseFailure

pytestmark = [pytest.mark.broker, pytest.mark.tensorflow]

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 90.0
RULES = GateRules(min_devices=1, max_stage_s=300.0)


def _draft(number, model, *, outputs_of=None, max_latency_ms=200.0):
    """A release whose golden outputs are those of ``outputs_of``: a bad model lies about itself."""
    from model_export.golden_outputs import golden_outputs

    inputs = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    outputs = golden_outputs(outputs_of or model, inputs)
    return draft_release(
        name="digits", number=number, model=model,
        tensors=(ModelTensor(shape=(64,), dtype="float32"), ModelTensor(shape=(10,), dtype="float32")),
        golden=GoldenRules(
            data=encode_golden(GoldenExamples(inputs=inputs, outputs=outputs)), num_examples=16, max_abs_error=1e-3,
            min_agreement=0.9, max_latency_ms=max_latency_ms,
        ),
        needs=ReleaseNeeds(min_runtime="2.1.0", min_memory_mb=64),
        lineage=ReleaseLineage(),
    )  # fmt: skip


class _Fleet:
    """Three daemons, one of them the canary, and a watcher that looks at their models all the time."""

    def __init__(self, directory, broker_url, root):
        self.directories = [directory / name for name in ("canary", "pi-1", "pi-2")]
        self._processes = []
        self.gaps = []
        self.numbers = {path.name: set() for path in self.directories}
        self._is_over = threading.Event()
        for path in self.directories:
            path.mkdir(parents=True)
            (path / "root.json").write_bytes(root)
            (path / "edge.toml").write_text(
                f'[device]\nid = "{path.name}"\npopulation = "digits"\nstate_dir = "state"\n'
                f'[broker]\nurl = "{broker_url}"\n[data]\npath = "data"\n[eligibility]\nenforce = false\n'
                '[releases]\nmodels = ["digits"]\nroot_file = "root.json"\ntrial_min = 0.02\ncheck_time_limit_s = 30\n'
                + (f'tags = ["{path.name}"]\n' if path.name == "canary" else "")
            )
            command = [sys.executable, "-c", "from flockwise.cli import main; main()", "edge", "run", "--config"]
            with (path / "log").open("wb") as log:
                self._processes.append(
                    subprocess.Popen(
                        [*command, str(path / "edge.toml")],
                        cwd=ROOT,
                        stdout=log,
                        stderr=log,
                        env=os.environ | {"PYTHONPATH": str(ROOT)},
                    )
                )
        self._watcher = threading.Thread(target=self._watch)

    def model_directory(self, path):
        return path / "state" / "models" / "digits"

    def start_watching(self):
        self._watcher.start()

    def current(self, path):
        with contextlib.suppress(OSError):
            return int((self.model_directory(path) / "current").readlink().name)
        return 0

    def _watch(self):
        """Whoever opens the stable path at any instant must find a whole model there."""
        while not self._is_over.is_set():
            for path in self.directories:
                try:
                    data = (self.model_directory(path) / "current" / "model.tflite").read_bytes()
                    self.numbers[path.name].add(self.current(path))
                    if data[4:8] != b"TFL3":
                        self.gaps.append((path.name, "not a model"))
                except OSError as error:
                    self.gaps.append((path.name, repr(error)))
            time.sleep(0.005)

    def stop(self):
        self._is_over.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(condition, what):
    ends_at = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends_at, what
        time.sleep(0.1)


def test_good_releases_reach_the_fleet_and_bad_ones_never_leave_the_canary(tmp_path, mosquitto_url):
    good, better = build_model(seed=1), build_model(seed=2)
    channel = tmp_path / "channel"
    ReleaseRepository.create(channel, KeyFiles(channel / KEYS_DIRECTORY), now=time.time)
    repository, book, rollouts = open_channel(channel)
    stop = threading.Event()
    station = threading.Thread(
        target=run_station,
        kwargs={"directory": channel, "population": "digits", "broker_url": mosquitto_url, "stop": stop, "step_s": 0.3},
    )
    station.start()
    fleet = _Fleet(tmp_path / "devices", mosquitto_url, repository.root_bytes)
    try:
        _push(repository, _draft(1, good))
        rollouts.start("digits", 1, stages=(1000,), rules=RULES)
        _wait(lambda: all(fleet.current(path) == 1 for path in fleet.directories), "release 1 everywhere")
        _wait(lambda: book.open_rollout("digits") is None, "the first rollout completes")
        app = ReleasedModel(fleet.model_directory(fleet.directories[0]))
        fleet.start_watching()

        bad = {
            2: (_draft(2, build_model(seed=3, scale=float("nan")), outputs_of=good), ReleaseFailure.NON_FINITE),
            3: (_draft(3, build_model(seed=3, num_outputs=11), outputs_of=good), ReleaseFailure.WRONG_SHAPE),
            4: (_draft(4, build_model(seed=1, work=30), max_latency_ms=0.5), ReleaseFailure.SLOW),
            5: (_draft(5, crashing_model(good), outputs_of=good), ReleaseFailure.CRASHED),
            6: (_draft(6, b"TFL3" * 1000, outputs_of=good), ReleaseFailure.DAMAGED),
            7: (_draft(7, better, outputs_of=good), ReleaseFailure.INACCURATE),
        }
        for number, (draft, failure) in bad.items():
            _push(repository, draft)
            rollouts.start("digits", number, stages=(1000,), rules=RULES, tags=("canary",))
            _wait(lambda: _is_over(repository, book), f"rollout {number} ends")
            assert book.rollouts("digits")[-1][1].state is RolloutState.ABORTED
            report = book.reports("digits")["canary"]
            assert (report.number, report.failure, report.current) == (number, failure, 1)
            repository.withdraw_release("digits", number)

        _push(repository, _draft(8, better))
        rollouts.start("digits", 8, stages=(1000,), rules=RULES, tags=("canary",))
        _wait(lambda: all(fleet.current(path) == 8 for path in fleet.directories), "release 8 everywhere")
        x = np.ones((3, 64), np.float32)
        swapped = app.predict(x)
        assert app.number == 8
        assert swapped.shape == (3, 10)
        rollouts.roll_back("digits", 1)
        _wait(lambda: all(fleet.current(path) == 1 for path in fleet.directories), "back to release 1")
        app.predict(x)
        assert app.number == 1
    finally:
        stop.set()
        station.join()
        fleet.stop()
        book.close()
    assert fleet.gaps == [], "at no instant was a device without a working model"
    assert fleet.numbers == {name: {1, 8} for name in ("canary", "pi-1", "pi-2")}, "no bad model was ever in use"


def _is_over(repository, book):
    """The book is written before the order is signed."""
    return book.open_rollout("digits") is None and repository.orders()["digits"].candidate == 0


def _push(repository, draft):
    repository.add_release(draft.manifest, draft.blobs)


def test_the_commands_do_it_all_from_keys_to_a_rollback(tmp_path, embedded_url):
    """Keys, push, rollout, models: every command with --json, as scripts use them."""

    def run(*words, code=0):
        done = subprocess.run(
            [sys.executable, "-c", "from flockwise.cli import main; main()", *words],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 and "--json" in words else done.stdout + done.stderr

    channel, model = str(tmp_path / "channel"), tmp_path / "model.tflite"
    model.write_bytes(build_model(seed=1))
    assert run("keys", "init", "--channel", channel, "--dry-run", "--json")["made"] is False
    run("keys", "init", "--channel", channel, "--json")
    assert "already" in run("keys", "init", "--channel", channel, code=1)
    assert run("push", str(model), "--name", "digits", "--channel", channel, "--dry-run", "--json")["signed"] is False
    pushed = run("push", str(model), "--name", "digits", "--channel", channel, "--json")
    assert (pushed["number"], pushed["signed"]) == (1, True)
    model.write_bytes(build_model(seed=1, scale=float("nan")))
    assert "cannot be released" in run("push", str(model), "--name", "digits", "--channel", channel, code=1)
    model.write_bytes(build_model(seed=2))
    assert run("push", str(model), "--name", "digits", "--channel", channel, "--json")["number"] == 2
    assert run("rollout", "start", "digits", "1", "--channel", channel, "--json")["state"] == "running"
    assert run("rollout", "pause", "digits", "--channel", channel, "--dry-run", "--json")["done"] is False
    assert run("rollout", "pause", "digits", "--channel", channel, "--json")["state"] == "paused"
    assert "cannot be paused" in run("rollout", "pause", "digits", "--channel", channel, code=1)
    assert run("rollout", "abort", "digits", "--channel", channel, "--json")["state"] == "aborted"
    assert run("rollout", "rollback", "digits", "2", "--channel", channel, "--json")["ordered"] is True
    assert len(run("rollout", "status", "--channel", channel, "--json")["rollouts"]) == 2
    assert run("keys", "rotate", "targets", "--channel", channel, "--json")["root_version"] == 2
    assert {row["role"] for row in run("keys", "status", "--channel", channel, "--json")["roles"]} >= {
        "root",
        "rollout",
    }
    assert len(run("models", "list", "--channel", channel, "--json")["releases"]) == 2
    assert "# digits 2" in run("models", "show", "digits", "2", "--channel", channel)
    assert "sha256" in run("models", "diff", "digits", "1", "2", "--channel", channel, "--json")["differences"]
    assert "order another release first" in run("models", "withdraw", "digits", "2", "--channel", channel, code=1)
    assert run("models", "withdraw", "digits", "1", "--channel", channel, "--dry-run", "--json")["withdrawn"] is False
    assert run("models", "withdraw", "digits", "1", "--channel", channel, "--json")["withdrawn"] is True
    assert len(run("models", "list", "--channel", channel, "--json")["releases"]) == 1
    served = run(
        "rollout", "serve", "--once", "--channel", channel, "--population", "digits", "--broker", embedded_url, "--json"
    )
    assert served["published"] > 8
    manifest = msgspec.json.encode(run("models", "show", "digits", "2", "--channel", channel, "--json"))
    assert b'"name":"digits"' in manifest
