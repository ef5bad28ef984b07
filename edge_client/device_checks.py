"""What `doctor` checks about this device's settings: state directory, disk, examples, secrets."""

import ipaddress
import os
import shutil
import stat
from pathlib import Path
from typing import Final

import numpy as np

from broker_link.broker_url import parse_broker_url
from edge_client.atomic_files import write_atomically
from edge_client.config import EdgeConfig
from edge_client.doctor import Check, CheckStatus, Finding
from edge_client.errors import DataError, StorageError
from edge_client.example_store import open_examples, verify_examples
from edge_client.state_dir import StateDir

__all__ = ["DEVICE_CHECKS"]

_MIN_FREE_MB: Final = 50
_FEW_EXAMPLES: Final = 10


def check_state_dir(config: EdgeConfig) -> Finding:
    """Whether the state directory can be written, durably."""
    path = Path(config.device.state_dir)
    probe = path / "doctor-probe"
    try:
        StateDir(path)
        write_atomically(probe, b"probe")
        probe.unlink()
    except (OSError, StorageError) as error:
        remedy = f"give this user the directory: chown {os.geteuid()} {path}; or set device.state_dir"
        return Finding(name="state_dir", status=CheckStatus.FAIL, detail=str(error), remedy=remedy)
    return Finding(name="state_dir", status=CheckStatus.OK, detail=f"{path} can be written")


def check_single_daemon(config: EdgeConfig) -> Finding:
    """Whether a daemon is using the state directory now."""
    state_dir = StateDir(Path(config.device.state_dir))
    try:
        state_dir.lock()
    except StorageError as error:
        remedy = "nothing to do if that is the installed service; otherwise stop it before starting another"
        return Finding(name="single_daemon", status=CheckStatus.WARN, detail=str(error), remedy=remedy)
    state_dir.unlock()
    return Finding(name="single_daemon", status=CheckStatus.OK, detail="no other daemon uses the state directory")


def check_disk(config: EdgeConfig) -> Finding:
    """Room for the blobs."""
    path = Path(config.device.state_dir)
    while not path.exists():
        path = path.parent
    free_mb = shutil.disk_usage(path).free // (1024 * 1024)
    detail = f"{free_mb} MB free; blobs may take {config.device.blob_cache_mb} MB"
    if free_mb >= config.device.blob_cache_mb:
        return Finding(name="disk", status=CheckStatus.OK, detail=detail)
    status = CheckStatus.FAIL if free_mb < _MIN_FREE_MB else CheckStatus.WARN
    remedy = "free some space, or lower device.blob_cache_mb"
    return Finding(name="disk", status=status, detail=detail, remedy=remedy)


def check_data(config: EdgeConfig) -> Finding:
    """Whether the examples can be read, whole, and what they are."""
    try:
        verify_examples(Path(config.data.path))
        examples = open_examples(Path(config.data.path))
    except DataError as error:
        remedy = "flockwise edge import-data FILE --out DIR, then set data.path to DIR"
        return Finding(name="data", status=CheckStatus.FAIL, detail=str(error), remedy=remedy)
    classes = len(np.unique(examples.labels))
    detail = f"{examples.num_examples} examples of shape {examples.input_shape}, {classes} classes"
    if examples.num_examples >= _FEW_EXAMPLES:
        return Finding(name="data", status=CheckStatus.OK, detail=detail)
    remedy = "a plan may ask for more examples; this device then declines"
    return Finding(name="data", status=CheckStatus.WARN, detail=detail, remedy=remedy)


def check_secrets(config: EdgeConfig) -> Finding:
    """Whether the password is for its owner alone."""
    if not config.broker.password_file:
        return Finding(name="secrets", status=CheckStatus.OK, detail="no password file is configured")
    path = Path(config.broker.password_file)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Finding(name="secrets", status=CheckStatus.FAIL, detail=str(error), remedy="set broker.password_file")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        detail = f"{path} can be read by others ({stat.filemode(mode)})"
        return Finding(name="secrets", status=CheckStatus.WARN, detail=detail, remedy=f"chmod 600 {path}")
    return Finding(name="secrets", status=CheckStatus.OK, detail=f"{path} is readable by its owner alone")


def check_encryption(config: EdgeConfig) -> Finding:
    """Whether what goes over the network is encrypted, unless it stays on this machine."""
    url = parse_broker_url(config.broker.url)
    if url.is_tls or _is_loopback(url.host):
        return Finding(name="encryption", status=CheckStatus.OK, detail=f"{url}")
    detail = f"{url}: updates and passwords cross the network in the clear"
    return Finding(name="encryption", status=CheckStatus.WARN, detail=detail, remedy="use an mqtts:// broker")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


DEVICE_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("state_dir", check_state_dir),
    ("single_daemon", check_single_daemon),
    ("disk", check_disk),
    ("data", check_data),
    ("secrets", check_secrets),
    ("encryption", check_encryption),
)
"""Name and function of each check, in the order in which they are made."""
