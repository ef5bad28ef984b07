"""What a daemon has for confidential sums: the sealer of its own updates, and its place in a committee. Decides nothing."""

import logging
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

from broker_link.link import LinkEvent
from edge_client.channel import DeviceChannel
from edge_client.config import EdgeConfig
from edge_client.eligibility.machine import Machine
from edge_client.eligibility.power import PowerSource, probe_power
from edge_client.errors import StorageError
from edge_client.events import Publish, Tick
from edge_client.identity import DeviceIdentity
from edge_client.opener.committee_desk import CommitteeDesk
from edge_client.opener.opener_session import OpenerSession
from edge_client.opener.set_book import SqliteSetBook
from edge_client.pinned_directory import PinnedDirectory
from edge_client.privacy.sealing import PlanSealer
from edge_client.sealing_key import SealingKeyStore
from edge_client.state_writer import StateWriter

__all__ = ["BOOK_FILE", "ConfidentialSums"]

_LOG = logging.getLogger(__name__)
BOOK_FILE: Final = "committee_sets.sqlite"
"""The committee member's book of sets, in the state directory."""


class ConfidentialSums:
    """Sealer and opener of one daemon; neither, if the device has no identity or no sealing key.

    Args:
        config: The device's configuration.
        channel: Its topics.
        identity: Its identity, if it has one.
        writer: Writes in the state directory.
        machine: What its power source is looked up on.

    Raises:
        IdentityError: The sealing key cannot be used.
    """

    def __init__(
        self,
        config: EdgeConfig,
        *,
        channel: DeviceChannel,
        identity: DeviceIdentity | None,
        writer: StateWriter,
        machine: Machine,
    ) -> None:
        self.sealer: PlanSealer | None = None
        self._opener: OpenerSession | None = None
        state_dir = Path(config.device.state_dir)
        key = SealingKeyStore(state_dir, writer=writer).load()
        if identity is None or key is None:
            if config.committee.serve:
                _LOG.error("committee_not_served: this device is not enrolled, or was never put into a key directory")
            return
        pinned = PinnedDirectory(
            state_dir,
            writer=writer,
            population=config.device.population,
            authority_fingerprint=config.privacy.authority,
        )
        self.sealer = PlanSealer(
            population=channel.population,
            device_id=channel.device_id,
            identity_key=identity.public_key,
            sealing_key=key,
            sign=identity.sign_statement,
            accept_directory=pinned.accept,
            random_bytes=os.urandom,
        )
        if not config.committee.serve:
            return
        try:
            book = SqliteSetBook(state_dir / BOOK_FILE)
        except StorageError as error:
            # It trains all the same: what it must not do is to open a second set.
            _LOG.error("committee_not_served: %s", error)
            return
        desk = CommitteeDesk(
            population=channel.population,
            device_id=channel.device_id,
            key=key,
            book=book,
            accept_directory=pinned.accept,
            min_contributors=config.privacy.min_contributors,
            is_on_mains=_mains_check(machine),
        )
        self._opener = OpenerSession(channel, answer=desk, uniform=random.SystemRandom().uniform)

    def next_wakeup(self) -> float:
        """When ``tick`` is due, on the clock of ``now``: infinity is never."""
        return math.inf if self._opener is None else self._opener.next_wakeup()

    def handle(self, event: LinkEvent, now: float) -> list[Publish]:
        """Takes what a committee member must hear, at monotonic time ``now``."""
        return [] if self._opener is None else self._opener.handle(event, now)

    def tick(self, now: float) -> list[Publish]:
        """Lets time pass."""
        return [] if self._opener is None or now < self._opener.next_wakeup() else self._opener.handle(Tick(), now)


def _mains_check(machine: Machine) -> Callable[[], bool]:
    # The owner has said that this device serves: only a reading that says "battery" stands against it.
    return lambda: probe_power(machine) is not PowerSource.BATTERY
