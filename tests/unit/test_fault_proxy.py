"""The proxy does to bytes what it says, switched while connections are open, and the same again for the same seed."""

import contextlib
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.fault_proxy import FaultProxy, Faults
from simulators.mqtt_framing import PacketSplitter, PacketType, encode_packet, encode_string

WAIT_S = 10.0
PING = encode_packet(PacketType.PINGREQ, 0)


class Echo:
    """A server that sends everything back, and keeps what came, connection by connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.received: list[bytearray] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                received = bytearray()
                self.received.append(received)
                threading.Thread(target=self._echo, args=(connection, received), daemon=True).start()

    @staticmethod
    def _echo(connection: socket.socket, received: bytearray) -> None:
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(65536):
                received += data
                connection.sendall(data)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def echo():
    """A server behind the proxy."""
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo):
    """A proxy before it."""
    with FaultProxy(upstream_port=echo.port, seed=1) as running:
        yield running


def _connect(proxy) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=WAIT_S)
    connection.settimeout(WAIT_S)
    return connection


def _read(connection: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes and (more := connection.recv(num_bytes - len(data))):
        data += more
    return data


def _publish(number: int, size: int = 100) -> bytes:
    return encode_packet(PacketType.PUBLISH, 0, encode_string("t"), number.to_bytes(2, "big"), bytes(size))


def _numbers(data: bytes) -> list[int]:
    return [int.from_bytes(packet.body[3:5], "big") for packet in PacketSplitter().feed(data)]


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 50))
def test_packets_are_found_wherever_the_stream_is_cut(bodies, step):
    stream = b"".join(encode_packet(PacketType.PUBLISH, 2, body) for body in bodies)
    splitter = PacketSplitter()
    packets = [
        packet for start in range(0, len(stream), step) for packet in splitter.feed(stream[start : start + step])
    ]
    assert [bytes(packet.body) for packet in packets] == bodies
    assert all((packet.type, packet.flags) == (PacketType.PUBLISH, 2) for packet in packets)


def test_a_stream_that_is_no_mqtt_is_refused():
    with pytest.raises(ValueError, match="no MQTT"):
        PacketSplitter().feed(b"\x30\xff\xff\xff\xff\x01")


def test_without_faults_every_byte_arrives_in_order(proxy):
    sent = b"".join(_publish(number, 5000) for number in range(100))
    with _connect(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(sent,))
        sender.start()
        assert _read(connection, len(sent)) == sent
        sender.join(WAIT_S)


def test_the_end_of_one_side_reaches_the_other_after_everything_that_was_sent(proxy, echo):
    sent = _publish(1, 50_000)
    with _connect(proxy) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # what the server sends back may come too late
            while connection.recv(65536):
                pass
    give_up_at = time.monotonic() + WAIT_S
    while len(echo.received[0]) < len(sent) and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert bytes(echo.received[0]) == sent


def test_only_publishes_are_lost_and_only_in_the_direction_asked_for(proxy, echo):
    proxy.set_faults(Faults(drop=1.0, directions=frozenset({"up"})))
    with _connect(proxy) as connection:
        connection.sendall(_publish(1) + PING + _publish(2) + PING)
        assert _read(connection, 2 * len(PING)) == 2 * PING
        proxy.set_faults(Faults(drop=1.0, directions=frozenset({"down"})))
        connection.sendall(_publish(3) + PING)
        assert _read(connection, len(PING)) == PING
    assert bytes(echo.received[0]) == 2 * PING + _publish(3) + PING
    assert proxy.counts["dropped"] == 3


def test_a_publish_that_is_doubled_comes_twice_in_a_row(proxy):
    proxy.set_faults(Faults(duplicate=1.0, directions=frozenset({"up"})))
    with _connect(proxy) as connection:
        connection.sendall(_publish(1) + _publish(2))
        assert _numbers(_read(connection, 4 * len(_publish(1)))) == [1, 1, 2, 2]
    assert proxy.counts["duplicated"] == 2


def _what_a_seed_loses(echo, seed: int) -> list[list[int]]:
    with FaultProxy(upstream_port=echo.port, seed=seed) as proxy:
        proxy.set_faults(Faults(drop=0.5, duplicate=0.3, directions=frozenset({"up"})))
        arrived = []
        for _ in range(2):
            with _connect(proxy) as connection:
                connection.sendall(b"".join(map(_publish, range(100))) + PING)
                data = b""
                while not data.endswith(PING):
                    data += connection.recv(65536)
            arrived.append(_numbers(data[: -len(PING)]))
    return arrived


def test_the_same_seed_loses_and_doubles_the_same_packets_and_another_seed_others(echo):
    first = _what_a_seed_loses(echo, 5)
    assert _what_a_seed_loses(echo, 5) == first
    assert first[0] != first[1]
    assert _what_a_seed_loses(echo, 6) != first


def test_a_half_open_connection_passes_nothing_closes_nothing_and_flows_again_later(proxy):
    with _connect(proxy) as connection:
        connection.sendall(_publish(1))
        assert _numbers(_read(connection, len(_publish(1)))) == [1]
        proxy.set_faults(Faults(is_half_open=True))
        connection.sendall(_publish(2))
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert proxy.num_open == 1
        proxy.set_faults(Faults())
        connection.settimeout(WAIT_S)
        assert _numbers(_read(connection, len(_publish(2)))) == [2]


def test_while_the_proxy_refuses_nobody_listens_and_open_connections_stay(proxy):
    with _connect(proxy) as connection:
        connection.sendall(_publish(1))
        _read(connection, len(_publish(1)))
        port = proxy.port
        proxy.set_faults(Faults(refuses=True))
        with pytest.raises(ConnectionRefusedError):
            _connect(proxy)
        connection.sendall(_publish(2))
        assert _numbers(_read(connection, len(_publish(2)))) == [2]
        proxy.set_faults(Faults())
        assert proxy.port == port
        _connect(proxy).close()


def test_a_cut_resets_the_connection_in_the_middle_of_a_packet(proxy, echo):
    proxy.set_faults(Faults(cut_after_bytes=5000, directions=frozenset({"up"})))
    with _connect(proxy) as connection:
        connection.sendall(_publish(1, 20_000))
        with pytest.raises(ConnectionResetError):
            _read(connection, 20_000)
    assert proxy.counts["cuts"] == 1
    # The other side may hear of the connection after its reset; what it heard of the packet is not all of it.
    assert sum(map(len, echo.received)) < 20_000


def test_a_reset_is_seen_by_every_client_as_a_reset(proxy):
    connections = [_connect(proxy) for _ in range(3)]
    for connection in connections:
        connection.sendall(_publish(1))
        _read(connection, len(_publish(1)))
    assert proxy.reset_all() == 3
    for connection in connections:
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        connection.close()


def test_packets_arrive_no_earlier_than_their_delay_and_no_faster_than_their_limit(proxy):
    # Lower bounds on time alone: a slow machine makes them easier.
    with _connect(proxy) as connection:
        proxy.set_faults(Faults(delay_s=0.1))
        started = time.monotonic()
        connection.sendall(_publish(1))
        _read(connection, len(_publish(1)))
        assert time.monotonic() - started >= 0.2
        proxy.set_faults(Faults(bytes_per_s=100_000.0, directions=frozenset({"up"})))
        started = time.monotonic()
        connection.sendall(_publish(2, 30_000))
        _read(connection, len(_publish(2, 30_000)))
        assert time.monotonic() - started >= 0.3


def test_a_broker_that_is_away_resets_whoever_comes():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with FaultProxy(upstream_port=port) as proxy, pytest.raises(ConnectionResetError):
        # The reset may come as early as into the connecting itself.
        _read(_connect(proxy), 1)


@pytest.mark.parametrize("bad", [{"drop": 1.1}, {"duplicate": -0.1}, {"delay_s": -1.0}, {"cut_after_bytes": -1}])
def test_faults_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match=r"probabilities|negative"):
        Faults(**bad)
