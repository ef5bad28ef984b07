"""Whatever happens in whatever order, the agent raises nothing, and apps find a whole model that is not refused."""

import hashlib
import math
import random
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge_client.errors import StorageError
from edge_client.releases.agent import ReleaseAgent
from edge_client.releases.check_child import CheckVerdict
from edge_client.releases.compatibility import DeviceFacts
from edge_client.releases.health_check import HealthCheck
from edge_client.releases.release_table import ReleaseStage
from edge_client.releases.settings import ReleaseSettings
from edge_client.releases.slots import MODEL_FILE, ModelSlots
from edge_client.releases.trusted import VerifiedModel
from edge_client.state_writer import StateWriter
from tests.releases.conftest import GOLDEN, make_manifest, make_order
from wire_protocol.blobs import split_blob
from wire_protocol.release import ReleaseManifest
from wire_protocol.release_report import ReleaseFailure, ReleaseReport, ReleaseState
from wire_protocol.topics import parse_release_piece

MODELS = {number: split_blob(random.Random(number).randbytes(5000)) for number in (1, 2, 3)}
BLOBS = {blob.ref.sha256: blob for blob in (*MODELS.values(), GOLDEN)}
FACTS = DeviceFacts(runtime_version="2.3.0", memory_mb=1000.0, tags=frozenset({"x86_64"}))


def _manifest(number: int) -> ReleaseManifest:
    return msgspec.structs.replace(make_manifest(number), model=MODELS[number].ref)


class _Writer(StateWriter):
    is_full = False

    def write(self, path: Path, data: bytes, *, mode: int = 0o600) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        super().write(path, data, mode=mode)


class _Checks:
    verdict: CheckVerdict | None = None
    is_running = False

    def start(self, slot: Path) -> None:
        self.is_running, self.verdict = True, None
        assert (slot / MODEL_FILE).is_file()

    def poll(self) -> CheckVerdict | None:
        if not self.is_running or self.verdict is None:
            return None
        self.is_running = False
        return self.verdict

    def next_wakeup(self) -> float:
        return 0.0 if self.is_running else math.inf

    def stop(self) -> None:
        self.is_running = False


class _Device:
    """An agent on a real directory, driven by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now, self.serial = 0.0, 0
        self.reports: list[ReleaseReport] = []
        self.boot()

    def boot(self) -> None:
        self.writer, self.checks = _Writer(), _Checks()
        self.slots = ModelSlots(self.directory, writer=self.writer)
        self.agent = ReleaseAgent(
            population="digits", device_id="pi-1", name="digits", facts=FACTS, slots=self.slots, checks=self.checks,
            uniform=lambda low, _high: low, settings=ReleaseSettings(trial_s=60.0),
        )  # fmt: skip

    def order(self, baseline: int, candidate: int = 0, *, is_paused: bool = False) -> None:
        self.serial += 1
        if candidate == baseline:
            candidate = 0
        order = make_order(self.serial, baseline=baseline, candidate=candidate, permille=1000 if candidate else 0)
        order = msgspec.structs.replace(order, is_paused=is_paused)
        manifests = {number: _manifest(number) for number in {baseline, candidate} - {0}}
        self.agent.follow(VerifiedModel(order=order, manifests=manifests), self.now)

    def pieces(self, *, is_good: bool = True) -> None:
        for topic in sorted(self.agent.topics):
            sha256, index = parse_release_piece(topic)
            data = BLOBS[sha256].piece(index) if index is not None else BLOBS[sha256].piece_digests
            self.agent.take_piece(topic, data if is_good else b"no" + data[2:], self.now)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.agent.tick(self.now)
        while (report := self.agent.pop_report()) is not None:
            self.reports.append(report)

    def run(self, verdict: CheckVerdict | None = None, *, turns: int = 12) -> None:
        for _ in range(turns):
            self.pieces()
            if self.checks.is_running:
                self.checks.verdict = verdict or CheckVerdict()
            self.tick(31.0)

    def run_to_trial(self) -> None:
        while self.agent.stage is not ReleaseStage.TRIAL:
            self.run(turns=1)

    @property
    def model(self) -> bytes:
        return (self.slots.current_path / MODEL_FILE).read_bytes()


BAD = CheckVerdict(failure=ReleaseFailure.SLOW, detail="9 ms")


class AnythingHappens(RuleBasedStateMachine):
    """Orders, pieces, verdicts, time, connections, full disks and power cuts, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.device = _Device(self.directory)
        self.has_settled = False

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    @rule(baseline=st.integers(0, 3), candidate=st.integers(0, 3), is_paused=st.booleans())
    def order(self, baseline: int, candidate: int, is_paused: bool) -> None:  # noqa: FBT001 - hypothesis calls it
        self.device.order(baseline, candidate, is_paused=is_paused)

    @rule(is_good=st.sampled_from([True, True, True, False]))
    def pieces(self, is_good: bool) -> None:  # noqa: FBT001 - hypothesis calls it
        self.device.pieces(is_good=is_good)

    @rule(verdict=st.sampled_from([CheckVerdict(), CheckVerdict(), BAD]))
    def verdict(self, verdict: CheckVerdict) -> None:
        self.device.checks.verdict = verdict
        self.device.tick(0.1)

    @rule(seconds=st.sampled_from([0.0, 1.0, 31.0, 100.0]))
    def time(self, seconds: float) -> None:
        self.device.tick(seconds)

    @rule()
    def reconnect(self) -> None:
        self.device.agent.reconnect(self.device.now)

    @rule()
    def all_goes_well(self) -> None:
        self.device.writer.is_full = False
        self.device.run()

    @rule(is_full=st.booleans())
    def disk(self, is_full: bool) -> None:  # noqa: FBT001 - hypothesis calls it
        self.device.writer.is_full = is_full

    @rule()
    def power_cut(self) -> None:
        self.device.boot()

    @invariant()
    def apps_find_a_whole_model(self) -> None:
        device = self.device
        if device.agent.current:
            self.has_settled = True
            digest = hashlib.sha256(device.model).digest()
            assert digest == MODELS[device.agent.current].ref.sha256
        else:
            assert not self.has_settled
        is_moving = device.agent.stage in {ReleaseStage.TRIAL, ReleaseStage.CHECKING}
        assert is_moving or not device.checks.is_running

    @invariant()
    def a_refused_release_is_in_use_only_for_want_of_another(self) -> None:
        record = self.device.slots.record
        if str(record.current) in record.refused and self.device.agent.stage is not ReleaseStage.TRIAL:
            assert record.previous == 0 or str(record.previous) in record.refused
            assert all(r.state is not ReleaseState.SETTLED for r in self.device.reports if r.serial == record.serial)


TestAnythingHappens = AnythingHappens.TestCase
TestAnythingHappens.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def device(tmp_path: Path) -> _Device:
    return _Device(tmp_path / "digits")


def test_a_release_that_is_damaged_on_disk_is_fetched_again_and_not_refused(device: _Device) -> None:
    device.order(1)
    device.run()
    device.order(1, 2)
    device.run()
    (device.slots.path(1) / MODEL_FILE).write_bytes(b"short")
    device.order(1)
    device.run()
    assert device.agent.current == 1
    assert device.model == MODELS[1].data
    assert device.slots.record.refused == {}


@pytest.mark.parametrize("noticed_at", ["boot", "order"])
def test_a_model_in_use_that_is_damaged_makes_room_for_the_one_before_and_comes_again(
    device: _Device, noticed_at: str
) -> None:
    device.order(1)
    device.run()
    device.order(2)
    device.run()
    (device.slots.path(2) / MODEL_FILE).write_bytes(b"short")
    if noticed_at == "boot":
        device.boot()
    else:
        device.order(2)
    assert device.agent.current == 1
    assert device.model == MODELS[1].data
    device.order(2)
    device.run()
    assert device.model == MODELS[2].data


def test_a_first_release_that_fails_in_use_is_never_said_to_have_settled(device: _Device) -> None:
    device.order(1)
    device.run_to_trial()
    device.run(BAD, turns=2)
    device.order(1)
    device.run()
    assert device.agent.current == 1, "there is nothing to go back to"
    assert device.reports[-1].state is ReleaseState.FAILED


def test_a_way_back_leads_past_a_release_whose_trial_was_broken_off(device: _Device) -> None:
    device.order(1)
    device.run()
    device.order(2)
    device.run_to_trial()
    assert device.agent.stage is ReleaseStage.TRIAL
    device.order(3)
    device.run_to_trial()
    assert device.agent.current == 3
    device.run(BAD)
    assert device.agent.current == 1


def test_a_trial_that_was_broken_off_is_made_again_before_it_counts(device: _Device) -> None:
    device.order(1)
    device.run()
    device.order(2)
    device.run_to_trial()
    device.order(3)
    device.order(2)
    assert device.agent.stage is ReleaseStage.TRIAL


def test_a_disk_that_is_full_puts_a_roll_back_off_and_does_not_drop_it(device: _Device) -> None:
    device.order(1)
    device.run()
    device.order(2)
    device.run_to_trial()
    device.writer.is_full = True
    device.run(BAD, turns=3)
    device.writer.is_full = False
    device.run()
    assert device.agent.current == 1
    assert "2" in device.slots.record.refused


def test_a_link_that_cannot_be_replaced_leaves_the_record_at_what_apps_read(
    device: _Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.order(1)
    device.run()
    device.slots.put(_manifest(2), model=MODELS[2].data, golden=GOLDEN.data)

    def refuse(_number: int) -> None:
        device.writer.is_full = True
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(device.slots, "_point", refuse)
    with pytest.raises(StorageError):
        device.slots.switch(2, on_trial=True)
    assert device.agent.current == 1


def test_a_machine_without_a_process_to_give_says_nothing_about_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    checks = HealthCheck(clock=lambda: now[0])

    def refuse(*_args: object, **_more: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr("edge_client.releases.health_check.subprocess.Popen", refuse)
        checks.start(tmp_path)
        assert checks.poll() is None
    assert math.isfinite(checks.next_wakeup())
    now[0] = checks.next_wakeup()
    assert checks.poll() is None
    assert checks._child is not None, "it is tried again"
    checks.stop()
