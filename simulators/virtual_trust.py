"""The keys of a virtual population: identities, sealing keys, and the key directory that an authority signs over them."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.privacy.sealing import PlanSealer
from secure_sum.contributor_rules import ContributorRules
from secure_sum.directory_entries import MemberKeys, MemberRole, bound_keys
from secure_sum.directory_pin import check_first_contact
from secure_sum.errors import OtherAuthority
from secure_sum.helper_rules import HelperRules
from secure_sum.key_directory import KeyDirectory, add_member, decode_directory, empty_directory, encode_directory
from wire_protocol.blobs import split_blob
from wire_protocol.confidentiality import HelperSums, MaskedSums, SumOpener, committee_threshold

__all__ = ["VirtualMember", "VirtualTrust"]

_HELPERS: Final = ("helper-1", "helper-2", "helper-3")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VirtualMember:
    """The private keys of one member."""

    identity: Ed25519PrivateKey
    sealing: X25519PrivateKey

    @property
    def identity_key(self) -> bytes:
        """Public Ed25519 key."""
        return self.identity.public_key().public_bytes_raw()

    @property
    def sealing_key(self) -> bytes:
        """Public X25519 key."""
        return self.sealing.public_key().public_bytes_raw()

    def entry(self, population: str, member_id: str, role: MemberRole) -> MemberKeys:
        """What the authority enters."""
        return bound_keys(
            population, member_id, role, identity_key=self.identity_key, sealing_key=self.sealing_key,
            sign=self.identity.sign,
        )  # fmt: skip


class VirtualTrust:
    """Everybody's keys, and the directory.

    Args:
        population: Its name.
        device_ids: The devices.
        others: Further members, by role.
    """

    def __init__(
        self,
        population: str,
        device_ids: Iterable[str],
        *,
        others: Mapping[MemberRole, Iterable[str]] | None = None,
    ) -> None:
        roles = dict.fromkeys(device_ids, MemberRole.DEVICE)
        for role, names in ({MemberRole.HELPER: _HELPERS} if others is None else others).items():
            roles |= dict.fromkeys(names, role)
        self.population = population
        self.members = {
            name: VirtualMember(identity=Ed25519PrivateKey.generate(), sealing=X25519PrivateKey.generate())
            for name in roles
        }
        self._authority = Ed25519PrivateKey.generate()
        directory = empty_directory(population, self._authority.public_key().public_bytes_raw())
        for name, role in roles.items():
            entry = self.members[name].entry(population, name, role)
            directory = add_member(directory, entry, made_at=0, authority=self._authority)
        self.directory = directory
        self.directory_bytes = encode_directory(directory)

    def helper_sums(self, *, num_needed: Literal[2, 3] = 2) -> HelperSums:
        """A plan's confidentiality: three helpers, each of another operator."""
        first, second, third = (
            SumOpener(device_id=name, box_key=self.members[name].sealing_key, operator=f"operator of {name}")
            for name in _HELPERS
        )
        return HelperSums(
            helpers=(first, second, third), num_needed=num_needed, directory=split_blob(self.directory_bytes).ref
        )

    def masked_sums(self, committee: Sequence[str], *, num_neighbours: int = 64) -> MaskedSums:
        """A plan's confidentiality: masks, and a committee of these devices."""
        return MaskedSums(
            committee=tuple(
                SumOpener(device_id=name, box_key=self.members[name].sealing_key, operator=f"owner of {name}")
                for name in committee
            ),
            threshold=committee_threshold(len(committee)),
            num_neighbours=num_neighbours,
            directory=split_blob(self.directory_bytes).ref,
        )

    def contributor_rules(self, *, min_contributors: int) -> ContributorRules:
        """Whom an opener of this population knows, and how many it wants."""
        registered = {name: keys.identity_key for name, keys in self.directory.members.items()}
        return ContributorRules(population=self.population, registered=registered, min_contributors=min_contributors)

    def helper_rules(self, helper_id: str, *, min_contributors: int) -> HelperRules:
        """What a helper goes by."""
        return HelperRules(
            helper_id=helper_id,
            contributors=self.contributor_rules(min_contributors=min_contributors),
            key=self.members[helper_id].sealing,
        )

    def accept_directory(self, data: bytes) -> KeyDirectory:
        """Believes this authority's directory alone.

        Raises:
            DirectoryError: It is another one, or damaged.
        """
        if data == self.directory_bytes:
            return self.directory
        directory = decode_directory(data)
        check_first_contact(directory, population=self.population, fingerprint="")
        if directory.authority_key != self.directory.authority_key:
            raise OtherAuthority("the key directory is signed by another authority")
        return directory

    def sealer(self, device_id: str) -> PlanSealer:
        """What a device seals with."""
        member = self.members[device_id]
        return PlanSealer(
            population=self.population,
            device_id=device_id,
            identity_key=member.identity_key,
            sealing_key=member.sealing,
            sign=member.identity.sign,
            accept_directory=self.accept_directory,
            random_bytes=os.urandom,
        )
