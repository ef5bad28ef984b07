"""Fleets on virtual time: the real device agent and the real coordinator in a world that loses, doubles and delays."""

import dataclasses

import numpy as np
import pytest

from coordinator.aggregation_spec import AggregationSpec
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import RoundState
from simulators.scenario import load_scenario
from simulators.virtual_fleet import BadNetwork, BadWorld
from simulators.virtual_run import VirtualRun, linear_task, run_virtual
from simulators.virtual_time import VirtualTime
from wire_protocol.messages import RoundKind


def _run(num_devices=40, num_commits=5, goal=10, evaluate_every=0, schedule=None, **world) -> VirtualRun:
    bundle = linear_task(64, 10, batch_size=8, num_epochs=2, learning_rate=0.5)
    return VirtualRun(
        scenario=load_scenario("digits", num_devices=num_devices, partition="iid", alpha=1.0, seed=0),
        plan=bundle.plan,
        policy=RoundPolicy(report_goal=goal, min_reports=max(1, goal // 2), over_selection=1.5, report_timeout_s=300.0),
        schedule=schedule or RoundSchedule(num_commits=num_commits, evaluate_every=evaluate_every),
        world=BadWorld(**world),
        seed=3,
    )


class RecordingMean(NumpyMeanAggregator):
    """The numpy mean, keeping what it was given so that the result can be computed once more by hand."""

    def __init__(self, weights) -> None:
        super().__init__(weights, AggregationSpec())
        self.rounds = []

    def begin(self, state):
        accumulator = super().begin(state)
        folded: list = []
        self.rounds.append((state, folded))
        plain_fold = accumulator.fold

        def fold(update):
            folded.append(update)
            plain_fold(update)

        accumulator.fold = fold
        return accumulator


def test_a_thousand_devices_with_30_percent_dropout_commit_or_abandon_every_round():
    report = run_virtual(_run(num_devices=1000, num_commits=20, goal=50, dropout=0.3))
    assert report.finished
    assert report.num_commits == 20
    assert all(summary.state in {RoundState.COMMITTED, RoundState.ABANDONED} for summary in report.rounds)
    assert [summary.round_id for summary in report.rounds] == list(range(1, len(report.rounds) + 1))
    assert report.num_vanished > 100
    assert report.test_accuracy > 0.8


def test_a_bad_network_changes_nothing_in_what_is_counted():
    run = _run(dropout=0.2, straggler=0.1, network=BadNetwork(loss=0.1, duplication=0.3))
    aggregator = RecordingMean(run.plan.weights)
    report = run_virtual(run, aggregator=aggregator)
    assert report.finished
    assert report.num_messages_lost > 0
    assert report.rejections.get("duplicate", 0) > 0
    trained = [summary for summary in report.rounds if summary.kind is RoundKind.TRAIN]
    assert [len(folded) for _, folded in aggregator.rounds[: len(trained)]] == [s.num_reports for s in trained]
    committed = [
        (before, folded, after)
        for (before, folded), (after, _), summary in zip(
            aggregator.rounds, aggregator.rounds[1:], trained, strict=False
        )
        if summary.state is RoundState.COMMITTED
    ]
    assert committed
    for before, folded, after in committed:
        total = sum(update.aggregation_weight for update in folded)
        for index, weight in enumerate(before.weights):
            mean = sum(update.model_delta[index] * (update.aggregation_weight / total) for update in folded)
            np.testing.assert_allclose(after.weights[index], weight + mean, atol=1e-6)


def test_no_device_is_counted_twice_in_a_round():
    run = _run(num_devices=12, goal=10, network=BadNetwork(loss=0.2, duplication=0.5))
    aggregator = RecordingMean(run.plan.weights)
    assert run_virtual(run, aggregator=aggregator).finished
    for _, folded in aggregator.rounds:
        updates = [b"".join(tensor.tobytes() for tensor in update.model_delta) for update in folded]
        assert len(set(updates)) == len(updates)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    run = _run(dropout=0.3, network=BadNetwork(loss=0.05))
    first, second = run_virtual(run), run_virtual(run)
    assert first == second
    assert run_virtual(dataclasses.replace(run, seed=4)) != first


def test_a_fleet_that_cannot_reach_the_minimum_abandons_and_the_loop_gives_up():
    schedule = RoundSchedule(num_commits=3, max_abandoned_in_a_row=4)
    report = run_virtual(_run(schedule=schedule, goal=20, dropout=0.9))
    assert not report.finished
    assert report.num_abandoned >= 4
    assert report.rounds[-1].abandon_reason in {"too_few_reports", "too_few_devices"}


def test_evaluation_rounds_report_federated_metrics_and_change_no_weight():
    run = _run(num_commits=4, evaluate_every=2)
    aggregator = RecordingMean(run.plan.weights)
    report = run_virtual(run, aggregator=aggregator)
    evaluations = [summary for summary in report.rounds if summary.kind is RoundKind.EVALUATE]
    assert len(evaluations) == 2
    assert evaluations[-1].metrics["loss"] < evaluations[0].metrics["loss"]
    assert evaluations[-1].metrics["accuracy"] == pytest.approx(report.test_accuracy, abs=0.15)
    assert len(aggregator.rounds) == 4


def test_stragglers_do_not_hold_a_round_beyond_its_deadline():
    report = run_virtual(_run(straggler=0.5, straggler_factor=1e6))
    assert max(summary.duration_s for summary in report.rounds) <= 300.0 + 60.0


def test_virtual_time_runs_what_is_due_in_order_and_never_goes_back():
    time, seen = VirtualTime(), []
    time.after(2.0, lambda: seen.append(("late", time.now)))
    time.after(1.0, lambda: time.after(0.5, lambda: seen.append(("nested", time.now))))
    time.after(1.0, lambda: seen.append(("tie", time.now)))
    time.at(-5.0, lambda: seen.append(("past", time.now)))
    assert not time.run(until=lambda: False, limit_s=10.0)
    assert seen == [("past", 0.0), ("tie", 1.0), ("nested", 1.5), ("late", 2.0)]
