"""A fleet whose updates do not fit into the coordinator's memory at once: it takes longer, and loses nothing."""

import random

import numpy as np
import pytest

from broker_link.link import LinkEvent
from coordinator.aggregation_spec import AggregationSpec
from coordinator.fleet import FleetCoordinator
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.round_ids import RoundIds
from coordinator.round_loop import RoundLoop, RoundSchedule
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import RoundState
from edge_client.linear_trainer import LinearTrainer
from edge_client.training import ArrayExamples
from simulators.virtual_fleet import BadNetwork, BadWorld, VirtualFleet
from simulators.virtual_run import linear_task
from simulators.virtual_time import VirtualTime

BUNDLE = linear_task(8000, 10)
"""Updates of three pieces."""


class _Forget:
    def save(self, state) -> None:
        del state


@pytest.mark.parametrize(("loss", "dropout"), [(0.0, 0.0), (0.1, 0.1)])
def test_uploads_that_must_take_turns_all_arrive_on_a_network_that_loses_and_doubles(loss, dropout):
    time, rng, data = VirtualTime(), random.Random(2), np.random.default_rng(2)
    fleet = VirtualFleet(
        time=time,
        population="v",
        examples={
            f"d{index}": ArrayExamples(
                x=data.normal(size=(4, 8000)).astype(np.float32), y=data.integers(0, 10, 4).astype(np.int32)
            )
            for index in range(10)
        },
        trainer=LinearTrainer(),
        world=BadWorld(dropout=dropout, network=BadNetwork(loss=loss, duplication=loss)),
        seed=2,
    )
    coordinator = FleetCoordinator(
        population="v",
        bundle=BUNDLE,
        policy=RoundPolicy(report_goal=6, min_reports=3),
        rng=rng,
        token=rng.randbytes,
        upload_budget_bytes=1,
    )
    aggregator = NumpyMeanAggregator(BUNDLE.plan.weights, AggregationSpec())
    summaries = []

    def on_event(event: LinkEvent) -> None:
        loop.handle(event, now=time.now)
        assert len(coordinator.uploads._uploads) <= 1

    def every_second() -> None:
        loop.tick(now=time.now)
        time.after(1.0, every_second)

    link = fleet.connect(subscriptions=coordinator.subscriptions, sink=on_event)
    loop = RoundLoop(
        fleet=coordinator,
        aggregator=aggregator,
        state=aggregator.initialize(BUNDLE.initial_weights),
        schedule=RoundSchedule(num_commits=2),
        store=_Forget(),
        publish=lambda topic, payload, retain: link.publish(topic, payload, retain=retain),
        round_ids=RoundIds(),
        on_round=lambda summary, state: summaries.append(summary),
    )
    link.start()
    loop.start(now=0.0)
    every_second()
    fleet.start()
    assert time.run(until=lambda: loop.is_done, limit_s=4000.0)
    assert [summary.state for summary in summaries] == [RoundState.COMMITTED] * 2
    assert all(summary.num_reports >= 6 for summary in summaries)
