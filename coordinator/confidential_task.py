"""How a private task becomes a confidential one: the same plan, with whom its sums are opened by, out of a key directory."""

import dataclasses
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from coordinator.errors import InvalidConfig
from coordinator.task_bundle import TaskBundle
from secure_sum.directory_entries import MemberRole
from secure_sum.encryption_keys import decode_encryption_keys
from secure_sum.errors import DirectoryError, SecureSumError
from secure_sum.key_directory import KeyDirectory, decode_directory
from wire_protocol.blobs import split_blob
from wire_protocol.confidentiality import (
    Confidentiality,
    EncryptedSums,
    HelperSums,
    MaskedSums,
    SumOpener,
    committee_threshold,
)

__all__ = [
    "NamedOpener",
    "encrypted_sums",
    "helper_sums",
    "made_confidential",
    "masked_sums",
    "named_opener",
    "who_must_be_believed",
]

_NUM_HELPERS: Final = 3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NamedOpener:
    """An opener as an operator names it; its key is the directory's."""

    opener_id: str
    operator: str
    """Who runs it."""


def named_opener(text: str) -> NamedOpener:
    """``helper-1=university`` as a value; the operator may be left out."""
    opener_id, _, operator = text.partition("=")
    return NamedOpener(opener_id=opener_id.strip(), operator=operator.strip())


def helper_sums(directory: bytes, helpers: Sequence[NamedOpener], *, num_needed: Literal[2, 3]) -> HelperSums:
    """Three helpers as a plan names them.

    Raises:
        InvalidConfig: Not three, one is no helper of the directory, or the directory cannot be used.
    """
    if len(helpers) != _NUM_HELPERS:
        raise InvalidConfig(f"name {_NUM_HELPERS} helpers, each with --helper ID=OPERATOR; there are {len(helpers)}")
    try:
        found = decode_directory(directory)
        first, second, third = (
            _opener(found, helper.opener_id, MemberRole.HELPER, operator=helper.operator) for helper in helpers
        )
        return HelperSums(helpers=(first, second, third), num_needed=num_needed, directory=split_blob(directory).ref)
    except (DirectoryError, ValueError) as error:
        raise InvalidConfig(f"the helpers cannot be named in a plan: {error}") from error


def encrypted_sums(directory: bytes, authority_id: str, keys: bytes) -> EncryptedSums:
    """A key authority as a plan names it, with the keys that it released.

    Args:
        directory: The key directory's bytes.
        authority_id: Its name in it.
        keys: What 'key-authority issue' wrote.

    Raises:
        InvalidConfig: It is no key authority of the directory, the keys are not its own, or a device has none.
    """
    try:
        log, release = decode_directory(directory), decode_encryption_keys(keys)
        authority = log.member(authority_id, MemberRole.KEY_AUTHORITY)
        release.check(population=log.population, authority_id=authority_id, identity_key=authority.identity_key)
        opener = _opener(log, authority_id, MemberRole.KEY_AUTHORITY)
        way = EncryptedSums(key_authority=opener, keys=split_blob(keys).ref, directory=split_blob(directory).ref)
    except (SecureSumError, ValueError) as error:
        raise InvalidConfig(f"the key authority cannot be named in a plan: {error}") from error
    devices = {member.member_id for member in log.members_with(MemberRole.DEVICE)}
    lacking = sorted(devices - set(release.device_ids))
    if lacking:
        raise InvalidConfig(f"the key authority released no keys for {', '.join(lacking)}: have it issue them anew")
    return way


def made_confidential(bundle: TaskBundle, way: Confidentiality) -> TaskBundle:
    """The same task with confidential sums. Another task: it has another id.

    Raises:
        InvalidConfig: It is confidential already, or its sums cannot be; says why.
    """
    if bundle.plan.confidentiality is not msgspec.UNSET:
        raise InvalidConfig("this task's plan is confidential already: who opens its sums is not changed")
    try:
        plan = msgspec.structs.replace(bundle.plan, confidentiality=way)
    except ValueError as error:
        raise InvalidConfig(str(error)) from error
    return dataclasses.replace(bundle, plan=plan)


def masked_sums(
    directory: bytes, committee: Sequence[str], *, threshold: int | None = None, num_neighbours: int = 64
) -> MaskedSums:
    """Masks, and a committee of devices of the directory.

    Args:
        directory: The key directory's bytes.
        committee: Device ids; choose devices on mains power.
        threshold: Members that open; None is the fewest that are safe if a third is corrupt.
        num_neighbours: k.

    Raises:
        InvalidConfig: A member is not in the directory as a device, or the committee is none.
    """
    try:
        log = decode_directory(directory)
        members = tuple(_opener(log, device_id, MemberRole.DEVICE) for device_id in committee)
        return MaskedSums(
            committee=members,
            threshold=committee_threshold(len(members)) if threshold is None else threshold,
            num_neighbours=num_neighbours,
            directory=split_blob(directory).ref,
        )
    except (DirectoryError, ValueError) as error:
        raise InvalidConfig(f"no committee of these devices: {error}") from error


def who_must_be_believed(way: Confidentiality) -> tuple[bool, str]:
    """Whether the plan's word that only sums are seen rests on one operator alone, and what to tell people.

    Returns:
        (whether it is a promise and no proof, a sentence).
    """
    if isinstance(way, MaskedSums):
        return False, (
            f"only sums are seen as long as at most {len(way.committee) // 3} of the {len(way.committee)} devices of the "
            f"committee, of which {way.threshold} open, conspire with the coordinator"
        )
    if isinstance(way, EncryptedSums):
        return False, (
            f"only sums are seen as long as the key authority ({way.key_authority.device_id}) and the coordinator's operator do "
            "not conspire"
        )
    if not isinstance(way, HelperSums):
        return False, ""
    if way.has_one_operator:
        return True, (
            f"{way.num_needed} of the helpers are run by one operator, or nobody says by whom: that only sums are seen is "
            "their promise, not a proof"
        )
    names = ", ".join(sorted({helper.operator for helper in way.helpers}))
    return False, f"only sums are seen as long as no {way.num_needed} of the helpers' operators conspire ({names})"


def _opener(directory: KeyDirectory, member_id: str, role: MemberRole, *, operator: str = "") -> SumOpener:
    return SumOpener(device_id=member_id, box_key=directory.member(member_id, role).sealing_key, operator=operator)
