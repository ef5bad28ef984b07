"""A question to a whole fleet on virtual time: real agents, real release desks and ledgers, the real coordinator."""

import dataclasses
import random
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from coordinator.aggregation import ServerState
from coordinator.confidential_task import made_confidential
from coordinator.fleet import FleetCoordinator
from coordinator.privacy_budget import RoundBudget
from coordinator.private_sum import check_private_rounds
from coordinator.query_round import answer_in, query_aggregator, query_bundle
from coordinator.round_ids import RoundIds
from coordinator.round_loop import RoundLoop, RoundSchedule
from coordinator.round_policy import RoundPolicy
from edge_client.linear_trainer import LinearTrainer
from edge_client.privacy.rules import PrivacyRules
from edge_client.training import ArrayExamples, Examples
from simulators.virtual_fleet import BadWorld, VirtualFleet
from simulators.virtual_openers import VirtualConfidentiality
from simulators.virtual_run import VirtualDriver, virtual_openings
from simulators.virtual_time import VirtualTime
from wire_protocol.confidentiality import Confidentiality
from wire_protocol.query import Query
from wire_protocol.query_answer import QueryAnswer

__all__ = ["OpenedBy", "ask_virtual_fleet", "rehearse_query"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedBy:
    """Who opens the sum of a virtual fleet's answers."""

    way: Confidentiality
    """As a plan names them."""
    people: VirtualConfidentiality
    """Their keys."""


class _Forget:
    """A simulation's states need not survive it."""

    def save(self, state: ServerState) -> None:
        del state


def ask_virtual_fleet(
    query: Query,
    examples: Mapping[str, Examples],
    *,
    world: BadWorld,
    seed: int = 0,
    privacy: PrivacyRules | None = None,
    probabilities: Sequence[float] = (0.25, 0.5, 0.75),
    opened_by: OpenedBy | None = None,
) -> QueryAnswer | None:
    """Asks every device once.

    Args:
        query: The question.
        examples: Each device's examples, by device id.
        world: What goes wrong.
        seed: Seeds the world; the noise is the operating system's all the same.
        privacy: The rules of the devices' owners.
        probabilities: Of ``quantiles``: which ones.
        opened_by: Who opens the sum; None shows the coordinator each answer.

    Returns:
        The answer; None if fewer than ``query.min_contributors`` answered.
    """
    # Seeded on purpose: the same run again meets the same world.
    rng = random.Random(seed)  # noqa: S311
    time, bundle = VirtualTime(), query_bundle(query)
    if opened_by is not None:
        bundle = made_confidential(bundle, opened_by.way)
    policy = RoundPolicy(
        report_goal=max(len(examples), query.min_contributors), min_reports=query.min_contributors, over_selection=1.0
    )
    check_private_rounds(bundle.plan, policy)
    fleet = VirtualFleet(
        time=time, population="virtual", examples=examples, trainer=LinearTrainer(), world=world,
        seed=rng.getrandbits(64), privacy=privacy,
        sealers=None if opened_by is None else opened_by.people.trust.sealer,
    )  # fmt: skip
    coordinator = FleetCoordinator(population="virtual", bundle=bundle, policy=policy, rng=rng, token=rng.randbytes)
    driver = VirtualDriver(time, fleet, coordinator)
    aggregator = query_aggregator(bundle.plan)
    loop = RoundLoop(
        fleet=coordinator,
        aggregator=aggregator,
        state=aggregator.initialize(bundle.initial_weights),
        schedule=RoundSchedule(num_commits=1, max_abandoned_in_a_row=1),
        store=_Forget(),
        publish=lambda topic, payload, retain: driver.link.publish(topic, payload, retain=retain),
        round_ids=RoundIds(),
        on_round=lambda _summary, _state: None,
        budget=RoundBudget(query.privacy_spec()),
        openings=virtual_openings(None if opened_by is None else opened_by.people, fleet, coordinator, bundle),
    )
    driver.drive(loop)
    time.run(until=lambda: loop.is_done, limit_s=86400.0)
    return answer_in(loop.state, query, probabilities=probabilities) if loop.num_commits else None


def rehearse_query(query: Query, values: Sequence[float | None]) -> QueryAnswer | None:
    """Asks a fleet whose devices hold these values, in a world in which nothing goes wrong.

    Args:
        query: The question; ``of`` and ``column`` play no part, for the values are given.
        values: One per device; None for a device without one.

    Returns:
        The answer to ``query``; None if there are fewer devices than ``query.min_contributors``.
    """
    asked = msgspec.structs.replace(query, of="input_mean", column=0)
    examples = {f"device-{index}": _one_value(value) for index, value in enumerate(values)}
    answer = ask_virtual_fleet(asked, examples, world=BadWorld())
    return None if answer is None else msgspec.structs.replace(answer, query=query)


def _one_value(value: float | None) -> ArrayExamples:
    """One example whose only input is the value; no example if there is none."""
    x = np.array([] if value is None else [value], np.float32).reshape(-1, 1)
    return ArrayExamples(x=x, y=np.zeros(len(x), np.int32))
