"""How a private task becomes a confidential one: the same plan, with whom its sums are opened by, out of a key directory."""

import dataclasses
from collections.abc import Sequence

import msgspec

from coordinator.errors import InvalidConfig
from coordinator.task_bundle import TaskBundle
from secure_sum.directory_entries import MemberRole
from secure_sum.errors import DirectoryError
from secure_sum.key_directory import KeyDirectory, decode_directory
from wire_protocol.blobs import split_blob
from wire_protocol.confidentiality import Confidentiality, MaskedSums, SumOpener, committee_threshold

__all__ = ["made_confidential", "masked_sums"]


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
        members = tuple(_opener(log, device_id) for device_id in committee)
        return MaskedSums(
            committee=members,
            threshold=committee_threshold(len(members)) if threshold is None else threshold,
            num_neighbours=num_neighbours,
            directory=split_blob(directory).ref,
        )
    except (DirectoryError, ValueError) as error:
        raise InvalidConfig(f"no committee of these devices: {error}") from error


def _opener(directory: KeyDirectory, device_id: str) -> SumOpener:
    return SumOpener(device_id=device_id, box_key=directory.member(device_id, MemberRole.DEVICE).sealing_key)
