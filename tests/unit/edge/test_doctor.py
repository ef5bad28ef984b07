"""Each check finds the fault it is for, in an environment that is really broken, and names the remedy.

`BROKEN` has a row per fault: how it is made, what the check must say, and a word of the remedy. Checks that need a broker
stand in ``test_doctor_network.py`` and in ``tests/broker/test_doctor.py``.
"""

import fcntl
import hashlib
import os
import platform
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.signing_keys import KeyFiles
from edge_client.blob_store import FileBlobStore
from edge_client.checks import model, resources, state
from edge_client.checks.broker import BROKER_CHECKS
from edge_client.checks.network import NETWORK_CHECKS
from edge_client.checks.registry import GROUPS
from edge_client.config import (
    BrokerSection,
    DataSection,
    DeviceSection,
    EdgeConfig,
    EligibilitySection,
    ReleasesSection,
    TrainingSection,
)
from edge_client.crash_record import CrashRecord, encode_record
from edge_client.doctor import CheckGroup, CheckStatus, Subject, fail, has_warnings, is_healthy, ok, run_group
from edge_client.eligibility.machine import Machine, Unknown
from edge_client.example_store import write_examples
from edge_client.identity import IdentityStore
from edge_client.linear_trainer import linear_weights
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.rules import PrivacyBudget
from edge_client.releases.slots import SlotRecord, encode_slot_record
from edge_client.service_install import UNIT_PATH, carry_out, plan_installation
from edge_client.state_dir import ledger_path
from edge_client.state_writer import StateWriter
from edge_client.trainer_options import TrainerOptions
from wire_protocol.plan import encode_plan
from wire_protocol.privacy_spec import GaussianEvent
from wire_protocol.tensors import encode_tensors

X, Y = np.ones((30, 4), np.float32), np.arange(30) % 2
ELSEWHERE = {name for name, _ in (*NETWORK_CHECKS, *BROKER_CHECKS)}
CHECKS = {name: check for group in GROUPS for name, check in group.checks}


class Bench:
    """A device in which everything is in order, until a test breaks it."""

    def __init__(self, directory, monkeypatch):
        self.monkeypatch = monkeypatch
        self.directory = directory
        self.root = directory / "root"
        self.state, self.data = directory / "state", directory / "data"
        self.state.mkdir(mode=0o700)
        write_examples(self.data, x=X, y=Y)
        (directory / "edge.toml").write_text("")
        self.sections = {
            "device": {"population": "p", "id": "d1", "state_dir": str(self.state), "blob_cache_mb": 1},
            "broker": {"url": "mqtt://127.0.0.1"},
            "data": {"path": str(self.data)},
            "training": {"trainer": "linear"},
            "eligibility": {},
            "releases": {},
        }
        self.printed = {}
        self.wall_clock = time.time
        self.write("proc/meminfo", "MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\nSwapTotal: 100 kB\n")
        self.write("proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 100 0 100\n")
        self.write("proc/1/comm", "systemd\n")
        self.write("proc/self/mountinfo", "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/mmcblk0p2 rw\n")
        self.write("proc/sys/kernel/random/entropy_avail", "256\n")
        self.write("sys/class/thermal/thermal_zone0/temp", "45000\n")
        self.write("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
        self.write("sys/devices/platform/soc/soc:firmware/get_throttled", "0\n")
        self.write("sys/block/mmcblk0/device/life_time", "0x01 0x01\n")
        self.write("run/systemd/timesync/synchronized", "")

    def write(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def set(self, section, **values):
        self.sections[section] |= values

    def install(self):
        """Installs and enables the service below the root."""
        self.write("opt/flockwise/bin/flockwise", "#!/bin/sh\n")
        carry_out(self.root, plan_installation(self.root, version="1"))
        wants = self.unit.parent / "multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / self.unit.name).symlink_to(self.unit)
        self.printed["systemctl"] = "ActiveState=active\nSubState=running\nNRestarts=0\nStatusText=connected; idle\n"

    @property
    def unit(self):
        return self.root / UNIT_PATH.relative_to("/")

    def drop_in(self, text):
        self.write(f"{UNIT_PATH.relative_to('/')}.d/local.conf", text)

    def cache(self, **plan):
        """Puts a linear task into the blob cache."""
        job = model.probe_job("linear")
        used = msgspec.structs.replace(job.plan, **plan)
        store = FileBlobStore(self.state / "blobs", max_bytes=10**6)
        for data in (encode_plan(used), encode_tensors(job.checkpoint)):
            store.put(hashlib.sha256(data).digest(), data)

    def subject(self):
        kinds = {
            "device": DeviceSection,
            "broker": BrokerSection,
            "data": DataSection,
            "training": TrainingSection,
            "eligibility": EligibilitySection,
            "releases": ReleasesSection,
        }
        config = EdgeConfig(**{name: kind(**self.sections[name]) for name, kind in kinds.items()})
        run = lambda command: self.printed.get(command[0], Unknown("no such program"))  # noqa: E731
        return Subject(
            config=config,
            config_path=self.directory / "edge.toml",
            machine=Machine(root=self.root, run=run, num_cores=4),
            wall_clock=self.wall_clock,
        )

    def find(self, name):
        [finding] = run_group(CheckGroup(name="test", checks=((name, CHECKS[name]),)), self.subject())
        return finding


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


BROKEN = []


def broken(name, status, remedy, detail=""):
    """Registers a function that breaks a bench as a row of `BROKEN`."""

    def add(spoil):
        BROKEN.append(pytest.param(name, status, remedy, detail, spoil, id=f"{name}-{spoil.__name__.strip('_')}"))
        return spoil

    return add


@broken("python", "fail", "Python 3.11 or later", "3.")
def _old(bench):
    bench.monkeypatch.setattr(sys, "version_info", (3, 9, 2))


@broken("python", "warn", "untested")
def _new(bench):
    bench.monkeypatch.setattr(sys, "version_info", (3, 15, 0))


@broken("architecture", "fail", "64-bit OS", "armv7l")
def _arm32(bench):
    bench.monkeypatch.setattr(platform, "machine", lambda: "armv7l")


@broken("architecture", "fail", "64-bit OS", "32-bit Python")
def _python32(bench):
    bench.monkeypatch.setattr(sys, "maxsize", 2**31 - 1)


@broken("libc", "fail", "2019 or later")
def _old_libc(bench):
    bench.monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.24"))


@broken("libc", "warn", "Raspberry Pi OS")
def _musl(bench):
    bench.monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))


@broken("numpy", "fail", "pip install 'numpy")
def _old_numpy(bench):
    bench.monkeypatch.setattr(np, "__version__", "1.19.5")


@broken("litert", "fail", "--force-reinstall ai-edge-litert", "wrong ELF class")
def _wrong_wheel(bench):
    package = bench.directory / "path" / "ai_edge_litert"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "interpreter.py").write_text("raise ImportError('litert.so: wrong ELF class')\n")
    bench.monkeypatch.setenv("PYTHONPATH", str(package.parent))
    bench.set("training", trainer="litert")


@broken("litert", "fail", "--force-reinstall ai-edge-litert", "exit code")
def _crashing_wheel(bench):
    _wrong_wheel(bench)
    (bench.directory / "path" / "ai_edge_litert" / "interpreter.py").write_text("import os\nos.abort()\n")


@broken("processors", "warn", "training.num_threads to at most")
def _threads(bench):
    bench.set("training", num_threads=64)


@broken("limits", "fail", "LimitNOFILE", "ulimit -n")
def _few_files(bench):
    bench.monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (64, 64) if kind == resource.RLIMIT_NOFILE else (-1, -1)
    )


@broken("limits", "fail", "LimitFSIZE", "ulimit -f")
def _small_files(bench):
    bench.monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (1000, 1000) if kind == resource.RLIMIT_FSIZE else (-1, -1)
    )


@broken("entropy", "warn", "rng-tools5", "7 bits")
def _little_entropy(bench):
    bench.write("proc/sys/kernel/random/entropy_avail", "7\n")


@broken("entropy", "fail", "rng-tools5", "not seeded")
def _unseeded(bench):
    def block(size, flags=0):
        raise BlockingIOError

    bench.monkeypatch.setattr(os, "getrandom", block)


@broken("memory", "fail", "add swap", "48 MB")
def _little_memory(bench):
    bench.write("proc/meminfo", "MemAvailable: 50000 kB\n")


@broken("memory", "warn", "250 MB")
def _untold_memory(bench):
    (bench.root / "proc/meminfo").unlink()


@broken("swap", "warn", "zram", "no swap")
def _no_swap(bench):
    bench.write("proc/meminfo", "MemTotal: 900000 kB\nSwapTotal: 0 kB\n")


@broken("swap", "warn", "dphys-swapfile", "/var/swap")
def _swap_file(bench):
    bench.write("proc/swaps", "Filename Type Size Used Priority\n/var/swap file 100 0 -2\n")


@broken("temperature", "fail", "heat sink", "90 C")
def _hot(bench):
    bench.write("sys/class/thermal/thermal_zone0/temp", "90000\n")


@broken("temperature", "warn", "heat sink")
def _warm(bench):
    bench.write("sys/class/thermal/thermal_zone0/temp", "78000\n")


@broken("throttling", "warn", "power supply", "under-voltage")
def _under_voltage(bench):
    bench.write("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")


@broken("throttling", "warn", "power supply", "since its start")
def _was_throttled(bench):
    bench.write("sys/devices/platform/soc/soc:firmware/get_throttled", "50000\n")


@broken("clock", "fail", "NTP", "1970")
def _epoch(bench):
    bench.wall_clock = lambda: 60.0


@broken("clock", "fail", "NTP", "ahead")
def _far_future(bench):
    bench.wall_clock = lambda: 5e9


@broken("clock_synchronised", "warn", "set-ntp true")
def _unsynchronised(bench):
    (bench.root / "run/systemd/timesync/synchronized").unlink()
    bench.monkeypatch.setattr(resources, "is_kernel_clock_synchronised", lambda: False)


@broken("population", "fail", "operator", "CHANGE-ME")
def _placeholder(bench):
    bench.set("device", population="CHANGE-ME")


@broken("visible", "fail", "BindReadOnlyPaths", "data.path")
def _data_at_home(bench):
    bench.install()
    bench.set("data", path="/home/pi/data")


@broken("state_dir", "fail", "chown")
def _state_is_a_file(bench):
    bench.state.rmdir()
    bench.state.write_text("")


@broken("state_dir", "fail", "device.state_dir", "cannot be made")
def _no_place_for_state(bench):
    (bench.directory / "file").write_text("")
    bench.set("device", state_dir=str(bench.directory / "file" / "state"))


@broken("file_system", "fail", "replace it", "read-only")
def _read_only(bench):
    bench.write(
        "proc/self/mountinfo", f"22 1 8:1 / / rw - ext4 /dev/a rw\n23 22 8:2 / {bench.directory} ro - ext4 /dev/b rw\n"
    )


@broken("file_system", "warn", "outbox", "tmpfs")
def _volatile(bench):
    bench.write("proc/self/mountinfo", "22 1 0:1 / / rw - tmpfs tmpfs rw\n")


@broken("single_daemon", "warn", "stop it", "which is not the service")
def _held(bench):
    bench.holder = (bench.state / "lock").open("ab")
    fcntl.flock(bench.holder, fcntl.LOCK_EX)
    bench.write("proc/locks", f"1: FLOCK  ADVISORY  WRITE 4711 08:02:{(bench.state / 'lock').stat().st_ino} 0 EOF\n")


@broken("single_daemon", "fail", "kill -9 4711", "stopped")
def _stopped(bench):
    _held(bench)
    bench.write("proc/4711/stat", "4711 (flock (wise)) T 1 4711")


@broken("disk", "warn", "blob_cache_mb")
def _little_disk(bench):
    bench.set("device", blob_cache_mb=1_000_000)


@broken("disk", "fail", "blob_cache_mb")
def _full_disk(bench):
    bench.monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))


@broken("inodes", "fail", "small files")
def _no_inodes(bench):
    real = os.statvfs(bench.directory)
    fields = list(real)
    fields[7] = 3  # f_favail
    bench.monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))


@broken("wear", "warn", "replace the device", "mmcblk0")
def _worn(bench):
    bench.write("sys/block/mmcblk0/device/life_time", "0x02 0x0a\n")


@broken("write_budget", "warn", "max_write_mb_per_hour", "1 MB are allowed")
def _large_model(bench):
    bench.set("device", max_write_mb_per_hour=1)
    weights = linear_weights(input_shape=(500_000,), num_classes=2)
    bench.cache(input_shape=(500_000,), weights=weights)


@broken("outbox", "warn", "puts it aside")
def _damaged_report(bench):
    (bench.state / "outbox").mkdir()
    (bench.state / "outbox" / "report").write_bytes(b"FWOB\x01 and then nonsense")


@broken("blobs", "warn", "fetched again", "1 of 2")
def _damaged_blob(bench):
    bench.cache()
    path = next((bench.state / "blobs").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"!")


@broken("quarantine", "warn", "fsck", "report.corrupt")
def _put_aside(bench):
    (bench.state / "outbox").mkdir()
    (bench.state / "outbox" / "report.corrupt").write_text("x")


@broken("eligibility", "warn", "edge eligible", "not_on_mains")
def _on_battery(bench):
    bench.set("eligibility", power="battery", require_mains=True)


def _root(bench, data):
    (bench.directory / "root.json").write_bytes(data)
    bench.set("releases", models=("digits",), root_file=str(bench.directory / "root.json"))


def _release_record(bench, data):
    _root(bench, b"{}")
    (bench.state / "models" / "digits").mkdir(parents=True)
    (bench.state / "models" / "digits" / "record").write_bytes(data)


@broken("release_root", "fail", "readable for the daemon", "cannot be read")
def _no_root(bench):
    bench.set("releases", models=("digits",), root_file=str(bench.directory / "nowhere.json"))


@broken("release_root", "fail", "root.json", "signed by itself")
def _root_that_is_none(bench):
    _root(bench, b'{"signed": {"_type": "root"}}')


@broken("released_models", "warn", "push a release that works", "release 7 refused (slow: 9 ms)")
def _refused_release_in_use(bench):
    record = SlotRecord(current=7, refused={"7": "slow: 9 ms"})
    _release_record(bench, encode_slot_record(record))


@broken("released_models", "warn", "restart the daemon", "model.tflite is not there")
def _release_without_a_model(bench):
    _release_record(bench, encode_slot_record(SlotRecord(current=7)))


@broken("released_models", "warn", "restart the daemon", "digits: ")
def _damaged_slot_record(bench):
    _release_record(bench, b"nonsense")


@broken("safe_mode", "fail", "edge reset", "trainer died")
def _in_safe_mode(bench):
    record = CrashRecord(num_trainer_deaths=3, safe_left_s=7200.0, reason="the trainer died 3 times")
    (bench.state / "crashes").write_bytes(encode_record(record))


@broken("safe_mode", "warn", "begins a new one")
def _damaged_record(bench):
    (bench.state / "crashes").write_bytes(b"FWCR nonsense")


def _ledger(bench, *, epsilon=1.0):
    path = ledger_path(bench.state)
    with PrivacyLedger(path, budget=PrivacyBudget(epsilon=epsilon)) as ledger:
        ledger.release("t/1", GaussianEvent(noise_multiplier=8.0, is_discrete=False), lambda: b"update")
    return path


@broken("ledger", "fail", "backup", "is gone")
def _lost_ledger(bench):
    _ledger(bench).unlink()


@broken("ledger", "warn", "edge budget", "is spent")
def _spent_ledger(bench):
    path = _ledger(bench)
    with PrivacyLedger(path, budget=None) as ledger:
        spent = ledger.spent_epsilon
    with PrivacyLedger(path, budget=PrivacyBudget(epsilon=spent)):
        pass


@broken("identity", "fail", "edge enrol", "others can read")
def _open_identity(bench):
    IdentityStore(bench.state, writer=StateWriter(), clock=time.time).load_or_make()
    (bench.state / "identity.key").chmod(0o644)


@broken("identity", "fail", "new token", "no Ed25519 key")
def _damaged_identity(bench):
    (bench.state / "identity.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    (bench.state / "identity.key").chmod(0o600)


@broken("data", "fail", "import-data", "nothing at")
def _no_data(bench):
    bench.set("data", path=str(bench.directory / "nowhere"))


@broken("data", "fail", "import-data", "is not the file")
def _damaged_data(bench):
    [path] = bench.data.glob("x-*.bin")
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@broken("data", "warn", "collect more")
def _few(bench):
    write_examples(bench.data, x=X[:3], y=Y[:3])


@broken("data_fits", "fail", "--shape", "the plan asks for (4,)")
def _other_shape(bench):
    bench.cache()
    write_examples(bench.data, x=np.ones((30, 5), np.float32), y=Y)


@broken("data_fits", "fail", "correct the labels", "classes 0 to 1")
def _other_labels(bench):
    bench.cache()
    write_examples(bench.data, x=X, y=np.full(30, 7))


@broken("data_fits", "warn", "collect more", "the plan asks for 1000")
def _too_few(bench):
    bench.cache(min_examples=1000)


@broken("probe_model", "fail", "ai-edge-litert", "No module named 'ai_edge_litert.interpreter'")
def _no_litert(bench):
    package = bench.directory / "path" / "ai_edge_litert"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    bench.monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{Path(__file__).resolve().parents[3]}")
    bench.set("training", trainer="litert")


@broken("probe_model", "fail", "memory", "the trainer died")
def _trainer_dies(bench):
    bench.monkeypatch.setattr(
        TrainerOptions, "command", lambda self, parent_pid: [sys.executable, "-c", "import os; os.abort()"]
    )


@broken("cached_model", "warn", "data_fits", "the model takes (4,)")
def _data_of_another_model(bench):
    bench.cache()
    write_examples(bench.data, x=np.ones((30, 5), np.float32), y=Y)


@broken("cached_model", "fail", "fleet's operator", "cannot load the model file")
def _model_is_nonsense(bench):
    bench.cache()
    bench.set("training", trainer="litert")
    data = b"\x1c\0\0\0TFL3" + b"\xff" * 100
    FileBlobStore(bench.state / "blobs", max_bytes=10**6).put(hashlib.sha256(data).digest(), data)


@broken("encryption", "warn", "mqtts://")
def _plaintext(bench):
    bench.set("broker", url="mqtt://broker.example", allow_plaintext=True)


def _secret(bench, mode):
    path = bench.directory / "secret"
    path.write_text("x")
    path.chmod(mode)
    return str(path)


@broken("password", "warn", "chmod 600", "read by others")
def _shared_password(bench):
    bench.set("broker", username="me", password_file=_secret(bench, 0o640))


@broken("password", "fail", "broker.password_file to a file")
def _no_password(bench):
    bench.set("broker", username="me", password_file=str(bench.directory / "none"))


@broken("key", "warn", "chmod 600")
def _shared_key(bench):
    bench.set("broker", url="mqtts://b", cert_file="c", key_file=_secret(bench, 0o604))


@broken("state_private", "warn", "chmod 700")
def _open_state(bench):
    bench.state.chmod(0o755)


@broken("config_private", "warn", "credentials/broker-password")
def _password_in_the_open(bench):
    bench.set("broker", url="mqtt://me:hunter2@127.0.0.1")
    (bench.directory / "edge.toml").chmod(0o644)


@broken("data_private", "warn", "chmod -R go-rwx")
def _open_data(bench):
    # pytest's own directories are closed, so the examples need a place that anybody can get to.
    bench.open = tempfile.TemporaryDirectory()
    Path(bench.open.name).chmod(0o755)
    write_examples(Path(bench.open.name), x=X, y=Y)
    for path in Path(bench.open.name).iterdir():
        path.chmod(0o644)
    bench.set("data", path=bench.open.name)


@broken("unit", "warn", "edge install", "power cut")
def _not_installed(bench):
    pass


@broken("unit", "warn", "local.conf", "edited")
def _edited_unit(bench):
    bench.install()
    bench.unit.write_text(bench.unit.read_text().replace("PrivateUsers=yes", "PrivateUsers=no"))


@broken("unit", "warn", "edge install", "another version")
def _old_unit(bench):
    from edge_client.service_unit import stamped

    bench.install()
    bench.unit.write_text(stamped("[Service]\nType=simple\n", version="0"))


@broken("program", "fail", "--prefix")
def _no_program(bench):
    bench.install()
    (bench.root / "opt/flockwise/bin/flockwise").unlink()


@broken("enabled", "warn", "systemctl enable")
def _disabled(bench):
    bench.install()
    (bench.unit.parent / "multi-user.target.wants" / bench.unit.name).unlink()


@broken("running", "warn", "journalctl", "failed")
def _failed_service(bench):
    bench.install()
    bench.printed["systemctl"] = "ActiveState=failed\nSubState=failed\nStatusText=\n"


@broken("watchdog", "warn", "--force", "no WatchdogSec")
def _no_watchdog(bench):
    bench.install()
    bench.drop_in("[Service]\nWatchdogSec=0\n")


@broken("watchdog", "warn", "--force", "Restart")
def _no_restart(bench):
    bench.install()
    bench.drop_in("[Service]\nRestart=no\n")


@broken("exposure", "warn", "flockwise-edge.service.d", "more than 2.0")
def _weakened(bench):
    if shutil.which("systemd-analyze") is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze must be installed in CI: .ci/run installs it")
        pytest.skip("systemd-analyze is not installed; 'apt install systemd' brings it")
    bench.install()
    bench.drop_in(
        "[Service]\nDynamicUser=no\nPrivateUsers=no\nSystemCallFilter=\nProtectSystem=no\nRestrictNamespaces=no\n"
    )


@pytest.mark.parametrize(("name", "status", "remedy", "detail", "spoil"), BROKEN)
def test_a_fault_is_found_and_its_remedy_named(bench, name, status, remedy, detail, spoil):
    spoil(bench)
    finding = bench.find(name)
    assert (finding.name, finding.status.value) == (name, status), finding
    assert remedy in finding.remedy, finding
    assert detail in finding.detail, finding
    assert "\n" not in finding.detail
    assert "hunter2" not in finding.detail + finding.remedy


@pytest.mark.parametrize("name", sorted(set(CHECKS) - ELSEWHERE - {"visible", "litert"}))
def test_a_device_in_order_has_no_fault(bench, name):
    bench.install()
    bench.cache()
    finding = bench.find(name)
    assert finding.status in {CheckStatus.OK, CheckStatus.SKIP}, finding


def test_litert_and_the_services_own_places_are_in_order(bench):
    bench.install()
    bench.set("training", trainer="litert")
    bench.set("device", state_dir="/var/lib/flockwise")
    bench.set("data", path="/var/lib/flockwise/data")
    for name in ("litert", "probe_model", "visible"):
        assert bench.find(name).status is CheckStatus.OK, bench.find(name)


def test_every_check_has_a_row_that_breaks_it():
    covered = {row.values[0] for row in BROKEN}
    assert set(CHECKS) - ELSEWHERE - covered == {"contract"}, "the contract's check only tells"
    assert len(CHECKS) == sum(len(group.checks) for group in GROUPS), "two checks of one name"
    assert len(CHECKS) >= 20


def test_doctor_leaves_nothing_behind_and_changes_nothing(bench):
    bench.install()
    bench.cache()
    _damaged_report(bench)
    _damaged_record(bench)
    _ledger(bench)
    tree = lambda: {  # noqa: E731
        str(path): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in bench.directory.rglob("*")
        # The directory's time tells of the probe that was written and deleted; a reader of SQLite makes the last two.
        if path != bench.state and not path.name.endswith(("-shm", "-wal"))
    }
    before = tree()
    for name in set(CHECKS) - ELSEWHERE:
        bench.find(name)
    assert tree() == before


def test_a_state_directory_that_is_not_there_is_not_made(bench):
    bench.state.rmdir()
    for name, _ in state.STATE_CHECKS:
        assert bench.find(name).status in {CheckStatus.OK, CheckStatus.SKIP}, name
    assert not bench.state.exists()


def test_a_real_root_and_a_release_in_use_are_named(bench):
    keys = KeyFiles(bench.directory / "keys")
    repository = ReleaseRepository.create(bench.directory / "channel", keys, now=time.time)
    _release_record(bench, encode_slot_record(SlotRecord(current=7, refused={"6": "slow: 9 ms"})))
    slot = bench.state / "models" / "digits" / "current"
    slot.mkdir()
    (slot / "model.tflite").write_bytes(b"TFL3")
    (bench.directory / "root.json").write_bytes(repository.root_bytes)
    assert bench.find("release_root").detail.endswith("is root version 1")
    found = bench.find("released_models")
    assert (found.status, found.detail) == (CheckStatus.OK, "digits: release 7 in use, release 6 refused (slow: 9 ms)")
    forged = repository.root_bytes.replace(b'"version": 1', b'"version": 9').replace(b'"version":1', b'"version":9')
    assert forged != repository.root_bytes
    (bench.directory / "root.json").write_bytes(forged)
    assert bench.find("release_root").status is CheckStatus.FAIL


def test_the_services_own_process_may_hold_the_lock(bench):
    _held(bench)
    bench.write("proc/4711/stat", "4711 (flockwise) S 1 4711")
    bench.write("proc/4711/cgroup", "0::/system.slice/flockwise-edge.service\n")
    assert bench.find("single_daemon").detail == "the service is running (process 4711)"


def test_the_real_holder_of_a_real_lock_is_named(bench):
    program = "import fcntl, sys, time; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(bench.state / "lock")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        machine = Machine.this()
        found = state.daemon_pid(Subject(config=bench.subject().config, machine=machine))
        assert found == holder.pid
    finally:
        holder.kill()
        holder.communicate()
    assert state.daemon_pid(Subject(config=bench.subject().config)) is None


def test_a_check_that_breaks_is_a_failed_check(bench):
    def collapsing(subject):
        raise RuntimeError("the sky is falling")

    findings = run_group(
        CheckGroup(name="g", checks=(("sky", collapsing), ("fine", lambda subject: ok("yes")))), bench.subject()
    )
    assert [finding.status.value for finding in findings] == ["fail", "ok"]
    assert "the sky is falling" in findings[0].detail
    assert not is_healthy(findings)
    assert not has_warnings(findings)


def test_a_fault_without_a_remedy_cannot_be_made():
    with pytest.raises(ValueError, match="remedy"):
        fail("something", "")


def test_the_kernels_clock_is_asked_and_answers():
    assert isinstance(resources.is_kernel_clock_synchronised(), bool)


def test_the_secrets_mode_is_shown_as_ls_shows_it(bench):
    _shared_password(bench)
    assert stat.filemode(0o100640) in bench.find("password").detail
