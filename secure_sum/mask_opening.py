"""Taking the masks off a sum, with the shares that the committee has opened. The coordinator's part.

Who counts as a contributor is decided once, when no more reports are taken (`MaskOpening.contributors`): a device whose
neighbours did not come is left out, its sealed update taken out of the total again, and its masks are never opened. The
same arrivals give the same contributors: after a restart the committee is asked for the same set.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import Final

from secure_sum.errors import MalformedSealed, SharesDisagree
from secure_sum.keystream import Words
from secure_sum.mask_graph import MaskGraph, secrets_to_open
from secure_sum.openings import MaskAsk
from secure_sum.pairwise_masks import take_mask_off
from secure_sum.shamir import PRIME, SHARE_BYTES, ShareWeights, decode_share

__all__ = ["MaskOpening"]

_MIX_DOMAIN: Final = b"flockwise share mix 1\0"


class MaskOpening:
    """One round's opening.

    Args:
        graph: The round's.
        arrived: Devices whose sealed update is in the total.
        threshold: t: answers that are enough.
        num_members: m: members of the committee.
    """

    def __init__(self, graph: MaskGraph, arrived: Collection[str], *, threshold: int, num_members: int) -> None:
        self._threshold = threshold
        self._num_members = num_members
        self.contributors = tuple(sorted(graph.well_connected(arrived)))
        """The set to be opened, ascending."""
        self.left_out = tuple(sorted(set(arrived) - set(self.contributors)))
        """Devices whose sealed update must be taken out of the total again."""
        self._roster_sha256 = graph.digest
        self.missing = tuple(name for name in graph.device_ids if name not in set(self.contributors))
        """The rest of the roster, ascending."""
        self._wanted = secrets_to_open(graph, self.contributors)
        self._answers: dict[int, tuple[int, ...]] = {}

    @property
    def answer_bytes(self) -> int:
        """Length of every member's answer."""
        return SHARE_BYTES * len(self._wanted)

    @property
    def num_answers(self) -> int:
        """Members that have answered."""
        return len(self._answers)

    @property
    def is_enough(self) -> bool:
        """Whether the masks can be taken off."""
        return len(self._answers) >= self._threshold

    def ask(self, directory: bytes = b"") -> MaskAsk:
        """What every member is asked, beside the contributors themselves.

        Args:
            directory: The key directory's bytes.
        """
        return MaskAsk(roster_sha256=self._roster_sha256, missing=self.missing, directory=directory)

    def take(self, number: int, answer: bytes) -> None:
        """Takes a member's answer; a second one of the same member is ignored.

        Args:
            number: Which member, from 1.
            answer: Its shares.

        Raises:
            MalformedSealed: Not the answer to this opening.
        """
        if not 1 <= number <= self._num_members:
            raise MalformedSealed(f"there is no committee member number {number}")
        if len(answer) != self.answer_bytes:
            raise MalformedSealed(f"an answer of {len(answer)} bytes; this opening's have {self.answer_bytes}")
        shares = tuple(decode_share(answer[at : at + SHARE_BYTES]) for at in range(0, len(answer), SHARE_BYTES))
        self._answers.setdefault(number, shares)

    def take_masks_off(self, total: Words) -> Words:
        """The plain sum of the contributors' updates.

        Args:
            total: uint32 [d]: the sum of the contributors' sealed updates, those ``left_out`` taken out of it.

        Returns:
            uint32 [d].

        Raises:
            SharesDisagree: Members contradict each other, and too few have answered to say who is wrong: wait for more.
            MalformedSealed: A secret cannot be put together.
        """
        weights = ShareWeights(self._agreeing()[: self._threshold])
        answers = [self._answers[number] for number in weights.numbers]
        plain = total.copy()
        for place, (device_id, peer) in enumerate(self._wanted):
            seed = weights.secret([shares[place] for shares in answers])
            take_mask_off(plain, device_id=device_id, peer=peer, seed=seed)
        return plain

    def _agreeing(self) -> tuple[int, ...]:
        """Members whose shares lie on one polynomial; more answers than the threshold show a wrong one.

        All secrets are checked at once, by one random combination of them. With t + 2 answers one liar is found.
        """
        numbers = tuple(sorted(self._answers))
        if len(numbers) < self._threshold:
            raise SharesDisagree(f"{len(numbers)} answers of the {self._threshold} that it takes")
        mixed = self._mixed()
        if self._is_one_polynomial(numbers, mixed):
            return numbers
        for liar in numbers:
            others = tuple(number for number in numbers if number != liar)
            if len(others) > self._threshold and self._is_one_polynomial(others, mixed):
                return others
        raise SharesDisagree(f"the shares of {len(numbers)} committee members contradict each other")

    def _is_one_polynomial(self, numbers: Sequence[int], mixed: dict[int, int]) -> bool:
        base, others = numbers[: self._threshold], numbers[self._threshold :]
        values = [mixed[number] for number in base]
        return all(ShareWeights(base, at=other).value(values) == mixed[other] for other in others)

    def _mixed(self) -> dict[int, int]:
        """Each member's shares as one: a combination whose factors nobody knew when the shares were sent."""
        seed = hashlib.sha256(_MIX_DOMAIN)
        for number in sorted(self._answers):
            seed.update(b"".join(share.to_bytes(SHARE_BYTES, "little") for share in self._answers[number]))
        factors = [
            int.from_bytes(hashlib.sha256(seed.digest() + place.to_bytes(4, "big")).digest(), "little") % PRIME
            for place in range(len(self._wanted))
        ]
        return {
            number: sum(factor * share for factor, share in zip(factors, shares, strict=True)) % PRIME
            for number, shares in self._answers.items()
        }
