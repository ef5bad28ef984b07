"""A clip that follows the updates: what each device adds to say whether its update was shorter, and the rule. Pure.

Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially private learning with adaptive clipping", algorithm 1. Every
device adds one number to its update: ``+K`` if its ``model_delta`` was at most the round's clip, ``-K`` if not. The sum
of these is noised like every other number of the sum, and the clip is moved to where a wanted share of devices is below:
``C' = C exp(-eta (b - gamma))``, ``b = 1/2 + sum / (2 K m)`` with a fixed m.

The update and its bit are one vector of norm ``sqrt(B^2 + K^2)``, which the noise is sized for: that is the price of the
bit. It is the paper's ``z^-2 = z_delta^-2 + (2 sigma_b)^-2`` (theorem 1) with ``z_delta = sigma / B`` and
``2 sigma_b = sigma / K``. In grid units nothing depends on the clip: it says only what a grid unit is worth.
"""

import math
from typing import Annotated, Final

import msgspec

__all__ = ["AdaptiveClip", "next_clip", "share_below"]

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_LARGEST_STEP: Final = 20.0


class AdaptiveClip(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the clip moves.

    Raises:
        ValueError: A value is out of its range.
    """

    target_quantile: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    """gamma: the share of devices whose updates shall be within the clip."""
    learning_rate: _Positive = 0.2
    """eta, of the logarithm of the clip."""
    indicator_weight: _Positive
    """K in clips: the more, the less noise in the share and the more in the update."""
    min_clipping_norm: _Positive
    """The clip stays at or above this."""
    max_clipping_norm: _Positive
    """The clip stays at or below this: a device refuses a larger one."""

    def __post_init__(self) -> None:
        # msgspec checks ranges only when it decodes.
        values = (self.learning_rate, self.indicator_weight, self.min_clipping_norm, self.max_clipping_norm)
        if not all(0 < value < math.inf for value in values):
            raise ValueError("learning_rate, indicator_weight and the bounds of the clip must be positive and finite")
        if not 0 < self.target_quantile < 1:
            raise ValueError("target_quantile must be in (0, 1)")
        if self.min_clipping_norm > self.max_clipping_norm:
            raise ValueError("min_clipping_norm is above max_clipping_norm")

    def allows(self, clipping_norm: float) -> bool:
        """Whether this is a clip that a round of the task can have."""
        return self.min_clipping_norm <= clipping_norm <= self.max_clipping_norm


def share_below(released: float, indicator_units: int, num_devices: int) -> float:
    """b: the noised share of updates within the clip; noise can bring it below 0 or above 1.

    Args:
        released: The noised sum of all bits, in grid units.
        indicator_units: K.
        num_devices: m, fixed: those who did not report count as a half.
    """
    return 0.5 + released / (2.0 * indicator_units * num_devices)


def next_clip(clip: AdaptiveClip, clipping_norm: float, share: float) -> float:
    """The clip of the next round, within its bounds.

    Args:
        clip: How the clip moves.
        clipping_norm: C of this round.
        share: b of this round.
    """
    step = clip.learning_rate * (share - clip.target_quantile)
    moved = clipping_norm * math.exp(-max(-_LARGEST_STEP, min(_LARGEST_STEP, step)))
    return max(clip.min_clipping_norm, min(clip.max_clipping_norm, moved))
