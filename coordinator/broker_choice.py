"""Which broker: the embedded one, a local Mosquitto, or any by its address."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from broker_link.broker_url import parse_broker_url
from coordinator.embedded_broker import EmbeddedBroker, free_port
from coordinator.errors import BrokerFailed

__all__ = ["broker_at", "check_broker_choice", "find_mosquitto", "local_mosquitto"]

_START_TIMEOUT_S = 20.0
_POLL_S = 0.05


def find_mosquitto() -> str | None:
    """The mosquitto program, if it is installed (Debian puts it into sbin, which is not on everybody's PATH)."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def check_broker_choice(choice: str) -> None:
    """Checks what `broker_at` takes, and starts nothing.

    Raises:
        InvalidBrokerUrl: Neither a broker to be started nor an address.
    """
    if choice not in {"embedded", "mosquitto"}:
        parse_broker_url(choice)


@contextlib.contextmanager
def broker_at(choice: str) -> Iterator[str]:
    """Gives the address of a broker and takes down what was started for it.

    Args:
        choice: ``embedded``, ``mosquitto`` (started for this use, on loopback), or an mqtt:// or mqtts:// address.

    Raises:
        BrokerFailed: It did not start.
        InvalidBrokerUrl: The address cannot be understood.
    """
    check_broker_choice(choice)
    if choice == "embedded":
        with EmbeddedBroker() as broker:
            yield broker.url
    elif choice == "mosquitto":
        with local_mosquitto() as url:
            yield url
    else:
        yield choice


@contextlib.contextmanager
def local_mosquitto() -> Iterator[str]:
    """Runs Mosquitto on a free loopback port, without persistence.

    Raises:
        BrokerFailed: It is not installed, or did not start.
    """
    program = find_mosquitto()
    if program is None:
        raise BrokerFailed("mosquitto is not installed; install it (apt install mosquitto) or use --broker embedded")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="flockwise-mosquitto-") as directory:
        config = Path(directory) / "mosquitto.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\n"
        )
        process = subprocess.Popen(
            [program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        try:
            _wait_until_listening(process, port)
            yield f"mqtt://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait_until_listening(process: "subprocess.Popen[bytes]", port: int) -> None:
    give_up_at = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < give_up_at:
        if process.poll() is not None:
            raise BrokerFailed(f"mosquitto exited with code {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(_POLL_S)
    raise BrokerFailed(f"mosquitto did not listen on port {port} within {_START_TIMEOUT_S:.0f} s")
