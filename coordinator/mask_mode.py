"""Sums under pairwise masks: the masked vectors are added modulo 2^32, and a committee opens what does not cancel.

Whom to ask: two members more than it takes, so that one that lies is found out; the others as soon as those are silent,
refuse, or contradict each other.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from coordinator.errors import InvalidConfig
from coordinator.sum_mode import Answered, Opened, SealedSet
from coordinator.sum_range import check_range
from secure_sum.errors import MalformedSealed, OpeningFailed
from secure_sum.keystream import Words
from secure_sum.mask_graph import COMPLETE_UP_TO, MaskGraph
from secure_sum.mask_opening import MaskOpening
from secure_sum.openings import OpeningOrder
from secure_sum.pairwise_masks import PACKET_HEADER_BYTES
from secure_sum.sealed_box import BOX_OVERHEAD_BYTES
from secure_sum.sealed_update import SealedMode, sealed_update_bytes, vector_of
from secure_sum.shamir import SHARE_BYTES
from wire_protocol.confidentiality import MaskedSums
from wire_protocol.plan import TrainingPlan
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["MaskMode"]

_LOG = logging.getLogger(__name__)
_WORD_BYTES: Final = 4
_RESULT_ALLOWANCE_BYTES: Final = 256
_MAX_CONTRIBUTORS: Final = 10_000
_SPARE_MEMBERS: Final = 2
"""With two answers more than the threshold one lie can be told from the truth."""


@dataclasses.dataclass(kw_only=True, slots=True)
class _Opening:
    """One round's opening, so that it is not begun anew at every answer."""

    sealed: SealedSet
    masks: MaskOpening
    orders: dict[str, OpeningOrder]
    taken: set[str]
    has_disagreed: bool = False
    """Whether the answers so far give no sum that honest devices can have made."""


class MaskMode:
    """A plan's committee, as its coordinator sees it.

    Raises:
        InvalidConfig: The plan has none.
    """

    sealed_mode = SealedMode.MASKS

    def __init__(self, plan: TrainingPlan) -> None:
        masks = plan.confidentiality
        if masks is msgspec.UNSET or not isinstance(masks, MaskedSums) or plan.privacy is None:
            raise InvalidConfig("the plan names no committee")
        self._spec: PrivacySpec = plan.privacy
        self._num_values = plan.num_parameters
        self._num_neighbours = masks.num_neighbours
        self._threshold = masks.threshold
        self._opening: _Opening | None = None
        self.opener_ids = tuple(member.device_id for member in masks.committee)
        self.num_boxes = len(self.opener_ids)
        degree = max(COMPLETE_UP_TO, masks.num_neighbours)
        self.max_update_bytes = sealed_update_bytes(
            payload_bytes=_WORD_BYTES * self._num_values,
            num_boxes=self.num_boxes,
            box_bytes=PACKET_HEADER_BYTES + SHARE_BYTES * (1 + degree) + BOX_OVERHEAD_BYTES,
        )
        # Of a contributor at most half of its neighbours are missing.
        self.max_result_bytes = _MAX_CONTRIBUTORS * SHARE_BYTES * (1 + degree // 2) + _RESULT_ALLOWANCE_BYTES

    def check_payload(self, payload: bytes) -> None:
        """Refuses another length than the model's."""
        vector_of(payload, self._num_values)

    def empty(self) -> Words:
        """Zeros [d]."""
        return np.zeros(self._num_values, np.uint32)

    def add(self, total: Words, payload: bytes) -> Words:
        """Adds a masked vector in place."""
        total += vector_of(payload, self._num_values)
        return total

    def orders(
        self, sealed: SealedSet, answers: Sequence[Answered], silent: frozenset[str]
    ) -> Mapping[str, OpeningOrder]:
        """Asks two members more than it takes; all of them once the answers have disagreed."""
        opening = self._opening_of(sealed)
        if len(opening.masks.contributors) < self._spec.min_contributors:
            return {}
        answered = {answer.opener_id for answer in answers}
        left = [name for name in self.opener_ids if name not in answered and name not in silent]
        if opening.masks.num_answers + len(left) < self._threshold:
            return {}
        if not opening.has_disagreed:
            left = left[: max(0, self._threshold + _SPARE_MEMBERS - opening.masks.num_answers)]
        return {name: self._order(opening, name) for name in left}

    def opened(self, sealed: SealedSet, answers: Sequence[Answered]) -> Opened | None:
        """Takes the masks off, if enough members agree; waits for more if they do not."""
        opening = self._opening_of(sealed)
        news = [answer for answer in answers if answer.opener_id not in opening.taken]
        for answer in news:
            opening.taken.add(answer.opener_id)
            # One that is no answer at all: as if this member had said nothing.
            with contextlib.suppress(MalformedSealed):
                opening.masks.take(self.opener_ids.index(answer.opener_id) + 1, answer.result.data)
        if not opening.masks.is_enough or (opening.has_disagreed and not news):
            return None
        try:
            plain = opening.masks.take_masks_off(self._contributors_total(opening))
            opened = Opened(total=plain, num_contributors=len(opening.masks.contributors))
            check_range(opened, self._spec)
        except (OpeningFailed, MalformedSealed):
            if len(opening.taken) == len(self.opener_ids):
                raise
            opening.has_disagreed = True
            return None
        return opened

    def _order(self, opening: _Opening, member: str) -> OpeningOrder:
        if member not in opening.orders:
            left_out = frozenset(opening.masks.left_out)
            ask = opening.masks.ask(opening.sealed.directory)
            box_index = self.opener_ids.index(member)
            opening.orders[member] = opening.sealed.order(ask, box_index=box_index, without=left_out)
        return opening.orders[member]

    def _opening_of(self, sealed: SealedSet) -> _Opening:
        known = self._opening
        if known is None or (known.sealed.round_id, known.sealed.headers) != (sealed.round_id, sealed.headers):
            arrived = [header.statement.device_id for header in sealed.headers]
            graph = MaskGraph(sealed.roster, context=sealed.context, num_neighbours=self._num_neighbours)
            masks = MaskOpening(graph, arrived, threshold=self._threshold, num_members=self.num_boxes)
            if masks.left_out:
                _LOG.info("masks_left_out round_id=%d devices=%s", sealed.round_id, ",".join(masks.left_out))
            known = self._opening = _Opening(sealed=sealed, masks=masks, orders={}, taken=set())
        return known

    def _contributors_total(self, opening: _Opening) -> Words:
        """The total without those that are left out: their masks are never opened."""
        total: Words = opening.sealed.total
        if opening.masks.left_out:
            total = total.copy()
            for device_id in opening.masks.left_out:
                total -= vector_of(opening.sealed.payload_of(device_id), self._num_values)
        return total
