"""What the coordinator remembers from round to round when its noise is correlated: the last sums, and what was released.

# Formal guarantee

A round releases a function of the rows ``y_t = sum_j M c_j x_{t-j} + Z_t`` alone: integers, x_t the exact sum of round t
and Z_t fresh discrete Gaussian noise (`wire_protocol.band_matrix`). The estimate is computed from them and from earlier
estimates, ``e_t = y_t / M - sum_{j>=1} c_j e_{t-j}``, never from x or Z: whatever floating point does to it is
post-processing. It equals ``x_t + (C^-1 Z)_t / M``. Inputs may depend on earlier outputs, for what a device can change
in all rows together is bounded whatever it answers (a filter with a fixed bound: Feldman, Zrnic 2021).

A round that was abandoned is a row that nobody sees: its sum and its estimate are zero, which everybody knows.

The sums are as secret as single updates: with them and the released models the noise is known. They are part of the
server's state, stored in the same step as the model that they led to, and must not be published.
"""

import dataclasses
from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.aggregation import Leaf
from coordinator.errors import StateMismatch
from wire_protocol.band_matrix import band_denominator, band_numerators

__all__ = ["NUM_HISTORY_LEAVES", "BandHistory", "empty_history", "history_from"]

NUM_HISTORY_LEAVES: Final = 3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class BandHistory:
    """The rounds that the next ``b - 1`` rows still depend on."""

    round_id: int
    """The last round that was committed; 0 for none."""
    sums: npt.NDArray[np.int64]
    """[b - 1, d] exact sums in grid units, that of ``round_id`` first. Secret."""
    estimates: npt.NDArray[np.float64]
    """[b - 1, d] what was released of them, in grid units."""

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The history as arrays of a server state."""
        return (np.array(self.round_id, np.int64), self.sums, self.estimates)

    def row(self, round_id: int, total: npt.NDArray[np.int64], noise: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64 [d], units of 1/M grid units: ``y_t``, all that is ever released of this round's sum.

        Args:
            round_id: t.
            total: [d] the exact sum in grid units.
            noise: [d] fresh noise in units of 1/M grid units.

        Raises:
            StateMismatch: A later round is part of the history already.
        """
        numerators = band_numerators(len(self.sums) + 1)
        row = numerators[0] * total + noise
        for numerator, past in zip(numerators[1:], self._as_of(round_id).sums, strict=True):
            row += numerator * past
        return row

    def after(self, round_id: int, total: npt.NDArray[np.int64], row: npt.NDArray[np.int64]) -> "BandHistory":
        """The history with one round more; its first estimate is what is released.

        Raises:
            StateMismatch: As ``row``.
        """
        past = self._as_of(round_id)
        num_bands = len(self.sums) + 1
        denominator = band_denominator(num_bands)
        estimate = row / denominator
        for numerator, earlier in zip(band_numerators(num_bands)[1:], past.estimates, strict=True):
            estimate -= (numerator / denominator) * earlier
        return BandHistory(
            round_id=round_id,
            sums=np.concatenate([total[None], past.sums[:-1]]),
            estimates=np.concatenate([estimate[None], past.estimates[:-1]]),
        )

    def check_next(self, round_id: int) -> None:
        """Refuses a round that is not after every round of the history: a row must not be released twice.

        Raises:
            StateMismatch: A later round is part of the history already.
        """
        if round_id <= self.round_id:
            raise StateMismatch(
                f"round {round_id} comes after round {self.round_id}, which is committed already: was the file that "
                "numbers the rounds (last_round_id) put back or removed?"
            )

    def _as_of(self, round_id: int) -> "BandHistory":
        """The same as the round before ``round_id`` left it: rounds in between released nothing."""
        self.check_next(round_id)
        gap = round_id - self.round_id - 1
        kept = max(0, len(self.sums) - gap)
        sums, estimates = np.zeros_like(self.sums), np.zeros_like(self.estimates)
        sums[len(sums) - kept :], estimates[len(sums) - kept :] = self.sums[:kept], self.estimates[:kept]
        return BandHistory(round_id=round_id - 1, sums=sums, estimates=estimates)


def empty_history(num_bands: int, num_parameters: int) -> BandHistory:
    """Before the first round.

    Args:
        num_bands: b, at least 2.
        num_parameters: d.
    """
    shape = (num_bands - 1, num_parameters)
    return BandHistory(round_id=0, sums=np.zeros(shape, np.int64), estimates=np.zeros(shape, np.float64))


def history_from(leaves: tuple[Leaf, ...], num_bands: int, num_parameters: int) -> BandHistory:
    """Reads a history back from a server state.

    Raises:
        StateMismatch: These are not the arrays of such a history.
    """
    expected = empty_history(num_bands, num_parameters).leaves
    kinds = [(leaf.dtype, leaf.shape) for leaf in leaves]
    if kinds != [(leaf.dtype, leaf.shape) for leaf in expected]:
        raise StateMismatch(f"not the history of noise in {num_bands} bands: {kinds}")
    round_id, sums, estimates = leaves
    return BandHistory(round_id=int(round_id), sums=sums, estimates=estimates)
