"""A device's part in the release channel: hears it, verifies it, and lets each model's agent do what it says.

Lives in the daemon beside the training agent and shares its link: ``filters`` is what the link must follow, ``handle``
takes every event, ``tick`` lets time pass, and ``pop_reports`` gives what to send. The two agents know nothing of each other.
"""

import logging
import math
from collections.abc import Iterable, Sequence

from broker_link.link import Incoming, LinkDown, LinkUp
from edge_client.errors import ReleaseRefused, StorageError
from edge_client.releases.agent import ReleaseAgent
from edge_client.releases.mirror import ReleaseMirror
from edge_client.releases.trusted import TrustedReleases
from wire_protocol.release_report import ReleaseReport
from wire_protocol.topics import release_file_filter, release_piece_prefix

__all__ = ["ReleaseFollower"]

_LOG = logging.getLogger(__name__)
_QUIET_S = 1.0
"""Files come one by one: they are verified together when no more have come for this long."""
_VERIFY_AGAIN_S = 6 * 3600.0


class ReleaseFollower:
    """Follows the release channel for some models.

    Args:
        population: The population's name.
        mirror: Where the channel's files are put.
        trusted: Verifies them.
        agents: One per model.
    """

    def __init__(
        self, *, population: str, mirror: ReleaseMirror, trusted: TrustedReleases, agents: Iterable[ReleaseAgent]
    ) -> None:
        self._files_filter = release_file_filter(population)
        self._files_prefix = self._files_filter.removesuffix("+")
        self._pieces_prefix = release_piece_prefix(population)
        self._mirror = mirror
        self._trusted = trusted
        self._agents = {agent.name: agent for agent in agents}
        self._verify_at = math.inf
        self._is_up = False
        self.problem = ""
        """Why the channel could not be verified last time, for people; empty if it could."""
        self.num_refreshes = 0

    @property
    def agents(self) -> Sequence[ReleaseAgent]:
        """Each model's."""
        return tuple(self._agents.values())

    @property
    def filters(self) -> frozenset[str]:
        """What the link must follow now."""
        return frozenset({self._files_filter}).union(*(agent.topics for agent in self.agents))

    def next_wakeup(self) -> float:
        """When ``tick`` is due, on the clock of ``now``."""
        return min([self._verify_at, *(agent.next_wakeup() for agent in self.agents)])

    def handle(self, event: Incoming | LinkUp | LinkDown, now: float) -> bool:
        """Takes an event of the link.

        Returns:
            Whether it was this channel's alone, so that nobody else need look at it.
        """
        match event:
            case LinkUp():
                self._is_up = True
                for agent in self.agents:
                    agent.reconnect(now)
            case LinkDown():
                self._is_up = False
            case Incoming(topic=topic, payload=payload) if topic.startswith(self._files_prefix):
                self._mirror.take(topic, payload)
                if self._mirror.is_changed:
                    self._verify_at = now + _QUIET_S
                return True
            case Incoming(topic=topic, payload=payload) if topic.startswith(self._pieces_prefix):
                for agent in self.agents:
                    if topic in agent.topics:
                        agent.take_piece(topic, payload, now)
                return True
        return False

    def tick(self, now: float) -> None:
        """Lets time pass."""
        if now >= self._verify_at:
            self._verify(now)
        for agent in self.agents:
            agent.tick(now)

    def pop_reports(self) -> list[ReleaseReport]:
        """What is to be sent now; nothing while the link is down."""
        if not self._is_up:
            return []
        return [report for agent in self.agents if (report := agent.pop_report()) is not None]

    def stop(self) -> None:
        """Ends what runs."""
        for agent in self.agents:
            agent.stop()

    def _verify(self, now: float) -> None:
        self._mirror.is_changed = False
        self._verify_at = now + _VERIFY_AGAIN_S
        self.num_refreshes += 1
        try:
            found = self._trusted.refresh(list(self._agents))
        except (ReleaseRefused, StorageError) as error:
            self.problem = str(error)
            _LOG.error("release_channel_refused reason=%r", str(error))
            return
        if self.problem:
            _LOG.info("release_channel_verified")
        self.problem = ""
        for name, verified in found.items():
            self._agents[name].follow(verified, now)
