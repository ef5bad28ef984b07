"""The coordinator is killed before every single thing it does, in turn; nothing acknowledged is lost, nothing counts twice.

Real device agents on virtual time, the real journal and state files on disk. A kill takes the process's memory and
every transaction that was not committed; the next life reads the files and goes on. Its aggregator may be there at once,
or any number of messages later.
"""

import collections
import dataclasses
import itertools
import random

import msgspec
import numpy as np
import pytest

from broker_link.link import Incoming
from coordinator.aggregation_spec import AggregationSpec
from coordinator.checkpoints import CheckpointStore
from coordinator.fleet import FleetCoordinator
from coordinator.late_aggregator import LateAggregator
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.private_sum import private_aggregator
from coordinator.private_task import PrivacyWish, made_private
from coordinator.round_ids import RoundIds
from coordinator.round_journal import RoundJournal
from coordinator.round_loop import RoundLoop, RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import MemberState, RoundState
from edge_client.linear_trainer import LinearTrainer
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from edge_client.training import ArrayExamples
from simulators.scenario import load_scenario
from simulators.virtual_fleet import BadWorld, VirtualFleet
from simulators.virtual_run import linear_task
from simulators.virtual_time import VirtualTime
from wire_protocol.adaptive_clip import AdaptiveClip
from wire_protocol.messages import Assignment, Receipt, ReceiptStatus, RoundKind, decode_message

NUM_DEVICES = 5
NUM_COMMITS = 2
BUNDLE = linear_task(64, 10, batch_size=8, num_epochs=1, learning_rate=0.5)
SCENARIO = load_scenario("digits", num_devices=NUM_DEVICES * 8, partition="iid", alpha=1.0, seed=0)
POLICY = RoundPolicy(
    report_goal=4, min_reports=1, over_selection=1.25, report_timeout_s=300.0, selection_timeout_s=100.0
)


CENTRAL = made_private(
    BUNDLE, PrivacyWish(epsilon=4.0, num_rounds=20, clipping_norm=0.5, min_contributors=1, mode="central")
)
BANDED = made_private(
    BUNDLE,
    PrivacyWish(epsilon=4.0, num_rounds=20, clipping_norm=0.5, min_contributors=1, mode="central", num_bands=2),
)
ADAPTIVE = dataclasses.replace(
    CENTRAL,
    plan=msgspec.structs.replace(
        CENTRAL.plan,
        privacy=msgspec.structs.replace(
            CENTRAL.plan.privacy,
            adaptive_clip=AdaptiveClip(indicator_weight=0.5, min_clipping_norm=1e-3, max_clipping_norm=1e3),
        ),
    ),
)
TRUSTING = PrivacyRules(budget=PrivacyBudget(epsilon=50.0), min_contributors=1, modes=frozenset({"central"}))


class Killed(Exception):
    """The process is gone."""


class FinishedRounds(NumpyMeanAggregator):
    """The numpy mean, remembering what every finished accumulator had folded."""

    def __init__(self) -> None:
        super().__init__(BUNDLE.plan.weights, AggregationSpec())
        self.finished: list = []

    def begin(self, state):
        accumulator = super().begin(state)
        folded: list = []
        fold, finish = accumulator.fold, accumulator.finish

        def recording_fold(update):
            folded.append(update)
            fold(update)

        def recording_finish():
            result = finish()
            self.finished.append((state, tuple(folded), result.state))
            return result

        accumulator.fold, accumulator.finish = recording_fold, recording_finish
        return accumulator


class Life:
    """One life of the coordinator process: killed when it is about to do its ``kill_at``-th thing.

    Its aggregator is there after ``lag`` messages.
    """

    def __init__(self, bench: "Bench", kill_at: int | None, lag: int = 0) -> None:
        self._bench = bench
        self._lag = lag
        self._kill_at = kill_at
        self.num_done = 0
        self.journal = RoundJournal(bench.directory / "journal.sqlite")
        self.late = LateAggregator(lambda: private_aggregator(bench.aggregator, bench.bundle.plan, POLICY))
        if not lag:
            self.late.make_now()
        store = CheckpointStore(bench.directory / "states")
        state = store.load_latest() or bench.aggregator.initialize(BUNDLE.initial_weights)
        ids = RoundIds(bench.directory / "last_round_id", start=state.num_commits)
        fleet = FleetCoordinator(
            population="virtual",
            bundle=bench.bundle,
            policy=POLICY,
            rng=random.Random(1),
            token=random.Random(2).randbytes,
        )
        self.link = bench.fleet.connect(subscriptions=fleet.subscriptions, sink=self.on_event)
        self.is_alive = True
        self.loop = RoundLoop(
            fleet=fleet,
            aggregator=self.late,
            state=state,
            schedule=RoundSchedule(num_commits=NUM_COMMITS),
            store=self._watched(store, "save"),
            publish=self._publish,
            round_ids=self._watched(ids, "next_id"),
            on_round=lambda summary, _: bench.summaries.append(summary),
            journal=self._watched(self.journal, "open_round", "assign", "add", "stop_reporting", "close_round", "sync"),
            flushes_itself=False,
        )

    def start(self) -> None:
        self.link.start()
        self.do(lambda now: self.loop.start(now=now))

    def on_event(self, event) -> None:
        self._lag -= 1
        if self._lag == 0:
            self.late.make_now()
            self._bench.time.after(0.0, lambda: self.do(lambda now: self.loop.tick(now=now)))
        if self.is_alive:
            self.do(lambda now: self.loop.handle(event, now=now))
            # Updates share a disk flush: it comes a moment after the first of them.
            self._bench.time.after(0.05, lambda: self.do(lambda now: self.loop.flush(now=now)))

    def do(self, act) -> None:
        if not self.is_alive or self.loop.is_done:
            return
        try:
            act(self._bench.time.now)
        except Killed:
            self._bench.die(self)
            return
        wakeup = self.loop.next_wakeup()
        if wakeup is not None:
            self._bench.time.at(wakeup, lambda: self.do(lambda now: self.loop.tick(now=now)))

    def _step(self) -> None:
        if self._kill_at is not None and self.num_done == self._kill_at:
            raise Killed
        self.num_done += 1

    def _publish(self, topic, payload, retain) -> None:
        self._step()
        if topic.endswith("/receipt"):
            receipt = decode_message(payload, Receipt)
            if receipt.status is ReceiptStatus.ACCEPTED:
                self._bench.acknowledged.add((receipt.round_id, topic.split("/")[4]))
        if topic.endswith("/assignment"):
            assignment = decode_message(payload, Assignment)
            self._bench.asked[topic.split("/")[4]].add(assignment.round_id)
            released = (assignment.checkpoint.sha256, assignment.clipping_norm)
            self._bench.models_let_out[self.loop.num_commits].add(released)
        self.link.publish(topic, payload, retain=retain)

    def _watched(self, target, *names):
        """The target, with a possible kill before each of the named calls."""
        life = self

        class Watched:
            def __getattr__(self, name):
                attribute = getattr(target, name)
                if name not in names:
                    return attribute

                def call(*args, **kwargs):
                    life._step()
                    return attribute(*args, **kwargs)

                return call

        return Watched()


class Bench:
    """Devices that live through any number of coordinators."""

    def __init__(self, directory, kill_at: int | None, lags: tuple[int, ...] = (), bundle=BUNDLE) -> None:
        self.directory = directory
        self.bundle = bundle
        self._lags = list(lags)
        self.aggregator = FinishedRounds()
        self.acknowledged: set[tuple[int, str]] = set()
        self.models_let_out: collections.defaultdict = collections.defaultdict(set)
        self.asked: collections.defaultdict = collections.defaultdict(set)
        self.summaries: list = []
        self.time = VirtualTime()
        self.fleet = VirtualFleet(
            time=self.time,
            population="virtual",
            examples={SCENARIO.device_id(i): self._examples(i) for i in range(NUM_DEVICES)},
            trainer=LinearTrainer(),
            world=BadWorld(),
            seed=5,
            privacy=TRUSTING,
        )
        self.life = self.next_life(kill_at)
        self.num_kills = 0

    @staticmethod
    def _examples(index: int) -> ArrayExamples:
        x, y = SCENARIO.examples(index)
        return ArrayExamples(x=x, y=y)

    def die(self, life: Life) -> None:
        life.is_alive = False
        life.link.lose("killed")
        life.journal._db.close()  # without a commit: what was not synced is gone
        self.num_kills += 1
        self.time.after(3.0, self._be_born)

    def next_life(self, kill_at: int | None) -> Life:
        return Life(self, kill_at, lag=self._lags.pop(0) if self._lags else 0)

    def _be_born(self) -> None:
        self.life = self.next_life(None)
        self.life.start()

    def run(self) -> None:
        self.life.start()
        self.fleet.start()
        assert self.time.run(until=lambda: self.life.is_alive and self.life.loop.is_done, limit_s=5000.0)


def _check(bench: Bench) -> None:
    assert bench.life.loop.num_commits == NUM_COMMITS
    rounds = {known.round_id: known for known in bench.life.journal.rounds()}
    committed = [known for known in rounds.values() if known.state is RoundState.COMMITTED]
    assert [known.kind for known in committed] == [RoundKind.TRAIN] * NUM_COMMITS
    # The accumulator that made a state is the last one that was finished from the state before it.
    by_base = {before.num_commits: (before, folded, after) for before, folded, after in bench.aggregator.finished}
    for known in committed:
        before, folded, after = by_base[known.base_commits]
        counted = {device for device, member in known.members.items() if member.state is MemberState.FOLDED}
        assert len(folded) == len(counted)
        assert len({update.model_delta[0].tobytes() for update in folded}) == len(folded)
        total = sum(update.aggregation_weight for update in folded)
        for index, weight in enumerate(before.weights):
            mean = sum(update.model_delta[index] * (update.aggregation_weight / total) for update in folded)
            np.testing.assert_allclose(after.weights[index], weight + mean, atol=1e-6)
        acknowledged = {device for round_id, device in bench.acknowledged if round_id == known.round_id}
        assert acknowledged <= counted
    # With one report as the minimum, no round that has counted anything is ever given up.
    abandoned = {known.round_id for known in rounds.values() if known.state is RoundState.ABANDONED}
    assert not {round_id for round_id, _ in bench.acknowledged} & abandoned
    stored = CheckpointStore(bench.directory / "states").load_latest()
    assert stored.num_commits == NUM_COMMITS
    for ours, theirs in zip(stored.weights, by_base[NUM_COMMITS - 1][2].weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _num_steps(tmp_path_factory) -> int:
    bench = Bench(tmp_path_factory.mktemp("undisturbed"), None)
    bench.run()
    _check(bench)
    return bench.life.num_done


@pytest.fixture(scope="module")
def num_steps(tmp_path_factory):
    """How many things an undisturbed coordinator does."""
    return _num_steps(tmp_path_factory)


@pytest.fixture(scope="module")
def num_messages(tmp_path_factory):
    """How many messages an undisturbed coordinator hears."""
    bench = Bench(tmp_path_factory.mktemp("counted"), None, lags=(10**6,))
    bench.life.late.make_now()
    bench.run()
    return 10**6 - bench.life._lag


def test_a_kill_before_any_single_action_loses_no_acknowledged_update_and_counts_none_twice(num_steps, tmp_path):
    assert num_steps > 60
    for kill_at in range(num_steps):
        bench = Bench(tmp_path / str(kill_at), kill_at)
        bench.run()
        assert bench.num_kills == 1, kill_at
        _check(bench)


def test_a_kill_in_each_of_many_lives_ends_in_the_same_promise(num_steps, tmp_path):
    rng = random.Random(7)
    for attempt in range(10):
        bench = Bench(tmp_path / f"many-{attempt}", rng.randrange(num_steps))
        kills_left = [rng.randrange(5, num_steps) for _ in range(5)]

        def be_born(bench=bench, kills_left=kills_left):
            bench.life = Life(bench, kills_left.pop() if kills_left else None)
            bench.life.start()

        bench._be_born = be_born
        bench.run()
        _check(bench)


def test_an_aggregator_that_comes_any_number_of_messages_late_sums_the_same(num_messages, tmp_path):
    for lag in range(num_messages):
        bench = Bench(tmp_path / str(lag), None, lags=(lag,))
        bench.run()
        _check(bench)


def test_a_kill_before_any_single_action_keeps_the_promise_also_if_the_aggregators_come_late(num_messages, tmp_path):
    rng = random.Random(3)
    num_kills = kill_at = 0
    while num_kills == kill_at:
        bench = Bench(tmp_path / str(kill_at), kill_at, lags=(rng.randrange(num_messages), rng.randrange(num_messages)))
        bench.run()
        _check(bench)
        num_kills += bench.num_kills
        kill_at += 1
    assert num_kills > 60


def test_a_round_that_waits_for_its_aggregator_takes_no_report_after_a_restart_either(tmp_path):
    bench = Bench(tmp_path / "waiting", None, lags=(10**6, 10**6))
    bench.life.start()
    bench.fleet.start()
    waiting = (RoundState.AGGREGATING, 1)

    def stands_at():
        current = bench.life.loop._fleet.current_round
        return current is not None and (current.state, current.round_id)

    assert bench.time.run(until=lambda: stands_at() == waiting, limit_s=1000.0)
    assert len(bench.acknowledged) >= POLICY.report_goal
    bench.die(bench.life)
    assert bench.time.run(until=lambda: bench.life.is_alive, limit_s=1000.0)
    assert stands_at() == waiting
    bench.time.run(until=lambda: False, limit_s=bench.time.now + 2 * POLICY.report_timeout_s)
    assert stands_at() == waiting
    bench.life.late.make_now()
    bench.life.do(lambda now: bench.life.loop.tick(now=now))
    assert bench.time.run(until=lambda: bench.life.loop.is_done, limit_s=bench.time.now + 5000.0)
    _check(bench)


def test_an_interrupted_round_goes_on_at_once_after_a_restart(num_steps, tmp_path):
    del num_steps
    bench = Bench(tmp_path / "resume", None)
    bench.life.start()
    bench.fleet.start()
    assert bench.time.run(until=lambda: len(bench.acknowledged) >= 2, limit_s=1000.0)
    round_id = next(iter(bench.acknowledged))[0]
    killed_at = bench.time.now
    bench.die(bench.life)
    assert bench.time.run(until=lambda: bench.life.is_alive, limit_s=1000.0)
    current = bench.life.loop._fleet.current_round
    assert (current.round_id, current.state) == (round_id, RoundState.REPORTING)
    assert current.num_folded >= 2
    assert bench.time.now - killed_at <= 5.0
    assert bench.time.run(until=lambda: bench.life.loop.is_done, limit_s=5000.0)
    _check(bench)


def test_a_device_that_missed_its_receipt_gets_it_from_the_next_life(tmp_path):
    bench = Bench(tmp_path / "receipt", None)
    bench.run()
    known = bench.life.journal.rounds()[-1]
    device, member = next((d, m) for d, m in known.members.items() if m.state is MemberState.FOLDED)
    bench.life.journal.close()
    bench.life.is_alive = False
    later = Life(bench, None)
    later.loop._schedule = RoundSchedule(num_commits=NUM_COMMITS + 1)
    later.start()
    bench.acknowledged.clear()
    from wire_protocol.messages import Metrics, Report, encode_message
    from wire_protocol.topics import device_up

    report = Report(
        round_id=known.round_id,
        nonce=member.nonce,
        update=None,
        piece_digests=b"",
        num_examples=1,
        aggregation_weight=1.0,
        metrics=Metrics(loss_sum=0.0, num_correct=0.0, weight_sum=1.0),
    )
    later.on_event(Incoming(topic=device_up("virtual", device, "report"), payload=encode_message(report)))
    assert bench.acknowledged == {(known.round_id, device)}


def _check_central(bench: Bench) -> None:
    """However often the sum of a round was noised, one noised sum was let out, and it is the one in store."""
    assert bench.life.loop.num_commits == NUM_COMMITS
    assert {len(models) for models in bench.models_let_out.values()} == {1}
    for asked in bench.asked.values():
        assert all(b - a >= bench.bundle.plan.privacy.num_bands for a, b in itertools.pairwise(sorted(asked)))
    stored = CheckpointStore(bench.directory / "states").load_latest()
    last = [after for before, _, after in bench.aggregator.finished if before.num_commits == NUM_COMMITS - 1]
    assert any(all(map(np.array_equal, stored.weights, after.weights)) for after in last)
    acknowledged = {round_id for round_id, _ in bench.acknowledged}
    abandoned = {known.round_id for known in bench.life.journal.rounds() if known.state is RoundState.ABANDONED}
    assert not acknowledged & abandoned


@pytest.mark.parametrize(
    ("bundle", "stride"),
    [(CENTRAL, 1), (BANDED, 4), (ADAPTIVE, 8)],
    ids=["independent", "correlated", "a clip that adapts"],
)
def test_a_kill_anywhere_lets_one_noised_sum_of_a_rounds_updates_out_and_no_second(tmp_path, bundle, stride):
    kill_at = num_noised_again = 0
    while True:
        bench = Bench(tmp_path / str(kill_at), kill_at, bundle=bundle)
        bench.run()
        _check_central(bench)
        num_noised_again += len(bench.aggregator.finished) > NUM_COMMITS
        if bench.num_kills == 0:
            break
        kill_at += stride
    assert kill_at > 60
    # Otherwise no kill has come between the noise and the commit, and this test has shown nothing.
    if stride == 1:
        assert num_noised_again >= NUM_COMMITS
