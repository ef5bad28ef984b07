"""What `doctor` checks about the state directory: its place, its lock, its room, and that its files are whole."""

import errno
import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

from edge_client.atomic_files import write_atomically
from edge_client.cached_task import find_cached_task
from edge_client.crash_record import MAX_RECORD_BYTES, decode_record
from edge_client.doctor import Check, Finding, Subject, fail, ok, skip, warn
from edge_client.eligibility.machine import Machine, Unknown
from edge_client.errors import CorruptState, StorageError
from edge_client.pending_report import MAX_PENDING_BYTES, decode_pending
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.service_unit import UNIT_NAME
from edge_client.state_dir import ledger_path
from edge_client.state_writer import CORRUPT_SUFFIX

__all__ = ["STATE_CHECKS", "daemon_pid", "nearest_existing", "state_path"]

_MIN_FREE_MB: Final = 50
_MIN_FREE_INODES: Final = 500
_VOLATILE: Final = {"tmpfs", "ramfs", "overlay"}
_STOPPED: Final = {"T": "stopped", "t": "being traced", "D": "waiting for a disk", "Z": "dead"}
_WORN_TENTHS: Final = 9
_MEGABYTE: Final = 1024 * 1024
_NEARLY_SPENT: Final = 0.95
_UNKNOWN_PID: Final = 0


def state_path(subject: Subject) -> Path:
    """The state directory."""
    return Path(subject.config.device.state_dir)


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def daemon_pid(subject: Subject) -> int | None:
    """Who holds the lock: a process id, 0 if that cannot be found out, None if nobody does. Makes no file."""
    path = state_path(subject) / "lock"
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        return _holder(subject.machine, path)
    except OSError:
        return None


def _holder(machine: Machine, path: Path) -> int:
    inode = str(path.stat().st_ino)
    try:
        lines = (machine.root / "proc/locks").read_text().splitlines()
    except OSError:
        return _UNKNOWN_PID
    for words in (line.split() for line in lines):
        # 1: FLOCK ADVISORY WRITE 4711 fd:00:131 0 EOF; the device differs from stat's on some file systems
        if "FLOCK" in words and any(word.rpartition(":")[2] == inode for word in words if word.count(":") > 1):
            return next((int(word) for word in words if word.isdigit()), _UNKNOWN_PID)
    return _UNKNOWN_PID


def check_state_dir(subject: Subject) -> Finding:
    """Whether the state directory can be written, durably. It is not made: that is the service's to do."""
    path = state_path(subject)
    remedy = f"sudo chown -R THE-DAEMON'S-USER {path}, run doctor with sudo, or set device.state_dir"
    if not path.exists():
        parent = nearest_existing(path)
        if parent.is_dir() and os.access(parent, os.W_OK):
            return ok(f"{path} will be made")
        return fail(f"{path} is not there and cannot be made in {parent}", remedy)
    probe = path / "doctor-probe"
    try:
        write_atomically(probe, b"probe")
        probe.unlink()
    except OSError as error:
        return fail(str(error), remedy)
    return ok(f"{path} can be written")


def check_file_system(subject: Subject) -> Finding:
    """Whether the file system below is writable and outlives a restart."""
    found = _mount(subject.machine, nearest_existing(state_path(subject)))
    if found is None:
        return skip("this system does not list its mounts")
    place, kind, options = found
    if "ro" in options:
        remedy = f"mount -o remount,rw {place}; a card that turned read-only by itself is failing: replace it"
        return fail(f"{place} ({kind}) is mounted read-only", remedy)
    if kind in _VOLATILE:
        remedy = "set device.state_dir to a disk: what waits in the outbox and the privacy ledger must survive"
        return warn(f"{place} is {kind}: it is empty again after a restart", remedy)
    return ok(f"{kind}, mounted at {place}")


def _mount(machine: Machine, path: Path) -> tuple[str, str, set[str]] | None:
    """Mount point, type and options of the file system that holds a path."""
    try:
        lines = (machine.root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    best: tuple[str, str, set[str]] | None = None
    for left, _, right in (line.partition(" - ") for line in lines):
        fields, kinds = left.split(), right.split()
        if len(fields) < 6 or len(kinds) < 3:  # noqa: PLR2004 - proc(5), mountinfo
            continue
        place = fields[4].replace("\\040", " ")
        # A later line covers an earlier one at the same place.
        if path.resolve().is_relative_to(place) and (best is None or len(place) >= len(best[0])):
            best = place, kinds[0], set(fields[5].split(",")) | set(kinds[2].split(","))
    return best


def check_single_daemon(subject: Subject) -> Finding:
    """Who is using the state directory now. A lock dies with its process: one that is held has a live owner."""
    pid = daemon_pid(subject)
    if pid is None:
        return ok("no daemon uses the state directory")
    stat = subject.machine.read(f"proc/{pid}/stat")
    letter = "" if isinstance(stat, Unknown) else stat.rpartition(")")[2].split()[:1]
    stopped = _STOPPED.get(letter[0]) if letter else None
    if stopped:
        return fail(f"process {pid} uses the state directory and is {stopped}", f"sudo kill -9 {pid}")
    cgroup = subject.machine.read(f"proc/{pid}/cgroup")
    if not isinstance(cgroup, Unknown) and UNIT_NAME in cgroup:
        return ok(f"the service is running (process {pid})")
    who = f"process {pid}" if pid else "a process"
    return warn(f"{who}, which is not the service, uses the state directory", "stop it before starting another daemon")


def check_disk(subject: Subject) -> Finding:
    """Room for the blobs."""
    free_mb = shutil.disk_usage(nearest_existing(state_path(subject))).free // (1024 * 1024)
    wanted_mb = subject.config.device.blob_cache_mb
    detail = f"{free_mb} MB free; blobs may take {wanted_mb} MB"
    if free_mb >= wanted_mb:
        return ok(detail)
    remedy = "free some space, or lower device.blob_cache_mb"
    return fail(detail, remedy) if free_mb < _MIN_FREE_MB else warn(detail, remedy)


def check_inodes(subject: Subject) -> Finding:
    """Room for files: a disk can be full of small ones."""
    found = os.statvfs(nearest_existing(state_path(subject)))
    if found.f_files == 0:
        return skip("this file system makes inodes as it needs them")
    detail = f"{found.f_favail} more files fit"
    if found.f_favail >= _MIN_FREE_INODES:
        return ok(detail)
    return fail(detail, "delete small files: find / -xdev -type d -size +100k shows the directories that hold many")


def check_wear(subject: Subject) -> Finding:
    """How worn built-in flash says it is. SD cards say nothing."""
    worn = {}
    for name in subject.machine.find("sys/block/mmcblk*/device/life_time"):
        words = subject.machine.read(name)
        values = [] if isinstance(words, Unknown) else [int(word, 16) for word in words.split() if word[:2] == "0x"]
        worn[name.split("/")[2]] = max(values, default=0)
    if not worn:
        return skip("no flash here tells its wear")
    device, tenths = max(worn.items(), key=lambda entry: entry[1])
    detail = f"{device} has used {tenths}0 % of its life" if tenths else f"{device} does not tell its wear"
    return (
        warn(detail, "replace the device or its flash soon; keep no data on it alone")
        if tenths >= _WORN_TENTHS
        else ok(detail)
    )


def check_write_budget(subject: Subject) -> Finding:
    """Whether the hour's write budget, which spares the card, holds what a round of the last task writes."""
    task = find_cached_task(state_path(subject) / "blobs")
    if task is None:
        return skip("no plan has been fetched yet")
    # The checkpoint is fetched into the cache, and the update, as large, waits in the outbox.
    round_mb = 2 * sum(spec.num_bytes for spec in task.plan.weights) / _MEGABYTE
    budget_mb = subject.config.device.max_write_mb_per_hour
    detail = f"a round writes about {round_mb:.1f} MB, {budget_mb} MB are allowed in an hour"
    if round_mb <= budget_mb:
        return ok(detail)
    return warn(detail, "raise device.max_write_mb_per_hour: until then every restart fetches the model again")


def check_outbox(subject: Subject) -> Finding:
    """Whether the report that waits for its receipt, if one does, can be read."""
    path = state_path(subject) / "outbox" / "report"
    try:
        with path.open("rb") as stream:
            pending = decode_pending(stream.read(MAX_PENDING_BYTES + 1))
    except (FileNotFoundError, NotADirectoryError):
        return ok("empty")
    except (OSError, CorruptState) as error:
        remedy = "nothing is needed: the next start puts it aside, and this device misses one round; check the card"
        return warn(f"{path}: {error}", remedy)
    return ok(f"the report of round {pending.report.round_id} waits to be sent")


def check_blobs(subject: Subject) -> Finding:
    """Whether every cached blob is what its name says."""
    directory = state_path(subject) / "blobs"
    paths = [path for path in directory.iterdir() if not path.name.startswith(".")] if directory.is_dir() else []
    damaged = [path for path in paths if not _is_whole(path)]
    if damaged:
        names = ", ".join(path.name[:12] for path in damaged[:3])
        remedy = f"sudo rm -r {directory}; it is fetched again. If it comes back, the card is failing"
        return warn(f"{len(damaged)} of {len(paths)} cached blobs are damaged: {names}", remedy)
    return ok(f"{len(paths)} cached blobs are whole")


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == path.name
    except OSError as error:
        return error.errno == errno.ENOENT  # the running daemon has pruned it


def check_safe_mode(subject: Subject) -> Finding:
    """Whether the device takes no part because it crashed again and again."""
    try:
        with (state_path(subject) / "crashes").open("rb") as stream:
            record = decode_record(stream.read(MAX_RECORD_BYTES + 1))
    except (FileNotFoundError, NotADirectoryError):
        return ok("no crash is on record")
    except (OSError, CorruptState) as error:
        return warn(f"the record of crashes: {error}", "nothing is needed: the next start begins a new one")
    if record.is_safe_mode:
        remedy = "journalctl -u flockwise-edge says what crashed; then stop the daemon and run flockwise edge reset"
        return fail(f"safe mode for {record.safe_left_s / 3600:.1f} h more: {record.reason}", remedy)
    return ok(f"{record.num_bad_starts} bad starts, {record.num_trainer_deaths} deaths of the trainer in a row")


def check_ledger(subject: Subject) -> Finding:
    """Whether the privacy ledger is whole, and leaves anything to spend."""
    path = ledger_path(state_path(subject))
    if not path.exists() and not PrivacyLedger.had_one(path):
        return ok("nothing has been spent")
    try:
        with PrivacyLedger(path, budget=None) as ledger:
            spent, allowed = ledger.spent_epsilon, ledger.budget.epsilon
    except StorageError as error:
        remedy = (
            "restore the state directory from a backup; a device with a damaged ledger takes no part in private rounds"
        )
        return fail(str(error), remedy)
    if spent >= allowed * _NEARLY_SPENT:
        remedy = "its owner decides: flockwise edge budget shows on what it was spent"
        return warn(f"epsilon {spent:.3f} of {allowed:g} is spent", remedy)
    return ok(f"epsilon {spent:.3f} of {allowed:g} is spent")


def check_quarantine(subject: Subject) -> Finding:
    """Whether the daemon has put damaged files aside."""
    found = sorted(state_path(subject).rglob(f"*{CORRUPT_SUFFIX}")) if state_path(subject).is_dir() else []
    if not found:
        return ok("no damaged file was put aside")
    remedy = "look at the card (dmesg, fsck), then delete them: sudo rm " + " ".join(map(str, found[:3]))
    return warn(f"{len(found)} damaged files were put aside: {found[0].name}", remedy)


STATE_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("state_dir", check_state_dir),
    ("file_system", check_file_system),
    ("single_daemon", check_single_daemon),
    ("disk", check_disk),
    ("inodes", check_inodes),
    ("wear", check_wear),
    ("write_budget", check_write_budget),
    ("outbox", check_outbox),
    ("blobs", check_blobs),
    ("quarantine", check_quarantine),
    ("safe_mode", check_safe_mode),
    ("ledger", check_ledger),
)
"""Name and function of each check, in the order in which they are made."""
