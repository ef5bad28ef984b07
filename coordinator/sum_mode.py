"""What it takes to come to a sum without its parts: the seam that every kind of `confidentiality` fills (`sum_modes`).

A mode says what a sealed update may look like, how totals are formed, whom to ask, and what the answers make of it. It
knows no messages and no time: `opening` talks, `sum_openings` waits.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from secure_sum.context import round_context
from secure_sum.keystream import Words
from secure_sum.openings import OpeningAsk, OpeningOrder, OpeningResult, contributor_of
from secure_sum.sealed_update import SealedHeader, SealedMode

__all__ = ["Answered", "Opened", "SealedSet", "SumMode"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SealedSet:
    """What a round has collected: the same after every restart, for its order is by device id."""

    population: str
    task_id: str
    plan_sha256: bytes
    round_id: int
    num_values: int
    headers: tuple[SealedHeader, ...]
    """One for each contributor, by rising device id."""
    roster: tuple[str, ...]
    """Everybody that was asked, by rising device id."""
    total: Any
    """What the mode's ``add`` made of the payloads."""
    payload_of: Callable[[str], bytes]
    """A contributor's payload once more, from the journal.

    Raises:
        OpeningFailed: It is not kept.
    """

    directory: bytes = b""
    """The key directory's bytes, for openers that have not got them."""

    @property
    def context(self) -> bytes:
        """The round's 32 bytes."""
        return round_context(
            population=self.population, task_id=self.task_id, plan_sha256=self.plan_sha256, round_id=self.round_id
        )

    def order(self, ask: OpeningAsk, *, box_index: int | None, without: frozenset[str] = frozenset()) -> OpeningOrder:
        """What one opener is asked.

        Args:
            ask: What for.
            box_index: Which box of each contributor is that opener's; None if there are none.
            without: Contributors that are left out.
        """
        kept = (header for header in self.headers if header.statement.device_id not in without)
        return OpeningOrder(
            population=self.population,
            task_id=self.task_id,
            plan_sha256=self.plan_sha256,
            round_id=self.round_id,
            num_values=self.num_values,
            contributors=tuple(contributor_of(header, box_index=box_index) for header in kept),
            ask=ask,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Answered:
    """An opener's answer, and to what."""

    opener_id: str
    order: OpeningOrder
    result: OpeningResult


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Opened:
    """A plain sum."""

    total: Words
    """[d] modulo 2^32."""
    num_contributors: int
    """How many are in it."""


class SumMode(Protocol):
    """One way of adding up what nobody may see."""

    @property
    def sealed_mode(self) -> SealedMode:
        """What sealed updates of this mode say that they are."""

    @property
    def num_boxes(self) -> int:
        """How many boxes a sealed update has."""

    @property
    def max_update_bytes(self) -> int:
        """Longest sealed update."""

    @property
    def max_result_bytes(self) -> int:
        """Longest result of an opener."""

    @property
    def opener_ids(self) -> tuple[str, ...]:
        """Everybody that may be asked."""

    def check_payload(self, payload: bytes) -> None:
        """Refuses a payload that no device would send.

        Raises:
            SecureSumError: It is none of this mode's.
        """

    def empty(self) -> Any:
        """A total of nothing."""

    def add(self, total: Any, payload: bytes) -> Any:
        """The total with one more payload; may change ``total`` itself."""

    def orders(
        self, sealed: SealedSet, answers: Sequence[Answered], silent: frozenset[str]
    ) -> Mapping[str, OpeningOrder]:
        """Whom to ask what, beside what has been answered.

        Args:
            sealed: What to open.
            answers: What has come.
            silent: Openers that refused, or did not answer for a while.

        Returns:
            Opener -> order; empty if those that are left cannot open it.
        """

    def opened(self, sealed: SealedSet, answers: Sequence[Answered]) -> Opened | None:
        """The sum, if the answers suffice.

        Raises:
            SecureSumError: They do not fit together.
        """
