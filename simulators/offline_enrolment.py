"""Enrols the devices of a simulated fleet before any of them runs: the same token, proof and guard, without a broker."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from broker_link.link import Incoming
from coordinator.device_guard import RosterGuard
from coordinator.enrolment_tokens import make_token
from coordinator.roster import Roster
from edge_client.enrolment import enrolment_request
from edge_client.identity import IdentityStore
from edge_client.state_writer import StateWriter
from simulators.errors import FleetFailed
from wire_protocol.enrolment import EnrolmentOutcome, EnrolmentToken
from wire_protocol.messages import Enrol, encode_message, message_kind
from wire_protocol.topics import device_up

__all__ = ["enrol_offline", "num_heard"]

_VALID_S: Final = 3600.0
_NONCE_BYTES: Final = 16


def enrol_offline(roster_file: Path, state_dirs: Mapping[str, Path], *, population: str) -> None:
    """Makes each device's key in its state directory and lets a guard enter it into the roster.

    Args:
        roster_file: Made if it is not there.
        state_dirs: By device id; none of the daemons may be running.
        population: What they join.

    Raises:
        FleetFailed: One was not let in.
        RosterUnusable: The roster cannot be used.
        StorageError: A key cannot be kept.
    """
    roster = Roster(roster_file)
    token, record = make_token(
        population=population, device_id=None, valid_s=_VALID_S, num_uses=len(state_dirs), now=time.time(),
        random_bytes=os.urandom,
    )  # fmt: skip
    roster.add_token(record)
    guard = RosterGuard(roster, population=population, publish=lambda _topic, _payload: None, wall_clock=time.time)
    for device_id, state_dir in state_dirs.items():
        guard.screen(_request(token, device_id, state_dir, population))
    num_enrolled = guard.enrolments[EnrolmentOutcome.ACCEPTED]
    guard.close()
    if num_enrolled != len(state_dirs):
        raise FleetFailed(f"only {num_enrolled} of {len(state_dirs)} devices could be enrolled")


def num_heard(roster_file: Path, *, population: str) -> int:
    """How many devices a coordinator has believed since they were enrolled, as it has written down.

    `enrol_offline` leaves every device at the first message of its first epoch; each start of a daemon begins another.

    Raises:
        RosterUnusable: The roster cannot be used.
    """
    roster = Roster(roster_file)
    try:
        return sum(record.high_water.counter > 1 for record in roster.devices(population))
    finally:
        roster.close()


def _request(token: EnrolmentToken, device_id: str, state_dir: Path, population: str) -> Incoming:
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity = IdentityStore.of_this_process(state_dir, writer=StateWriter()).load_or_make()
    request = enrolment_request(
        token,
        population=population,
        device_id=device_id,
        public_key=identity.public_key,
        nonce=os.urandom(_NONCE_BYTES),
    )
    topic = device_up(population, device_id, message_kind(Enrol))
    return Incoming(topic=topic, payload=identity.seal(topic, encode_message(request)))
