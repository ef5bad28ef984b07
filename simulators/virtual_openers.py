"""Openers on virtual time: the real session and the real rules behind a link of the in-memory broker."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import msgspec

from broker_link.link import LinkEvent
from broker_link.memory_broker import MemoryLink
from edge_client.channel import DeviceChannel
from edge_client.events import Publish, Tick
from edge_client.opener.committee_desk import CommitteeDesk
from edge_client.opener.opener_session import AnswerOrder, OpenerSession
from edge_client.opener.set_book import SqliteSetBook
from secure_sum.helper_rules import answer_as_helper
from simulators.virtual_fleet import VirtualFleet
from simulators.virtual_key_authority import KEY_AUTHORITY, VirtualKeyAuthority
from simulators.virtual_trust import VirtualTrust
from wire_protocol.confidentiality import MaskedSums
from wire_protocol.plan import TrainingPlan
from wire_protocol.topics import device_down_filter

__all__ = ["VirtualConfidentiality", "VirtualOpener", "virtual_committee", "virtual_helpers", "virtual_openers"]


class VirtualOpener:
    """One opener: session, link, timer. What it answers by, and so its set book, survives a crash."""

    def __init__(self, fleet: VirtualFleet, *, population: str, opener_id: str, answer: AnswerOrder) -> None:
        self._fleet = fleet
        self._timer_at = math.inf
        channel = DeviceChannel(population=population, device_id=opener_id, client_version="virtual")
        self._make_session = functools.partial(OpenerSession, channel, answer=answer, uniform=fleet.rng.uniform)
        self.session = self._make_session()
        self.link: MemoryLink = fleet.broker.link(
            subscriptions=[device_down_filter(population, opener_id)], sink=self._on_event
        )

    def start(self) -> None:
        """Switches it on."""
        self.link.start()

    def crash(self, *, back_after_s: float) -> None:
        """It loses everything but its set book, and is there again after a while."""
        self.link.lose("crashed")
        self.session = self._make_session()
        if back_after_s < math.inf:
            self._fleet.time.after(back_after_s, self.link.start)

    def _on_event(self, event: LinkEvent) -> None:
        self._send(self.session.handle(event, self._fleet.time.now))

    def _send(self, publishes: Sequence[Publish]) -> None:
        for publish in publishes:
            self.link.publish(publish.topic, publish.payload, retain=publish.retain)
        wakeup = self.session.next_wakeup()
        if wakeup < self._timer_at:
            self._timer_at = wakeup
            self._fleet.time.at(wakeup, self._on_timer)

    def _on_timer(self) -> None:
        if self._fleet.time.now < self._timer_at:
            return
        self._timer_at = math.inf
        self._send(self.session.handle(Tick(), self._fleet.time.now))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VirtualConfidentiality:
    """A virtual population with openers."""

    trust: VirtualTrust
    min_contributors: int
    """What each opener demands."""
    key_authority: VirtualKeyAuthority | None = None
    """Of encrypted sums; without one, helpers open."""


def virtual_committee(
    fleet: VirtualFleet,
    confidentiality: VirtualConfidentiality,
    committee: Sequence[str],
    *,
    books: Mapping[str, SqliteSetBook] | None = None,
) -> dict[str, VirtualOpener]:
    """The members of a committee, each a device that trains as well; not switched on yet. Arguments as above."""
    trust = confidentiality.trust
    members = {}
    for name in committee:
        desk = CommitteeDesk(
            population=trust.population,
            device_id=name,
            key=trust.members[name].sealing,
            book=SqliteSetBook(None) if books is None else books[name],
            accept_directory=trust.accept_directory,
            min_contributors=confidentiality.min_contributors,
        )
        members[name] = VirtualOpener(fleet, population=trust.population, opener_id=name, answer=desk)
    return members


def virtual_openers(
    fleet: VirtualFleet, confidentiality: VirtualConfidentiality, plan: TrainingPlan
) -> dict[str, VirtualOpener]:
    """Whoever opens the sums of this plan, not switched on yet."""
    if plan.confidentiality is not msgspec.UNSET and isinstance(plan.confidentiality, MaskedSums):
        committee = [member.device_id for member in plan.confidentiality.committee]
        return virtual_committee(fleet, confidentiality, committee)
    authority = confidentiality.key_authority
    if authority is None:
        return virtual_helpers(fleet, confidentiality)
    answer = authority.desk(min_contributors=confidentiality.min_contributors, book=authority.new_book())
    population = confidentiality.trust.population
    return {KEY_AUTHORITY: VirtualOpener(fleet, population=population, opener_id=KEY_AUTHORITY, answer=answer)}


def virtual_helpers(
    fleet: VirtualFleet, confidentiality: VirtualConfidentiality, *, books: Mapping[str, SqliteSetBook] | None = None
) -> dict[str, VirtualOpener]:
    """The three helpers of a population, not switched on yet.

    Args:
        fleet: The world they live in.
        confidentiality: Their keys and rules.
        books: Their set books; new ones in memory if None.
    """
    trust = confidentiality.trust
    helpers = {}
    for opener in trust.helper_sums().helpers:
        rules = trust.helper_rules(opener.device_id, min_contributors=confidentiality.min_contributors)
        book = SqliteSetBook(None) if books is None else books[opener.device_id]
        answer = functools.partial(answer_as_helper, rules=rules, book=book)
        helpers[opener.device_id] = VirtualOpener(
            fleet, population=trust.population, opener_id=opener.device_id, answer=answer
        )
    return helpers
