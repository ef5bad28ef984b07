"""Sums that three helpers open: the masked vectors are added modulo 2^32, the masks' sums taken off again."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from coordinator.errors import InvalidConfig
from coordinator.sum_mode import Answered, Opened, SealedSet
from secure_sum.errors import OpeningFailed
from secure_sum.helper_shares import MAX_HELPER_BOX_BYTES, divide_parts, subtract_helper_masks
from secure_sum.keystream import Words
from secure_sum.openings import HelperAsk, OpeningOrder
from secure_sum.sealed_update import SealedMode, sealed_update_bytes, vector_of
from wire_protocol.confidentiality import HelperSums
from wire_protocol.plan import TrainingPlan

__all__ = ["HelperMode"]

_WORD_BYTES: Final = 4
_RESULT_ALLOWANCE_BYTES: Final = 256


class HelperMode:
    """A plan's helpers, as its coordinator sees them.

    Raises:
        InvalidConfig: The plan names none.
    """

    sealed_mode = SealedMode.HELPERS

    def __init__(self, plan: TrainingPlan) -> None:
        if plan.confidentiality is msgspec.UNSET or not isinstance(plan.confidentiality, HelperSums):
            raise InvalidConfig("the plan names no helpers")
        self._num_needed = plan.confidentiality.num_needed
        self._num_values = plan.num_update_numbers
        self.opener_ids = tuple(helper.device_id for helper in plan.confidentiality.helpers)
        self.num_boxes = len(self.opener_ids)
        self.max_update_bytes = sealed_update_bytes(
            payload_bytes=_WORD_BYTES * self._num_values, num_boxes=self.num_boxes, box_bytes=MAX_HELPER_BOX_BYTES
        )
        self.max_result_bytes = _WORD_BYTES * self._num_values + _RESULT_ALLOWANCE_BYTES

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
        """Each part of the masks from one helper; first from those that have answered for this set before."""
        division = self._division(answers, silent)
        given = {(answer.opener_id, _parts(answer)) for answer in answers}
        return {
            self.opener_ids[helper]: sealed.order(HelperAsk(parts=parts, directory=sealed.directory), box_index=helper)
            for helper, parts in division.items()
            if (self.opener_ids[helper], parts) not in given
        }

    def opened(self, sealed: SealedSet, answers: Sequence[Answered]) -> Opened | None:
        """Takes the masks off, if each part has been answered."""
        total: Words = sealed.total
        chosen = _exact_cover({_parts(answer): answer for answer in answers}, self._num_needed)
        if chosen is None:
            return None
        masks = {parts: vector_of(answer.result.data, self._num_values) for parts, answer in chosen.items()}
        return Opened(
            total=subtract_helper_masks(total, masks, num_needed=self._num_needed), num_contributors=len(sealed.headers)
        )

    def _division(self, answers: Sequence[Answered], silent: frozenset[str]) -> Mapping[int, tuple[int, ...]]:
        ready = [self.opener_ids.index(answer.opener_id) for answer in answers]
        others = [index for index, name in enumerate(self.opener_ids) if name not in silent]
        return divide_parts(self._num_needed, list(dict.fromkeys([*ready, *others])))


def _parts(answer: Answered) -> tuple[int, ...]:
    if not isinstance(answer.order.ask, HelperAsk):
        raise OpeningFailed("an answer of another mode")
    return answer.order.ask.parts


def _exact_cover(
    answers: Mapping[tuple[int, ...], Answered], num_needed: int
) -> Mapping[tuple[int, ...], Answered] | None:
    """Answers that cover each part once; None if there are none yet. There are at most a handful."""
    wanted = frozenset(part for parts in divide_parts(num_needed, range(3)).values() for part in parts)

    def cover(left: frozenset[int], rest: list[tuple[int, ...]]) -> list[tuple[int, ...]] | None:
        if not left:
            return []
        for at, parts in enumerate(rest):
            if set(parts) <= left:
                found = cover(left - set(parts), rest[at + 1 :])
                if found is not None:
                    return [parts, *found]
        return None

    found = cover(wanted, list(answers))
    return None if found is None else {parts: answers[parts] for parts in found}
