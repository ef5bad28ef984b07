"""The ways in which a coordinator comes to a sum without its parts: one `SumMode` for each kind of `confidentiality`.

A mode says what a sealed update may look like, how totals are formed, whom to ask, and what the answers make of it. It
knows no messages and no time: `opening` talks, `sum_openings` waits.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from coordinator.errors import InvalidConfig
from secure_sum.context import round_context
from secure_sum.errors import SecureSumError
from secure_sum.keystream import Words
from secure_sum.openings import OpeningAsk, OpeningOrder, OpeningResult, contributor_of
from secure_sum.sealed_update import SealedHeader, SealedMode
from wire_protocol.confidentiality import EncryptedSums, HelperSums, MaskedSums
from wire_protocol.plan import TrainingPlan

__all__ = ["Answered", "Opened", "SealedSet", "SumMode", "sum_mode_of"]


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


def _helper_mode(plan: TrainingPlan) -> SumMode:
    from coordinator.helper_mode import HelperMode

    return HelperMode(plan)


def _encrypted_mode(plan: TrainingPlan) -> SumMode:
    from coordinator.encrypted_mode import EncryptedMode

    return EncryptedMode(plan)


def _mask_mode(plan: TrainingPlan) -> SumMode:
    from coordinator.mask_mode import MaskMode

    return MaskMode(plan)


_MODES: Final[Mapping[type[msgspec.Struct], Callable[[TrainingPlan], SumMode]]] = {
    HelperSums: _helper_mode,
    EncryptedSums: _encrypted_mode,
    MaskedSums: _mask_mode,
}


def sum_mode_of(plan: TrainingPlan) -> SumMode | None:
    """The plan's mode; None if the coordinator sees each update.

    Raises:
        InvalidConfig: A mode that this coordinator does not have, or for which something is not installed.
    """
    if plan.confidentiality is msgspec.UNSET:
        return None
    make = _MODES.get(type(plan.confidentiality))
    if make is None:
        raise InvalidConfig(f"{type(plan.confidentiality).__name__} is not a confidentiality that can be opened here")
    try:
        return make(plan)
    except SecureSumError as error:
        raise InvalidConfig(str(error)) from error
