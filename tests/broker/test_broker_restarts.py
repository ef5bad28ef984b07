"""A short trial of a broker that dies in the middle of rounds; `scripts/broker-restarts` is the long one."""

import asyncio
import random

import pytest

from broker_link.broker_url import parse_broker_url
from broker_link.link import Incoming, LinkDown, LinkUp, Will
from edge_client.settings import AgentSettings, FetchSettings, UploadSettings
from simulators.fault_proxy import FaultProxy
from simulators.mqtt_client import LightLink
from simulators.trials.broker_restarts import run_broker_restarts

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

WAIT_S = 20
IMPATIENT = AgentSettings(
    answer_timeout_s=0.5,
    answer_backoff_s=0.2,
    answer_backoff_cap_s=0.5,
    rejoin_window_s=(0.0, 0.1),
    fetch=FetchSettings(timeout_s=0.5, backoff_cap_s=1.0),
    upload=UploadSettings(retry_s=0.5, backoff_cap_s=1.0),
)


def test_three_restarts_in_the_middle_of_rounds_lose_nothing_acknowledged_and_count_nothing_twice(
    tmp_path, mosquitto_url
):
    del mosquitto_url  # the trial runs a broker of its own; this one says whether there is one at all
    report = run_broker_restarts(
        tmp_path, num_restarts=3, num_devices=50, seed=7, training_s=(0.2, 0.8), settings=IMPATIENT
    )
    assert [spread.ended_by for spread in report.restarts] == ["SIGKILL", "SIGTERM", "SIGKILL"]
    assert all(0 < spread.num_reports_before < 50 for spread in report.restarts)
    assert (report.num_lost, report.num_counted_twice, report.num_abandoned) == (0, 0, 0)
    assert report.num_commits >= 4
    assert report.num_acknowledged >= 50 * 4
    assert report.num_states_checked == report.num_commits
    assert report.is_clean


def test_the_light_client_delivers_leaves_its_will_and_comes_back(mosquitto_url):
    async def scenario():
        loop = asyncio.get_running_loop()
        name = f"light-{random.getrandbits(32)}"

        def connect(port, client_id, topic, will=None):
            events: asyncio.Queue = asyncio.Queue()
            link = LightLink(
                host="127.0.0.1",
                port=port,
                client_id=client_id,
                subscriptions=[topic],
                sink=events.put_nowait,
                uniform=lambda _, high: high / 10,
                will=will,
            )
            link.start()
            return link, events

        broker_port = parse_broker_url(mosquitto_url).port
        with FaultProxy(upstream_port=broker_port) as proxy:
            watcher, seen = connect(broker_port, f"{name}-watcher", f"{name}/status")
            assert await seen.get() == LinkUp()
            will = Will(topic=f"{name}/status", payload=b"offline")
            link, events = connect(proxy.port, name, f"{name}/in/+", will)
            assert await events.get() == LinkUp()
            payload = bytes(range(256)) * 480
            watcher.publish(f"{name}/in/a", payload)
            assert await events.get() == Incoming(topic=f"{name}/in/a", payload=payload)
            await loop.run_in_executor(None, proxy.reset_all)
            assert isinstance(await events.get(), LinkDown)
            assert await events.get() == LinkUp()
            assert await seen.get() == Incoming(topic=f"{name}/status", payload=b"offline")
            link.publish(f"{name}/status", b"online", retain=True)
            assert await seen.get() == Incoming(topic=f"{name}/status", payload=b"online")
            link.stop()
            watcher.publish(f"{name}/status", b"marker", retain=False)
            assert (await seen.get()).payload == b"marker"
            watcher.stop()

    asyncio.run(asyncio.wait_for(scenario(), WAIT_S))
