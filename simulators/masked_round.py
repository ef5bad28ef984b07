"""One round of masks mode in memory: devices, committee and the coordinator's arithmetic, without a network.

For property tests and for the bench; nothing of the cryptography is imitated.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum.committee_rules import CommitteeRules, answer_as_member, least_threshold
from secure_sum.committee_sealing import MaskedRound, seal_to_committee
from secure_sum.context import round_context
from secure_sum.contributor_rules import ContributorRules
from secure_sum.directory_entries import MemberRole, bound_keys
from secure_sum.key_directory import KeyDirectory, add_member, empty_directory
from secure_sum.keystream import Words
from secure_sum.mask_graph import MaskGraph
from secure_sum.mask_opening import MaskOpening
from secure_sum.openings import OpeningOrder, OpeningResult, contributor_of
from secure_sum.sealed_box import RandomBytes
from secure_sum.sealed_update import SealedUpdate, vector_of

__all__ = ["MaskedRoundInMemory", "MemorySetBook", "masked_total"]

_POPULATION = "virtual"
_TASK = "0123456789abcdef"
_PLAN_SHA256 = bytes(32)


class MemorySetBook:
    """A member's sets, in memory."""

    def __init__(self) -> None:
        self._sets: dict[bytes, bytes] = {}

    def claim(self, context: bytes, set_digest: bytes) -> bool:
        """Whether this set is the one of the round."""
        return self._sets.setdefault(context, set_digest) == set_digest


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Party:
    identity: Ed25519PrivateKey
    sealing: X25519PrivateKey


class MaskedRoundInMemory:
    """A round of ``num_devices`` devices whose committee is devices of the same population.

    Args:
        num_devices: Devices on the roster.
        num_members: m; members of the committee, which are not on the roster.
        num_neighbours: k.
        min_contributors: What every party demands.
        round_id: The round.
        random_bytes: Where secrets come from; keys too.
    """

    def __init__(
        self,
        *,
        num_devices: int,
        num_members: int = 4,
        num_neighbours: int = 64,
        min_contributors: int = 2,
        round_id: int = 1,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        self.roster = tuple(f"d{index:05d}" for index in range(num_devices))
        self.committee = tuple(f"m{index:03d}" for index in range(num_members))
        self.num_neighbours = num_neighbours
        self.threshold = least_threshold(num_members)
        self.min_contributors = min_contributors
        self.round_id = round_id
        self._random_bytes = random_bytes
        self._parties = {
            name: _Party(
                identity=Ed25519PrivateKey.from_private_bytes(random_bytes(32)),
                sealing=X25519PrivateKey.from_private_bytes(random_bytes(32)),
            )
            for name in (*self.roster, *self.committee)
        }
        self.sealing_keys = {
            name: party.sealing.public_key().public_bytes_raw() for name, party in self._parties.items()
        }
        identities = {name: party.identity.public_key().public_bytes_raw() for name, party in self._parties.items()}
        self.rules = ContributorRules(
            population=_POPULATION, registered=identities, min_contributors=max(2, min_contributors)
        )
        self.books = {member: MemorySetBook() for member in self.committee}

    @property
    def context(self) -> bytes:
        """The round's 32 bytes."""
        return round_context(population=_POPULATION, task_id=_TASK, plan_sha256=_PLAN_SHA256, round_id=self.round_id)

    @property
    def graph(self) -> MaskGraph:
        """Who shares masks with whom."""
        return MaskGraph(self.roster, context=self.context, num_neighbours=self.num_neighbours)

    def directory(self) -> KeyDirectory:
        """The key directory of all devices and members."""
        authority = Ed25519PrivateKey.from_private_bytes(self._random_bytes(32))
        directory = empty_directory(_POPULATION, authority.public_key().public_bytes_raw())
        for name, party in self._parties.items():
            keys = bound_keys(
                _POPULATION,
                name,
                MemberRole.DEVICE,
                identity_key=party.identity.public_key().public_bytes_raw(),
                sealing_key=party.sealing.public_key().public_bytes_raw(),
                sign=party.identity.sign,
            )
            directory = add_member(directory, keys, made_at=0, authority=authority)
        return directory

    def sealing_key(self, name: str) -> X25519PrivateKey:
        """The private sealing key of a device or member."""
        return self._parties[name].sealing

    def as_seen_by(self, device_id: str) -> MaskedRound:
        """The round as a device knows it."""
        return MaskedRound(
            context=self.context,
            device_id=device_id,
            min_contributors=self.min_contributors,
            roster=self.roster,
            num_neighbours=self.num_neighbours,
            device_keys=self.sealing_keys,
            committee=self.committee,
            threshold=self.threshold,
        )

    def seal(self, device_id: str, values: Words, *, round_: MaskedRound | None = None) -> SealedUpdate:
        """A device's sealed update; for another round than ``as_seen_by`` says, if one is given."""
        party = self._parties[device_id]
        return seal_to_committee(
            values,
            round_ or self.as_seen_by(device_id),
            own_key=party.sealing,
            sign=party.identity.sign,
            random_bytes=self._random_bytes,
        )

    def opening(self, arrived: Collection[str]) -> MaskOpening:
        """The coordinator's opening when these have arrived."""
        return MaskOpening(self.graph, arrived, threshold=self.threshold, num_members=len(self.committee))

    def order(self, opening: MaskOpening, sealed: Mapping[str, SealedUpdate], member: str) -> OpeningOrder:
        """What the coordinator asks a member."""
        box_index = self.committee.index(member)
        return OpeningOrder(
            population=_POPULATION,
            task_id=_TASK,
            plan_sha256=_PLAN_SHA256,
            round_id=self.round_id,
            num_values=next(iter(sealed.values())).num_values,
            contributors=tuple(
                contributor_of(sealed[name].header(name), box_index=box_index) for name in opening.contributors
            ),
            ask=opening.ask(),
        )

    def ask(self, order: OpeningOrder, member: str) -> OpeningResult:
        """A member's answer.

        Raises:
            OpeningRefused: A rule forbids it.
        """
        rules = CommitteeRules(member_id=member, contributors=self.rules, key=self._parties[member].sealing)
        return answer_as_member(order, rules, self.books[member])

    def plain_sum(self, sealed: Mapping[str, SealedUpdate], online: Sequence[str] | None = None) -> Words:
        """The whole coordinator: total, opening, masks off.

        Args:
            sealed: What has arrived, by device.
            online: Members that answer; None is all.

        Raises:
            OpeningRefused: A member refuses.
            OpeningFailed: Too few answer.
        """
        opening = self.opening(sealed.keys())
        total = masked_total(sealed, opening.contributors)
        for member in self.committee if online is None else online:
            answer = self.ask(self.order(opening, sealed, member), member)
            opening.take(self.committee.index(member) + 1, answer.data)
        return opening.take_masks_off(total)


def masked_total(sealed: Mapping[str, SealedUpdate], contributors: Sequence[str]) -> Words:
    """uint32 [d]: the sum of these devices' masked vectors."""
    first, *others = (vector_of(sealed[name].payload, sealed[name].num_values) for name in contributors)
    total = first.copy()
    for vector in others:
        total += vector
    return total
