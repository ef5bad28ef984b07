"""Real rounds through a bad network: each commits, every report counts exactly once, and links come back by themselves."""

import collections
import logging
import queue
import random
import threading
import time

import pytest

from broker_link.broker_url import parse_broker_url
from broker_link.link import Incoming, LinkDown, LinkUp
from broker_link.paho_link import LinkTiming, PahoLink
from coordinator.admission import AdmissionPolicy
from coordinator.checkpoints import CheckpointStore
from coordinator.round_ids import RoundIds
from coordinator.round_journal import RoundJournal
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import RoundState
from coordinator.server import ServerConfig, TaskState, run_rounds
from edge_client.config_loader import load_config
from edge_client.daemon import Daemon
from edge_client.example_store import write_examples
from edge_client.settings import AgentSettings, FetchSettings, UploadSettings
from simulators.fault_proxy import FaultProxy, Faults
from simulators.mqtt_framing import PacketType
from simulators.process_fleet import write_device_config
from simulators.scenario import load_scenario
from simulators.trials.exact_mean import ExactMean
from simulators.virtual_run import linear_task

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

NUM_DEVICES = 3
WAIT_S = 30.0
TIMING = LinkTiming(keepalive_s=1, connect_timeout_s=2.0, liveness_check_s=0.2, backoff_base_s=0.1, backoff_cap_s=0.5)
SETTINGS = AgentSettings(
    answer_timeout_s=0.3,
    answer_backoff_s=0.1,
    answer_backoff_cap_s=0.3,
    rejoin_window_s=(0.0, 0.05),
    failure_backoff_s=0.2,
    failure_backoff_cap_s=0.5,
    min_refused_wait_s=0.1,
    fetch=FetchSettings(timeout_s=0.3, backoff_cap_s=0.5),
    upload=UploadSettings(retry_s=0.3, backoff_cap_s=0.5),
)
# Pieces of 2 600 bytes: a connection cut after a few thousand bytes is cut in the middle of one.
BUNDLE = linear_task(64, 10, batch_size=8, num_epochs=1, learning_rate=0.1)


class NotingJournal(RoundJournal):
    """The real journal, and what was counted, for whoever looks on."""

    def __init__(self, path, counted) -> None:
        super().__init__(path)
        self._counted = counted

    def add(self, round_id, contribution) -> None:
        super().add(round_id, contribution)
        self._counted.append((round_id, contribution.device_id))


class Bench:
    """Three daemons and a coordinator, all behind one proxy, with rounds that follow one another."""

    def __init__(self, directory, proxy) -> None:
        self._directory = directory
        self._proxy = proxy
        self._population = f"faults-{random.getrandbits(32)}"
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self.summaries: list = []
        self.counted: list[tuple[int, str]] = []
        self.aggregator = ExactMean(BUNDLE.plan.weights)
        self.problem: BaseException | None = None
        self.daemons = [self._daemon(index) for index in range(NUM_DEVICES)]
        self._threads = [
            threading.Thread(target=daemon.serve, name=daemon.agent.channel.device_id) for daemon in self.daemons
        ]
        self._threads.append(threading.Thread(target=self._coordinate))

    def _daemon(self, index) -> Daemon:
        scenario = load_scenario("digits", num_devices=35, partition="iid", alpha=1.0, seed=0)
        config = write_device_config(
            self._directory,
            device_id=scenario.device_id(index),
            population=self._population,
            broker_url=self._proxy.url,
            num_threads=1,
        )
        config.write_text(config.read_text().replace("[training]\n", '[training]\ntrainer = "linear"\n'))
        x, y = scenario.examples(index)
        write_examples(config.parent / "data", x=x, y=y)

        def make_link(config, channel, sink):
            return PahoLink(
                url=config.broker.url,
                client_id=channel.device_id,
                subscriptions=channel.subscriptions,
                sink=sink,
                will=channel.will,
                timing=TIMING,
            )

        return Daemon(load_config(config, {}), make_link=make_link, settings=SETTINGS)

    def _coordinate(self) -> None:
        config = ServerConfig(
            broker_url=self._proxy.url,
            population=self._population,
            policy=RoundPolicy(
                report_goal=NUM_DEVICES,
                min_reports=NUM_DEVICES,
                over_selection=1.0,
                selection_timeout_s=10.0,
                report_timeout_s=20.0,
            ),
            schedule=RoundSchedule(num_commits=1_000_000, max_abandoned_in_a_row=1_000_000),
            admission=AdmissionPolicy(),
            link_timing=TIMING,
        )
        task = TaskState(
            store=CheckpointStore(self._directory / "states"),
            journal=NotingJournal(self._directory / "journal.sqlite", self.counted),
            round_ids=RoundIds(),
            state=self.aggregator.initialize(BUNDLE.initial_weights),
            is_resumed=False,
        )
        try:
            run_rounds(
                config,
                bundle=BUNDLE,
                aggregator=self.aggregator,
                task=task,
                on_round=self._on_round,
                stop=self._stop,
            )
        except BaseException as error:
            self.problem = error
            raise

    def _on_round(self, summary, state) -> None:
        del state
        with self._changed:
            self.summaries.append(summary)
            self._changed.notify_all()

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._proxy.set_faults(Faults())
        self._stop.set()
        for daemon in self.daemons:
            daemon.stop()
        for thread in self._threads:
            thread.join(WAIT_S)

    def a_committed_round(self):
        """Waits for a round that is committed after the next one that ends."""
        begin = len(self.summaries) + 1
        with self._changed:
            done = self._changed.wait_for(lambda: any(self._committed(begin)), timeout=WAIT_S)
        assert self.problem is None
        assert done, f"no round was committed within {WAIT_S} s; faults met: {self._proxy.counts}"
        return next(iter(self._committed(begin)))

    def _committed(self, begin):
        return [summary for summary in self.summaries[begin:] if summary.state is RoundState.COMMITTED]


class Acknowledged(logging.Handler):
    """The rounds in which a device was told that its report was accepted, by the device's own log."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: set[tuple[int, str]] = set()

    def emit(self, record) -> None:
        if str(record.msg).startswith("round_over") and record.args[1] == "accepted":
            self.reports.add((record.args[0], record.threadName))


@pytest.fixture(scope="module")
def proxy(mosquitto_url):
    """A proxy before Mosquitto."""
    with FaultProxy(upstream_port=parse_broker_url(mosquitto_url).port, seed=3) as running:
        yield running


@pytest.fixture(scope="module")
def acknowledged():
    """What the devices were told."""
    handler = Acknowledged()
    logger = logging.getLogger("edge_client.daemon")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture(scope="module")
def bench(proxy, acknowledged, tmp_path_factory):
    """Rounds under way."""
    del acknowledged
    with Bench(tmp_path_factory.mktemp("faults"), proxy) as running:
        running.a_committed_round()
        yield running


@pytest.fixture(autouse=True)
def a_good_network_afterwards(proxy):
    """Ends every test with a network that works and connections without leftovers."""
    yield
    proxy.set_faults(Faults())
    proxy.reset_all()


FAULTS = {
    "delay and jitter": (Faults(delay_s=0.02, jitter_s=0.03), None),
    "throttle": (Faults(bytes_per_s=40_000.0), None),
    "cut in the middle of a packet": (Faults(cut_after_bytes=15_000), "cuts"),
    "publishes lost on the way up": (Faults(drop=0.06, directions=frozenset({"up"})), "dropped"),
    "publishes lost on the way down": (Faults(drop=0.06, directions=frozenset({"down"})), "dropped"),
    "acknowledgements of the broker lost": (
        Faults(drop=0.05, drop_types=frozenset({PacketType.PUBACK}), directions=frozenset({"down"})),
        "dropped",
    ),
    "publishes doubled": (Faults(duplicate=0.5), "duplicated"),
}


def _check(bench, acknowledged, summary) -> None:
    """Every device of the round was counted once, and whoever was told so was counted."""
    counted = collections.Counter(bench.counted)
    assert max(counted.values()) == 1
    assert summary.num_reports == NUM_DEVICES
    assert sum(round_id == summary.round_id for round_id, _ in counted) == NUM_DEVICES
    assert acknowledged.reports <= counted.keys()
    # `ExactMean` compares every result with the sum of what was folded, and raises if it differs.
    assert bench.aggregator.num_checked >= 1
    assert bench.aggregator.max_error <= 1e-6


@pytest.mark.parametrize("name", FAULTS)
def test_a_round_on_a_bad_network_commits_and_counts_each_report_exactly_once(bench, acknowledged, proxy, name):
    faults, must_happen = FAULTS[name]
    before = proxy.counts.copy()
    proxy.set_faults(faults)
    if name.startswith("cut"):
        proxy.reset_all()
    give_up_at = time.monotonic() + WAIT_S
    summary = bench.a_committed_round()
    while must_happen is not None and proxy.counts[must_happen] == before[must_happen]:
        assert time.monotonic() < give_up_at, f"{name}: never happened"
        summary = bench.a_committed_round()
    _check(bench, acknowledged, summary)


@pytest.mark.parametrize("faults", [Faults(is_half_open=True), Faults(refuses=True)], ids=["half-open", "refused"])
def test_a_round_goes_on_after_a_network_that_was_gone_for_a_while(bench, acknowledged, proxy, faults):
    bench.a_committed_round()  # everybody is connected
    before = proxy.counts["connections"]
    assert proxy.num_open > NUM_DEVICES
    proxy.set_faults(faults)
    if faults.refuses:
        proxy.reset_all()
    # Half-open: nothing closes these connections but the clients' own keepalive.
    give_up_at = time.monotonic() + WAIT_S
    while any(link._client is not None and link._client.is_connected() for link in _links(bench)):
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    proxy.set_faults(Faults())
    _check(bench, acknowledged, bench.a_committed_round())
    # The devices' links; the coordinator's may have been healed before its own keepalive had run out.
    assert proxy.counts["connections"] >= before + NUM_DEVICES


def _links(bench):
    return [daemon._link for daemon in bench.daemons]


def test_connections_that_are_reset_again_and_again_lose_no_report(bench, acknowledged, proxy):
    for _ in range(5):
        proxy.reset_all()
        time.sleep(0.15)
    _check(bench, acknowledged, bench.a_committed_round())
    assert proxy.counts["resets"] >= 4


def test_a_half_open_link_is_noticed_by_keepalive_and_comes_back_when_the_network_does(proxy):
    events: queue.Queue = queue.Queue()
    link = PahoLink(url=proxy.url, client_id="half-open", subscriptions=["h/o"], sink=events.put, timing=TIMING)
    link.start()
    assert isinstance(events.get(timeout=WAIT_S), LinkUp)
    proxy.set_faults(Faults(is_half_open=True, directions=frozenset({"down"})))
    assert isinstance(events.get(timeout=WAIT_S), LinkDown)
    proxy.set_faults(Faults())
    seen = events.get(timeout=WAIT_S)
    while not isinstance(seen, LinkUp):
        seen = events.get(timeout=WAIT_S)
    link.publish("h/o", b"hello")
    assert events.get(timeout=WAIT_S) == Incoming(topic="h/o", payload=b"hello")
    link.stop()


def test_links_that_lost_their_broker_wait_random_times_within_a_bound_that_doubles(proxy, caplog):
    timing = LinkTiming(keepalive_s=1, liveness_check_s=0.1, backoff_base_s=0.02, backoff_cap_s=0.32)
    proxy.set_faults(Faults(refuses=True))
    links = [
        PahoLink(url=proxy.url, client_id=f"jitter-{n}", subscriptions=[], sink=lambda _: None, timing=timing)
        for n in range(12)
    ]
    for link in links:
        link.start()
    give_up_at = time.monotonic() + WAIT_S
    while min(link._backoff.attempts for link in links) < 6:
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    for link in links:
        link.stop()
    # Other links (of the bench) have a bound of their own: ours are told apart by their threads.
    waits = collections.defaultdict(list)
    for record in caplog.records:
        if record.msg.startswith("link_down") and record.threadName.startswith("link-jitter"):
            waits[record.threadName].append(record.args[2])
    assert len(waits) == 12
    for drawn in waits.values():
        assert all(wait <= min(0.32, 0.02 * 2**attempt) for attempt, wait in enumerate(drawn))
    fifth = [drawn[4] for drawn in waits.values()]
    assert len(set(fifth)) == 12
    # Uniform from 0 to 0.32: twelve draws within a quarter of that come once in more than 10^5 runs.
    assert max(fifth) - min(fifth) > 0.08
