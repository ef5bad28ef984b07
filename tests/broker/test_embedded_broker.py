"""The embedded broker lives as long as its owner wants it, and no longer."""

import os
import signal
import socket

import pytest

from broker_link.broker_url import parse_broker_url
from coordinator.embedded_broker import EmbeddedBroker

pytestmark = pytest.mark.broker


def test_it_outlives_a_ctrl_c_that_the_terminal_sends_to_everyone_and_ends_with_its_owner():
    with EmbeddedBroker() as broker:
        pid = broker._process.pid
        os.kill(pid, signal.SIGINT)
        broker._process.join(1)
        assert broker._process.is_alive()
        url = parse_broker_url(broker.url)
        socket.create_connection((url.host, url.port), timeout=5).close()
    assert broker._process.exitcode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
