"""What every opener, whatever the mode, asks of a set of contributors."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Final

from secure_sum.errors import OpeningRefused, RefusalCause
from secure_sum.openings import Contributor, OpeningOrder, is_rising
from secure_sum.sealed_update import DIGEST_BYTES, is_signed_by

__all__ = ["ContributorRules", "check_contributors"]

_FEWEST: Final = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContributorRules:
    """Whom an opener knows, and how many it wants.

    Raises:
        ValueError: ``min_contributors`` is below 2: the sum of one is that one.
    """

    population: str
    registered: Mapping[str, bytes]
    """Device id -> public Ed25519 key, from the key directory; not from the coordinator."""
    min_contributors: int

    def __post_init__(self) -> None:
        if self.min_contributors < _FEWEST:
            raise ValueError(f"min_contributors must be at least {_FEWEST}, not {self.min_contributors}")


def check_contributors(order: OpeningOrder, rules: ContributorRules) -> None:
    """Checks population, number, names, signatures and boxes' digests; opens nothing.

    Raises:
        OpeningRefused: One of them is not in order; says which device, if it is about one.
    """
    if order.population != rules.population:
        raise OpeningRefused(RefusalCause.WRONG_CONTEXT, f"this opener serves {rules.population!r}")
    names = [contributor.device_id for contributor in order.contributors]
    if len(set(names)) != len(names):
        raise OpeningRefused(RefusalCause.DUPLICATE_DEVICE, "a device is in the set more than once")
    if not is_rising(names):
        raise OpeningRefused(RefusalCause.MALFORMED, "the contributors are not in the order of their names")
    demanded = max((contributor.min_contributors for contributor in order.contributors), default=0)
    if len(names) < max(rules.min_contributors, demanded):
        raise OpeningRefused(
            RefusalCause.TOO_FEW, f"{len(names)} contributors; wanted are {max(rules.min_contributors, demanded)}"
        )
    for contributor in order.contributors:
        _check(order, contributor, rules)


def _check(order: OpeningOrder, contributor: Contributor, rules: ContributorRules) -> None:
    device_id = contributor.device_id
    key = rules.registered.get(device_id)
    if key is None:
        raise OpeningRefused(RefusalCause.UNREGISTERED, f"{device_id} is not registered", device_id=device_id)
    digests = contributor.box_digests
    if contributor.box and hashlib.sha256(contributor.box).digest() not in {
        digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)
    }:
        raise OpeningRefused(RefusalCause.BAD_BOX, f"{device_id} has signed other boxes", device_id=device_id)
    # The signature covers round, mode, length and the device's demand: a wrong one of these is a bad signature.
    if not is_signed_by(key, order.statement(contributor), contributor.signature):
        raise OpeningRefused(
            RefusalCause.BAD_SIGNATURE, f"{device_id} has not signed this for this round", device_id=device_id
        )
