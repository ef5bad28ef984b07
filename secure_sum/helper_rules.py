"""What a helper checks before it answers, and its answer. The rules are the whole of its use.

A helper answers an order only if every contributor is registered, has signed what is said of it, and is in the set
once; if the set is as large as the helper and each contributor demand; and if it has never answered for another set in
this round. The set is written down before the answer is formed. Asked again about the same set, it answers again, also
for other parts: that says nothing new, because the coordinator may know the masks' sum of a set that it may open.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum.contributor_rules import ContributorRules, check_contributors
from secure_sum.errors import BoxNotOpened, MalformedSealed, OpeningRefused, RefusalCause
from secure_sum.helper_shares import read_seeds
from secure_sum.keystream import add_mask
from secure_sum.openings import Contributor, HelperAsk, OpeningOrder, OpeningResult
from secure_sum.sealed_box import BoxRoute, open_box
from secure_sum.sealed_update import vector_payload

__all__ = ["HelperRules", "SetBook", "answer_as_helper"]


class SetBook(Protocol):
    """What an opener has committed itself to, for ever."""

    def claim(self, context: bytes, set_digest: bytes) -> bool:
        """Notes the set of a round, durably, unless one is noted.

        Returns:
            Whether this set is the one that is noted now.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class HelperRules:
    """What one helper goes by.

    Raises:
        ValueError: ``min_contributors`` is below 2: the sum of one is that one.
    """

    helper_id: str
    contributors: ContributorRules
    key: X25519PrivateKey = dataclasses.field(repr=False)
    """Opens its boxes."""


def answer_as_helper(order: OpeningOrder, rules: HelperRules, book: SetBook) -> OpeningResult:
    """Answers an order, or refuses.

    Raises:
        OpeningRefused: A rule forbids it; nothing was answered, and unless the set had been noted before, nothing noted.
    """
    ask = order.ask
    if not isinstance(ask, HelperAsk):
        raise OpeningRefused(RefusalCause.WRONG_CONTEXT, "this opener is a helper")
    if list(ask.parts) != sorted(set(ask.parts)):
        raise OpeningRefused(RefusalCause.MALFORMED, "the parts asked for do not rise")
    check_contributors(order, rules.contributors)
    seeds = [_seeds(order, contributor, rules) for contributor in order.contributors]
    for contributor, known in zip(order.contributors, seeds, strict=True):
        if not set(ask.parts) <= known.keys():
            raise OpeningRefused(
                RefusalCause.BAD_BOX, "the box lacks a part that is asked for", device_id=contributor.device_id
            )
    set_digest = order.set_digest()
    if not book.claim(order.context, set_digest):
        raise OpeningRefused(RefusalCause.SECOND_SET, "another set was answered for in this round")
    masks = np.zeros(order.num_values, np.uint32)
    for known in seeds:
        for part in ask.parts:
            add_mask(masks, known[part])
    return OpeningResult(context=order.context, set_digest=set_digest, data=vector_payload(masks))


def _seeds(order: OpeningOrder, contributor: Contributor, rules: HelperRules) -> Mapping[int, bytes]:
    route = BoxRoute(context=order.context, sender_id=contributor.device_id, opener_id=rules.helper_id)
    try:
        secret = open_box(contributor.box, opener=rules.key, ephemeral_key=contributor.ephemeral_key, route=route)
        return read_seeds(secret)
    except (BoxNotOpened, MalformedSealed) as error:
        raise OpeningRefused(RefusalCause.BAD_BOX, str(error), device_id=contributor.device_id) from error
