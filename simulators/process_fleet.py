"""A fleet of real device daemons in several processes, on a real broker.

Each process hosts a share of the devices; each device has its own MQTT connection, its own state directory and its
own trainer child, exactly as on a Pi. A process that dies is noticed and named.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from simulators.errors import FleetFailed

__all__ = ["ProcessFleet", "device_state_dir", "write_device_config"]

_STOP_TIMEOUT_S = 15.0


def device_state_dir(root: Path, device_id: str) -> Path:
    """Where the configuration that `write_device_config` writes keeps the device's state."""
    return root / device_id / "state"


def write_device_config(
    root: Path, *, device_id: str, population: str, broker_url: str, num_threads: int, privacy: str = ""
) -> Path:
    """Writes one device's TOML configuration; its data belongs into ``root/<device>/data``.

    Args:
        root: Gets a directory for the device.
        device_id: Its id.
        population: Its population.
        broker_url: Its broker.
        num_threads: Of its trainer.
        privacy: A ``[privacy]`` section; the defaults if empty.

    Returns:
        The file.
    """
    home = root / device_id
    home.mkdir(parents=True, exist_ok=True)
    path = home / "client.toml"
    quoted = {name: json.dumps(str(value)) for name, value in {
        "id": device_id, "population": population, "state_dir": device_state_dir(root, device_id), "url": broker_url, "path": home / "data",
    }.items()}  # fmt: skip
    path.write_text(
        f"[device]\nid = {quoted['id']}\npopulation = {quoted['population']}\nstate_dir = {quoted['state_dir']}\n\n"
        f"[broker]\nurl = {quoted['url']}\n\n[data]\npath = {quoted['path']}\n\n"
        # A simulated fleet shares one machine, which is allowed to be hot and busy.
        f"[eligibility]\nenforce = false\n\n{privacy}"
        # Last, so that a caller can append to it.
        f"[training]\nnum_threads = {num_threads}\n"
    )
    return path


class ProcessFleet:
    """Starts host processes, watches them, stops them. Use as a context manager.

    Args:
        configs: One TOML file per device.
        num_processes: How many host processes share the devices.
        log_dir: Each process writes its log here.
    """

    def __init__(self, configs: Sequence[Path], *, num_processes: int, log_dir: Path) -> None:
        if num_processes < 1 or not configs:
            raise FleetFailed("a fleet needs at least one device and one process")
        self._shares = [list(configs[index::num_processes]) for index in range(min(num_processes, len(configs)))]
        self._log_dir = log_dir
        self._processes: list[subprocess.Popen[bytes]] = []
        self._watcher: threading.Thread | None = None
        self._stopping = threading.Event()
        self.failed = threading.Event()
        """Set when a host process has died by itself."""

    def __enter__(self) -> Self:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        for index, share in enumerate(self._shares):
            command = [sys.executable, "-m", "simulators.device_host", *map(str, share)]
            with self._log_path(index).open("wb") as log:
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
            self._processes.append(process)
        self._watcher = threading.Thread(target=self._watch, name="fleet-watcher", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for process in self._processes:
            # The end of its standard input tells a host to stop its devices and leave.
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def problem(self) -> str:
        """What the host that died said last."""
        for index, process in enumerate(self._processes):
            code = process.poll()
            if code is not None:
                log = self._log_path(index).read_text(errors="replace").strip().splitlines()
                return f"device process {index} ended with code {code}: {log[-1] if log else 'no output'}"
        return "no device process has ended"

    def _log_path(self, index: int) -> Path:
        return self._log_dir / f"devices-{index}.log"

    def _watch(self) -> None:
        while not self._stopping.wait(0.5):
            if any(process.poll() is not None for process in self._processes) and not self._stopping.is_set():
                self.failed.set()
                return
