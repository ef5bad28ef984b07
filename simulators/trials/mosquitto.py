"""A Mosquitto that is killed and started again on the same port, without anything kept on disk."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from coordinator.broker_choice import find_mosquitto
from coordinator.embedded_broker import free_port
from simulators.errors import FleetFailed

__all__ = ["RestartableMosquitto"]

_START_TIMEOUT_S = 20.0


class RestartableMosquitto:
    """One broker's address through many lives.

    Args:
        directory: For its configuration and log.

    Raises:
        FleetFailed: Mosquitto is not installed.
    """

    def __init__(self, directory: Path) -> None:
        program = find_mosquitto()
        if program is None:
            raise FleetFailed("mosquitto is not installed; 'apt install mosquitto' brings it")
        self.port = free_port()
        config = directory / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        self._command = [program, "-c", str(config)]
        self._log = directory / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Runs it; gives its address."""
        self.start()
        try:
            yield f"mqtt://127.0.0.1:{self.port}"
        finally:
            self.end(signal.SIGTERM)

    @property
    def pid(self) -> int:
        """The process id of its present life.

        Raises:
            FleetFailed: It does not run.
        """
        if self._process is None:
            raise FleetFailed("mosquitto does not run")
        return self._process.pid

    def start(self) -> None:
        """Starts it; returns when it listens.

        Raises:
            FleetFailed: It does not.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < give_up_at and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise FleetFailed(f"mosquitto does not listen; see {self._log.name}")

    def end(self, number: signal.Signals) -> None:
        """Ends it with a signal and waits for its end."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None
