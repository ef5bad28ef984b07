"""Who shares a mask with whom: everybody with everybody in a small round, a random ring's neighbours in a large one.

Bell, Bonawitz, Gascon, Lepoint, Raykova 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
section 3: with k neighbours per device instead of all, masks cost a device k keystreams instead of n, and the sum stays
hidden as long as the graph of the honest devices that arrived is connected. On a ring each device has the k/2 devices
on either side; the order on the ring is by a hash of the round's context, the whole roster and the device, so that every
party computes the same graph, and nobody can choose who stands beside whom but by choosing another roster.

| k, at least k/2 of which must arrive | all of that half corrupt, at 20 % / 33 % corrupt devices |
|---|---|
| 30 | 2e-4 / 4e-2 |
| 64 | 8e-8 / 4e-3 |
| 100 | 2e-11 / 4e-4 |
"""

import hashlib
import itertools
from collections.abc import Collection, Sequence
from typing import Final

__all__ = ["COMPLETE_UP_TO", "MaskGraph", "roster_digest", "secrets_to_open"]

COMPLETE_UP_TO: Final = 64
"""Up to this many devices each shares a mask with each other one, whatever ``num_neighbours`` says."""
_ROSTER_DOMAIN: Final = b"flockwise mask roster 1\0"
_RING_DOMAIN: Final = b"flockwise mask ring 1\0"


def roster_digest(device_ids: Sequence[str]) -> bytes:
    """SHA-256 that names a roster; the order of the ids belongs to it."""
    digest = hashlib.sha256(_ROSTER_DOMAIN)
    for device_id in device_ids:
        name = device_id.encode()
        digest.update(len(name).to_bytes(2, "big") + name)
    return digest.digest()


class MaskGraph:
    """The neighbours of each device of a round.

    Args:
        device_ids: The roster, in ascending order.
        context: 32 bytes that name the round.
        num_neighbours: k, even: neighbours of each device in a round of more than 64 devices.

    Raises:
        ValueError: The roster is empty, not ascending or names a device twice, or k is odd or not positive.
    """

    __slots__ = ("_places", "_reach", "_ring", "digest")

    def __init__(self, device_ids: Sequence[str], *, context: bytes, num_neighbours: int) -> None:
        if not device_ids or any(one >= other for one, other in itertools.pairwise(device_ids)):
            raise ValueError("a roster is at least one device id, in ascending order, none twice")
        if num_neighbours < 2 or num_neighbours % 2:  # noqa: PLR2004 - a neighbour on either side
            raise ValueError(f"num_neighbours must be even and positive, not {num_neighbours}")
        self.digest = roster_digest(device_ids)
        """Names the roster."""
        prefix = _RING_DOMAIN + context + self.digest
        self._ring = sorted(device_ids, key=lambda name: hashlib.sha256(prefix + name.encode()).digest())
        self._places = {name: place for place, name in enumerate(self._ring)}
        num_others = len(self._ring) - 1
        is_complete = len(self._ring) <= COMPLETE_UP_TO or num_neighbours >= num_others
        self._reach = num_others if is_complete else num_neighbours // 2

    @property
    def device_ids(self) -> tuple[str, ...]:
        """The roster, ascending."""
        return tuple(sorted(self._ring))

    @property
    def degree(self) -> int:
        """Neighbours of each device."""
        num_others = len(self._ring) - 1
        return min(num_others, 2 * self._reach)

    @property
    def least_arrived(self) -> int:
        """Neighbours of a device that must have arrived for its own masks to be opened: half of them, rounded up."""
        return (self.degree + 1) // 2

    def __contains__(self, device_id: object) -> bool:
        return device_id in self._places

    def neighbours(self, device_id: str) -> tuple[str, ...]:
        """The devices that share a mask with this one, ascending.

        Raises:
            KeyError: It is not on the roster.
        """
        place, size = self._places[device_id], len(self._ring)
        if self.degree == size - 1:
            return tuple(sorted(name for name in self._ring if name != device_id))
        steps = range(1, self._reach + 1)
        return tuple(sorted(self._ring[(place + step * side) % size] for step in steps for side in (-1, 1)))

    def well_connected(self, arrived: Collection[str]) -> frozenset[str]:
        """The devices that count as arrived: the largest set in which each has ``least_arrived`` neighbours.

        A device with fewer would be hidden among too few; it is left out, and that may cost its neighbours theirs.

        Args:
            arrived: Devices of the roster whose sealed update is there.

        Raises:
            KeyError: One of them is not on the roster.
        """
        alive = set(arrived)
        neighbours = {device_id: self.neighbours(device_id) for device_id in alive}
        while True:
            lonely = {
                device_id
                for device_id in alive
                if sum(other in alive for other in neighbours[device_id]) < self.least_arrived
            }
            if not lonely:
                return frozenset(alive)
            alive -= lonely


def secrets_to_open(graph: MaskGraph, contributors: Collection[str]) -> tuple[tuple[str, str | None], ...]:
    """What must be opened so that the masks of these contributors can be taken off their sum, in the order of an answer.

    Of each contributor its own mask, and those that it shares with devices that did not contribute; both sides of no
    device, and nothing of those that did not contribute.

    Args:
        graph: The round's.
        contributors: The devices in the sum.

    Returns:
        (contributor, None) for its own mask, (contributor, neighbour) for a shared one.
    """
    present = frozenset(contributors)
    wanted: list[tuple[str, str | None]] = []
    for device_id in sorted(present):
        wanted.append((device_id, None))
        wanted.extend((device_id, other) for other in graph.neighbours(device_id) if other not in present)
    return tuple(wanted)
