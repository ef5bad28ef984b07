"""A broker for one machine: amqtt in a child process, on the loopback address alone (ADR 0003).

For demos, simulations and tests. It has no TLS, no passwords and no ACL; a fleet in the field uses a real broker.
The only module that imports amqtt, and only in the child.
"""

import asyncio
import logging
import multiprocessing
import multiprocessing.connection
import signal
import socket
import sys
from types import TracebackType
from typing import Self

from coordinator.errors import BrokerFailed

__all__ = ["EmbeddedBroker", "free_port"]

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class EmbeddedBroker:
    """Starts the broker, gives its address, stops it. Use as a context manager.

    Raises:
        BrokerFailed: The child did not come up; the message says why.
    """

    def __init__(self, *, port: int = 0) -> None:
        self._port = port or free_port()
        context = multiprocessing.get_context("spawn")
        self._ready, child_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(self._port, child_end), name="embedded-broker", daemon=True
        )
        self._child_end = child_end

    @property
    def url(self) -> str:
        """The broker's address."""
        return f"mqtt://{_HOST}:{self._port}"

    def __enter__(self) -> Self:
        self._process.start()
        self._child_end.close()
        if not self._ready.poll(_START_TIMEOUT_S):
            self._kill()
            raise BrokerFailed(f"the embedded broker did not start within {_START_TIMEOUT_S:.0f} s")
        try:
            problem = self._ready.recv_bytes().decode()
        except EOFError:
            problem = f"it exited with code {self._process.exitcode}"
        if problem:
            self._kill()
            raise BrokerFailed(f"the embedded broker did not start: {problem}; try --broker mqtt://host:port")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing our end of the pipe is the child's signal to stop; it also sees it when this process is killed.
        self._ready.close()
        self._process.join(_STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._kill()

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(port: int, parent: multiprocessing.connection.Connection) -> None:
    """The child: runs the broker until the parent closes its end of the pipe or dies."""
    logging.basicConfig(level=logging.CRITICAL, stream=sys.stderr)
    # A terminal sends Ctrl-C to the parent too, which still has goodbyes to say over this broker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        asyncio.run(_run_broker(port, parent))
    except Exception as error:  # noqa: BLE001 - whatever it was, the parent must hear of it
        parent.send_bytes(f"{type(error).__name__}: {error}".encode())


async def _run_broker(port: int, parent: multiprocessing.connection.Connection) -> None:
    from amqtt.broker import Broker

    class OwnRetainedOnly(Broker):  # type: ignore[misc]
        """amqtt 0.12.1 sends a new client what is retained under *anybody's* subscriptions; this sends it its own."""

        async def _publish_retained_messages_for_subscription(
            self, subscription: tuple[str, int], session: object
        ) -> None:
            if any(subscriber is session for subscriber, _ in self._subscriptions.get(subscription[0], ())):
                await super()._publish_retained_messages_for_subscription(subscription, session)

    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"{_HOST}:{port}", "max_connections": 10_000}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = OwnRetainedOnly(config)
    await broker.start()
    parent.send_bytes(b"")
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(parent.fileno(), gone.set)
    await gone.wait()
    await broker.shutdown()
