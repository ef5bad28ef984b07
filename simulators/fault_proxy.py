"""A TCP proxy between MQTT clients and a broker, whose network goes wrong on request. In user space, without root.

It reads the fixed headers of MQTT packets and nothing else, so that it can lose or double whole packets; with TLS in
between it could only delay, throttle and cut. Faults are switched while connections are open.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

from simulators.mqtt_framing import Packet, PacketSplitter, PacketType

__all__ = ["Direction", "FaultProxy", "Faults"]

Direction: TypeAlias = Literal["up", "down"]
"""``up`` is from the client to the broker."""

_HOST: Final = "127.0.0.1"
_READ_BYTES: Final = 65536
_CHUNK_BYTES: Final = 4096
_MAX_QUEUED_PACKETS: Final = 64
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_CALL_TIMEOUT_S: Final = 10.0
_GOODBYE_S: Final = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """What goes wrong now. The default is a perfect network."""

    delay_s: float = 0.0
    """Every packet arrives this much later; order is kept."""
    jitter_s: float = 0.0
    """Plus a time drawn uniformly from 0 to this."""
    bytes_per_s: float = 0.0
    """Each direction of each connection is limited to this; 0 is no limit."""
    is_half_open: bool = False
    """Nothing is forwarded and nothing is closed: both sides go on believing in the connection."""
    refuses: bool = False
    """Nobody listens: new connections are refused. Those that exist stay."""
    cut_after_bytes: int = 0
    """A connection is reset in the middle of a packet, after this many bytes of both directions; 0 is never."""
    drop: float = 0.0
    """Probability that a packet of one of ``drop_types`` vanishes."""
    drop_types: frozenset[int] = frozenset({PacketType.PUBLISH})
    duplicate: float = 0.0
    """Probability that a PUBLISH is forwarded twice."""
    directions: frozenset[Direction] = frozenset({"up", "down"})
    """Delay, throttle, half-open, drop and duplicate concern these directions alone."""

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            ValueError: One is out of its range.
        """
        if not (0 <= self.drop <= 1 and 0 <= self.duplicate <= 1):
            raise ValueError("drop and duplicate are probabilities")
        if min(self.delay_s, self.jitter_s, self.bytes_per_s, self.cut_after_bytes) < 0:
            raise ValueError("delay_s, jitter_s, bytes_per_s and cut_after_bytes must not be negative")


class FaultProxy:
    """Listens on loopback and forwards to a broker. Use as a context manager; every method is for any thread.

    Args:
        upstream_port: Port of the broker on the loopback address.
        seed: Decides what is dropped, doubled and how long a jitter is: the same packets in the same direction of the
            same connection (counted from 0) fare the same, whatever the other connections do meanwhile.
    """

    def __init__(self, *, upstream_port: int, seed: int = 0) -> None:
        self.upstream_port = upstream_port
        self._seed = seed
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        # Holds the port while nobody listens. Otherwise the kernel may give it to a client that tries to connect to
        # it, which then is connected to itself.
        self._claim = socket.socket()
        self._claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._claim.bind((_HOST, 0))
        self._connections: dict[_Connection, None] = {}
        self._changed = asyncio.Event()
        self.faults = Faults()
        """What is in force; changed by ``set_faults``."""
        self.port: int = self._claim.getsockname()[1]
        self.counts: collections.Counter[str] = collections.Counter()
        """``connections``, ``packets``, ``dropped``, ``duplicated``, ``resets``, ``cuts``."""

    @property
    def url(self) -> str:
        """What a client is to be given as its broker's address."""
        return f"mqtt://{_HOST}:{self.port}"

    @property
    def num_open(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_TIMEOUT_S)
        self._loop.close()

    def set_faults(self, faults: Faults) -> None:
        """From now on these faults, and no others, are in force."""
        self._call(self._switch(faults))

    def reset_all(self) -> int:
        """Resets every connection (RST, not FIN) and returns how many there were."""
        num_reset: int = self._call(self._reset_all())
        return num_reset

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        future: concurrent.futures.Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(_CALL_TIMEOUT_S)

    # -- in the proxy's thread

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, _HOST, self.port, reuse_address=True)

    async def _switch(self, faults: Faults) -> None:
        was_refusing, self.faults = self.faults.refuses, faults
        if faults.refuses and self._server is not None:
            self._server.close()
            self._server = None
        elif was_refusing and not faults.refuses:
            await self._listen()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _reset_all(self) -> int:
        connections = list(self._connections)
        for connection in connections:
            self.counts["resets"] += 1
            connection.reset()
        return len(connections)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._claim.close()
        connections = list(self._connections)
        for connection in connections:
            connection.reset()
        await asyncio.gather(*(connection.over.wait() for connection in connections))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, self._dice(self.counts["connections"]))
        self.counts["connections"] += 1
        self._connections[connection] = None
        try:
            await connection.run(reader, writer)
        finally:
            del self._connections[connection]
            connection.over.set()

    def _dice(self, number: int) -> "dict[Direction, random.Random]":
        """The randomness of one connection, by direction."""
        directions: tuple[Direction, ...] = ("up", "down")
        # Faults must replay; nothing here is secret.
        return {direction: random.Random(f"{self._seed}/{number}/{direction}") for direction in directions}  # noqa: S311

    async def while_half_open(self, direction: Direction) -> None:
        """Returns when this direction flows."""
        while self.faults.is_half_open and direction in self.faults.directions:
            await self._changed.wait()

    def copies(self, packet: Packet, direction: Direction, dice: random.Random) -> int:
        """How often a packet is to be forwarded: 0, 1 or 2."""
        self.counts["packets"] += 1
        faults = self.faults
        if direction not in faults.directions:
            return 1
        if packet.type in faults.drop_types and dice.random() < faults.drop:
            self.counts["dropped"] += 1
            return 0
        if packet.type == PacketType.PUBLISH and dice.random() < faults.duplicate:
            self.counts["duplicated"] += 1
            return 2
        return 1

    def latency_s(self, direction: Direction, dice: random.Random) -> float:
        """How long a packet is to take."""
        if direction not in self.faults.directions:
            return 0.0
        return self.faults.delay_s + dice.uniform(0.0, self.faults.jitter_s)


class _Connection:
    """One client's connection and the broker's side of it: a reader and a writer task for each direction."""

    def __init__(self, proxy: FaultProxy, dice: dict[Direction, random.Random]) -> None:
        self._proxy = proxy
        self._dice = dice
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._num_bytes = 0
        self._is_cut = False
        self.over = asyncio.Event()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forwards until either side, or a fault, ends it."""
        self._writers.append(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection(_HOST, self._proxy.upstream_port)
        except OSError:
            self.reset()
            return
        self._writers.append(up_writer)
        pipes: tuple[tuple[asyncio.StreamReader, asyncio.StreamWriter, Direction], ...] = (
            (reader, up_writer, "up"),
            (up_reader, writer, "down"),
        )
        readers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        for source, sink, direction in pipes:
            queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_QUEUED_PACKETS)
            readers[asyncio.create_task(self._read(source, queue, direction))] = sink
            self._tasks.append(asyncio.create_task(self._write(sink, queue, direction)))
        self._tasks.extend(readers)
        with contextlib.suppress(asyncio.CancelledError):
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            await self._pass_on_the_end(readers, done)
        if self._is_cut:
            self.reset()
        else:
            self._finish()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass_on_the_end(
        self, readers: dict[asyncio.Task[None], asyncio.StreamWriter], done: set[asyncio.Task[None]]
    ) -> None:
        """Tells the other side of an end, and gives it a moment to hang up.

        A socket that is closed with unread bytes in it sends RST, and that would take a goodbye back.
        """
        ended = [sink for reader, sink in readers.items() if reader in done and not reader.cancelled()]
        if not ended or self._is_cut:
            return
        for sink in ended:
            with contextlib.suppress(OSError, RuntimeError):
                sink.write_eof()
        await asyncio.wait(readers, timeout=_GOODBYE_S)

    def _finish(self) -> None:
        """Both sides are closed in good order."""
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.close()

    def reset(self) -> None:
        """Ends both sides with RST."""
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()

    async def _read(
        self, source: asyncio.StreamReader, queue: "asyncio.Queue[tuple[float, bytes]]", direction: Direction
    ) -> None:
        """Reads packets and stamps each with the moment of its arrival on the other side; ends with the stream."""
        clock = asyncio.get_running_loop().time
        splitter, dice = PacketSplitter(), self._dice[direction]
        arrives_at = 0.0
        while data := await self._receive(source):
            # What was read in time is held up too: in a half-open connection even the goodbye goes nowhere.
            await self._proxy.while_half_open(direction)
            for packet in splitter.feed(data):
                for _ in range(self._proxy.copies(packet, direction, dice)):
                    arrives_at = max(arrives_at, clock() + self._proxy.latency_s(direction, dice))
                    await queue.put((arrives_at, packet.data))
        await self._proxy.while_half_open(direction)
        await queue.join()

    async def _receive(self, source: asyncio.StreamReader) -> bytes:
        try:
            return await source.read(_READ_BYTES)
        except OSError:
            return b""

    async def _write(
        self, sink: asyncio.StreamWriter, queue: "asyncio.Queue[tuple[float, bytes]]", direction: Direction
    ) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            arrives_at, data = await queue.get()
            await asyncio.sleep(max(0.0, arrives_at - clock()))
            for start in range(0, len(data), _CHUNK_BYTES):
                if not await self._forward(sink, data[start : start + _CHUNK_BYTES], direction):
                    return
            queue.task_done()

    async def _forward(self, sink: asyncio.StreamWriter, chunk: bytes, direction: Direction) -> bool:
        """Passes on some bytes, as fast as allowed; says whether the connection still stands."""
        await self._proxy.while_half_open(direction)
        faults = self._proxy.faults
        if faults.bytes_per_s and direction in faults.directions:
            await asyncio.sleep(len(chunk) / faults.bytes_per_s)
        room = faults.cut_after_bytes - self._num_bytes
        # Whoever cuts a packet must end the connection, whatever the other direction finds or is switched meanwhile.
        cuts_here = faults.cut_after_bytes > 0 and room < len(chunk)
        if cuts_here:
            self._proxy.counts["cuts"] += not self._is_cut
            self._is_cut = True
            chunk = chunk[: max(0, room)]
        self._num_bytes += len(chunk)
        try:
            sink.write(chunk)
            await sink.drain()
        except OSError:
            return False
        return not cuts_here
