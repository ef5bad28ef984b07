"""What the service manager is told: that the daemon is ready, what it does, and that it lives (sd_notify(3)).

systemd starts the daemon with ``Type=notify`` and ``WatchdogSec``. Ready means that the device was connected once, or
has waited `READY_AFTER_S` in vain: a device without a network is healthy, its daemon tries for as long as it takes, and
a manager that restarted it for that would only throw away its back-off and its trainer. The watchdog is fed by the
daemon's main loop alone, and only while the loop's own helpers live; whatever hangs or dies, the feeding ends and
the manager starts the daemon anew. Without ``$NOTIFY_SOCKET`` nothing here does anything.
"""

import logging
import math
import os
import socket
from collections.abc import Mapping
from typing import Final

__all__ = ["READY_AFTER_S", "ServiceManager"]

_LOG = logging.getLogger(__name__)
READY_AFTER_S: Final = 30.0
"""The daemon counts as started after this long, connected or not."""
_FEEDS_PER_TIMEOUT: Final = 3
_MICROSECOND: Final = 1e-6
_MAX_STATUS_CHARS: Final = 200


class ServiceManager:
    """Speaks to the manager that started this process, if one did. Never raises: the device matters more.

    Args:
        environ: ``NOTIFY_SOCKET`` (a path, or ``@name`` in the abstract namespace), ``WATCHDOG_USEC`` and
            ``WATCHDOG_PID`` as sd_notify(3) and sd_watchdog_enabled(3) describe them.
        pid: This process; a watchdog meant for another is not fed.
    """

    __slots__ = ("_address", "_fault", "_feed_at", "_feed_every_s", "_ready_at", "_socket", "_status")

    def __init__(self, environ: Mapping[str, str], *, pid: int | None = None) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._feed_every_s = _feed_every_s(environ, pid=os.getpid() if pid is None else pid)
        self._feed_at = self._ready_at = math.inf
        self._status = self._fault = ""
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # A manager that does not read must not stop the loop: the datagram is lost, the next one is not.
            self._socket.settimeout(0)

    def started(self, now: float) -> None:
        """The main loop begins.

        Args:
            now: Monotonic time in seconds, here and below.
        """
        if self._socket is not None:
            self._ready_at = now + READY_AFTER_S
            self._feed_at = now if math.isfinite(self._feed_every_s) else math.inf

    def next_wakeup(self) -> float:
        """When ``turned`` must be called at the latest; infinity if nothing is owed to anybody."""
        return min(self._ready_at, self._feed_at)

    def turned(self, now: float, *, is_connected: bool, status: str, fault: str) -> None:
        """The main loop has turned.

        Args:
            now: Monotonic time in seconds.
            is_connected: Whether the link is up.
            status: One line for people: ``systemctl status`` shows it.
            fault: What of the daemon is dead, so that it must be started anew; empty if nothing is.
        """
        if self._socket is None:
            return
        lines = []
        if is_connected or now >= self._ready_at:
            lines += ["READY=1"] if self._ready_at != math.inf else []
            self._ready_at = math.inf
        if now >= self._feed_at:
            # Also asked again later if there is a fault: it may pass, and a loop must not spin on a past time.
            self._feed_at = now + self._feed_every_s
            lines += [] if fault else ["WATCHDOG=1"]
        if fault and fault != self._fault:
            _LOG.error("watchdog_not_fed fault=%r", fault)
        self._fault = fault
        shown = " ".join((fault or status).split())[:_MAX_STATUS_CHARS]
        if shown != self._status:
            self._status = shown
            lines.append(f"STATUS={shown}")
        self._send(lines)

    def stopping(self) -> None:
        """The daemon has begun to leave."""
        self._send(["STOPPING=1", "STATUS=leaving"])
        self._ready_at = self._feed_at = math.inf

    def close(self) -> None:
        """Gives the socket back; nothing is said any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, lines: list[str]) -> None:
        if self._socket is None or not lines:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            _LOG.debug("service_manager_not_told error=%r", str(error))


def _address(text: str) -> str:
    """The address of a ``NOTIFY_SOCKET``; empty if there is none, or one that is not understood (vsock)."""
    if text.startswith("@"):
        return f"\0{text[1:]}"
    return text if text.startswith("/") else ""


def _feed_every_s(environ: Mapping[str, str], *, pid: int) -> float:
    """A third of the watchdog's patience; infinity if there is no watchdog, or it watches another process."""
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return math.inf
    text = environ.get("WATCHDOG_USEC", "")
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        return math.inf
    return int(text) * _MICROSECOND / _FEEDS_PER_TIMEOUT
