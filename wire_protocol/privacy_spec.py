"""One frozen mechanism: clipping, noise, mode and price belong together and are read from here by everybody.

There is no sensitivity to set: it follows from the clip and the grid. A device clips its ``model_delta`` to
``clipping_norm`` C, scales it so that C is ``2**grid_bits`` grid units, rounds it to integers whose norm is at most
``sensitivity_units``, and adds integer noise. The unit of privacy is the **device**; two fleets are neighbours if one
of them has one device more (add/remove).

| mode | who adds noise | noise on the sum, in sensitivities | what it protects against |
|---|---|---|---|
| ``local`` | each device, all of it | z * sqrt(reports) | everybody, the coordinator too |
| ``distributed`` | each device, a share | at least z, if ``min_contributors`` report honestly | whoever sees the sum alone |
| ``central`` | the coordinator | z | whoever sees the released models; the coordinator is trusted |

In distributed mode a single update is protected only as long as nobody sees it unsummed: without masks or encryption
the coordinator must be trusted not to look. `docs/privacy.md` says this to people.
"""

import dataclasses
import math
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from wire_protocol.adaptive_clip import AdaptiveClip
from wire_protocol.band_matrix import MAX_BANDS, band_denominator, band_price, num_participations

__all__ = [
    "MAX_GEOMETRIC_SCALE_UNITS",
    "MAX_SHARE_STDDEV_UNITS",
    "MIN_SHARE_STDDEV_UNITS",
    "GaussianEvent",
    "GeometricEvent",
    "LaplaceEvent",
    "PrivacyEvent",
    "PrivacySpec",
    "SkellamEvent",
    "rounded_l1_bound",
    "rounded_l2_bound",
]

MIN_SHARE_STDDEV_UNITS: Final = 16.0
"""Below this a sum of discrete Gaussian shares is not close enough to one discrete Gaussian: Kairouz, Liu, Steinke
2021, "The Distributed Discrete Gaussian Mechanism", theorem 1: 10 * sum exp(-2 pi^2 sigma^2 k/(k+1)) is below 1e-1000
from here on."""
MAX_SHARE_STDDEV_UNITS: Final = 40_000.0
"""Beyond this the sampler's table would not fit a small device; fewer ``grid_bits`` make it smaller."""
MAX_GEOMETRIC_SCALE_UNITS: Final = 10_000.0
"""The same for the heavier tails of ``geometric``."""
_RETRY_PROBABILITY: Final = math.exp(-0.5)
_WORD: Final = 2**31
_TAIL_STDDEVS: Final = 12.0
_MAX_CENTRAL_STDDEV_UNITS: Final = 2.0**55
"""Draws and sums together stay within 64-bit integers (`integer_noise.wide_gaussian`)."""

_Positive = Annotated[float, msgspec.Meta(gt=0)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GaussianEvent:
    """Gaussian or discrete Gaussian noise of standard deviation ``noise_multiplier`` times the L2 sensitivity."""

    noise_multiplier: float
    is_discrete: bool
    """For continuous noise the exact trade-off is known; for discrete noise in many dimensions its RDP is."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SkellamEvent:
    """Skellam noise of variance ``variance_units`` on a sum with these integer sensitivities."""

    variance_units: float
    l2_units: float
    l1_units: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LaplaceEvent:
    """Laplace noise of scale ``noise_multiplier`` times the L1 sensitivity: pure epsilon."""

    noise_multiplier: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GeometricEvent:
    """Two-sided geometric noise of that scale on integers: the same pure epsilon, a little more at delta above 0."""

    noise_multiplier: float
    sensitivity_units: int
    """Grid units of the L1 sensitivity, or fewer: a coarser grid costs more."""


PrivacyEvent: TypeAlias = GaussianEvent | SkellamEvent | LaplaceEvent | GeometricEvent
"""What one round costs each device, for an accountant to price."""


class PrivacySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a task's updates are made private.

    Raises:
        ValueError: A value is out of its range, or noise, norm and mode do not fit each other; the text says what does.
    """

    mode: Literal["local", "distributed", "central"]
    clipping: Literal["l2", "l1"] = "l2"
    clipping_norm: _Positive
    """C: the norm to which a device clips its ``model_delta``."""
    noise: Literal["gaussian", "discrete_gaussian", "skellam", "laplace", "geometric"] = "discrete_gaussian"
    """``gaussian`` and ``laplace`` are floating-point noise and therefore never a device's: ``central`` alone."""
    noise_multiplier: _Positive
    """z: for Gaussian kinds the standard deviation, for ``laplace`` and ``geometric`` the scale, of the noise in
    sensitivities: on the sum of ``min_contributors`` updates, or in ``local`` mode on each update."""
    min_contributors: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    """n_min: shares are sized so that this many bring the whole noise. With fewer nothing may be unmasked or used."""
    max_colluding_fraction: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """gamma: this share of the contributors may know their own noise and take it out again."""
    num_rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    """Rounds that the noise was calibrated for, every device in as many of them as it may take part in."""
    target_epsilon: _Positive
    """What these rounds may cost a device in all."""
    target_delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-5
    grid_bits: Annotated[int, msgspec.Meta(ge=6, le=16)] = 14
    """C is ``2**grid_bits`` grid units."""
    num_bands: Annotated[int, msgspec.Meta(ge=1, le=MAX_BANDS)] = 1
    """b: in central mode, noise correlated over b rounds (`wire_protocol.band_matrix`); a device then takes part in every
    b-th round at most. 1 is independent noise."""
    adaptive_clip: AdaptiveClip | msgspec.UnsetType = msgspec.UNSET
    """In central mode: ``clipping_norm`` is the first round's clip, which then follows the updates; each assignment names
    its round's. Left out of the bytes of any other plan."""

    def __post_init__(self) -> None:
        finite = (self.clipping_norm, self.noise_multiplier, self.target_epsilon)
        # msgspec checks ranges only when it decodes.
        if not all(0 < value < math.inf for value in finite):
            raise ValueError("clipping_norm, noise_multiplier and target_epsilon must be positive and finite")
        if not (0 < self.target_delta < 1 and 0 <= self.max_colluding_fraction < 1):
            raise ValueError("target_delta must be in (0, 1) and max_colluding_fraction in [0, 1)")
        if min(self.min_contributors, self.num_rounds) < 1:
            raise ValueError("min_contributors and num_rounds must be at least 1")
        self._check_bands()
        self._check_adaptive_clip()
        wanted_norm = "l1" if self.noise in {"laplace", "geometric"} else "l2"
        if self.clipping != wanted_norm:
            raise ValueError(
                f"{self.noise} noise is calibrated to an {wanted_norm} norm: set clipping = {wanted_norm!r}"
            )
        is_continuous = self.noise in {"gaussian", "laplace"}
        if is_continuous and self.mode != "central":
            raise ValueError(
                f"floating-point noise never leaves a device: in {self.mode} mode use "
                f"{'discrete_gaussian' if self.noise == 'gaussian' else 'geometric'}"
            )
        if self.mode == "distributed" and self.honest_contributors < 1:
            raise ValueError("distributed mode needs at least one honest contributor among min_contributors")

    def _check_bands(self) -> None:
        if not 1 <= self.num_bands <= MAX_BANDS:
            raise ValueError(f"num_bands must be in 1 .. {MAX_BANDS}")
        if self.num_bands > 1 and (self.mode, self.noise) != ("central", "discrete_gaussian"):
            raise ValueError(
                "noise that is correlated over rounds needs one party that remembers it: num_bands above 1 needs central "
                "mode and discrete_gaussian noise"
            )

    def _check_adaptive_clip(self) -> None:
        if self.adaptive_clip is msgspec.UNSET:
            return
        if (self.mode, self.noise, self.num_bands) != ("central", "discrete_gaussian", 1):
            raise ValueError(
                "a clip that adapts needs central mode, discrete_gaussian noise and one band: noise that is correlated over "
                "rounds cancels only between sums of one clip"
            )
        if not self.adaptive_clip.allows(self.clipping_norm):
            raise ValueError("clipping_norm is outside adaptive_clip's bounds")

    @property
    def num_indicators(self) -> int:
        """Numbers behind a model's own in an update: 1 with a clip that adapts, else 0."""
        return 0 if self.adaptive_clip is msgspec.UNSET else 1

    @property
    def indicator_units(self) -> int:
        """K: what a device adds, or takes away, to say whether its update was within the clip; 0 without such a clip."""
        if self.adaptive_clip is msgspec.UNSET:
            return 0
        return max(1, round(self.adaptive_clip.indicator_weight * self.clip_units))

    @property
    def clip_units(self) -> int:
        """S: the clip in grid units."""
        return 1 << self.grid_bits

    @property
    def units_per_weight(self) -> float:
        """Grid units per 1.0 of a weight; with a clip that adapts, in the first round."""
        return self.clip_units / self.clipping_norm

    @property
    def honest_contributors(self) -> int:
        """Contributors whose noise cannot be taken out, at the least."""
        return math.floor(self.min_contributors * (1.0 - self.max_colluding_fraction) + 1e-9)

    def sensitivity_units(self, num_parameters: int) -> float:
        """Largest norm of what one device adds to a sum, its bit included, in grid units.

        Args:
            num_parameters: d, the length of the update.
        """
        return math.hypot(self.update_bound_units(num_parameters), self.indicator_units)

    def update_bound_units(self, num_parameters: int) -> float:
        """Largest norm of one device's rounded update alone, in grid units.

        Args:
            num_parameters: d, the length of the update.
        """
        bound = rounded_l1_bound if self.clipping == "l1" else rounded_l2_bound
        return bound(self.clip_units, num_parameters)

    def sum_noise_units(self, num_parameters: int) -> float:
        """Noise that the guarantee is about: standard deviation (or scale) in grid units."""
        return self.noise_multiplier * self.sensitivity_units(num_parameters)

    def share_stddev_units(self, num_parameters: int) -> float:
        """Standard deviation of what one device adds to each number, in grid units; 0 in central mode.

        For ``geometric`` the scale of the *sum*: its shares are Polya variables (``integer_noise.noise_tables``).
        """
        if self.mode == "central":
            return 0.0
        whole = self.sum_noise_units(num_parameters)
        if self.mode == "local" or self.noise == "geometric":
            return whole
        return whole / math.sqrt(self.honest_contributors)

    def max_contributors(self, num_parameters: int, *, half_modulus: int = _WORD) -> int:
        """Most updates whose sum cannot wrap around: values at their bound, noise at 12 standard deviations.

        Args:
            num_parameters: d.
            half_modulus: What a sum's absolute value must stay below: 2^31 in words of 32 bits.
        """
        share = self.share_stddev_units(num_parameters)
        value = self.sensitivity_units(num_parameters)
        if self.mode == "central":
            # Noise is added to the sum after it has been read, outside the word.
            return math.floor((half_modulus - 1) / value)
        # n * value + 12 * share * sqrt(n) < half_modulus, solved for sqrt(n).
        half = _TAIL_STDDEVS * share / 2.0
        root = (math.sqrt(half * half + value * half_modulus) - half) / value
        return max(0, math.floor(root * root))

    def largest_honest_sum(self, num_parameters: int, num_contributors: int) -> float:
        """What no number of a sum exceeds unless a device lies: values at their bound, noise at 12 deviations."""
        share = self.share_stddev_units(num_parameters)
        value = self.sensitivity_units(num_parameters)
        return num_contributors * value + _TAIL_STDDEVS * share * math.sqrt(num_contributors)

    def event(self, num_parameters: int) -> PrivacyEvent:
        """What taking part once costs, by the sensitivity that follows from the clip."""
        match self.noise:
            case "laplace":
                return LaplaceEvent(noise_multiplier=self.noise_multiplier)
            case "geometric":
                # Of the clip and not of what rounding adds to it: at most a little too dear, and the same for all sizes.
                return GeometricEvent(noise_multiplier=self.noise_multiplier, sensitivity_units=self.clip_units)
            case "skellam":
                l2 = self.sensitivity_units(num_parameters)
                return SkellamEvent(
                    variance_units=self.sum_noise_units(num_parameters) ** 2,
                    l2_units=l2,
                    # Integers: |q|_1 <= |q|_2^2, and Cauchy-Schwarz.
                    l1_units=min(l2 * l2, math.sqrt(num_parameters) * l2),
                )
            case _:
                return GaussianEvent(
                    noise_multiplier=self.noise_multiplier / math.sqrt(band_price(self.num_bands)),
                    is_discrete=self.noise == "discrete_gaussian",
                )

    def num_participations(self, num_rounds: int) -> int:
        """How often a device can take part in so many rounds, and pays ``event`` each time."""
        return num_participations(num_rounds, self.num_bands)

    def check_for(self, num_parameters: int) -> None:
        """Checks what depends on the size of the model.

        Raises:
            ValueError: The shares are too fine for the theorem or too coarse for the sampler; says which way to go.
        """
        if self.mode == "central":
            self._check_central(num_parameters)
            return
        share = self.share_stddev_units(num_parameters)
        largest = MAX_GEOMETRIC_SCALE_UNITS if self.noise == "geometric" else MAX_SHARE_STDDEV_UNITS
        if share < MIN_SHARE_STDDEV_UNITS:
            raise ValueError(
                f"a share of noise would be {share:.3g} grid units, less than {MIN_SHARE_STDDEV_UNITS:g}: raise grid_bits"
            )
        if share > largest:
            raise ValueError(
                f"a share of noise would be {share:.3g} grid units, more than {largest:g}: lower grid_bits"
            )
        if self.mode == "distributed":
            self._check_word(num_parameters)

    def _check_central(self, num_parameters: int) -> None:
        scale = self.sum_noise_units(num_parameters)
        if scale * band_denominator(self.num_bands) > _MAX_CENTRAL_STDDEV_UNITS:
            raise ValueError(
                f"the noise would be {scale:.3g} grid units, and its draws could leave 64-bit integers: lower grid_bits"
            )
        if self.noise == "geometric" and scale > MAX_GEOMETRIC_SCALE_UNITS:
            raise ValueError(
                f"the noise would be {scale:.3g} grid units, more than {MAX_GEOMETRIC_SCALE_UNITS:g}: lower grid_bits"
            )
        self._check_word(num_parameters)

    def _check_word(self, num_parameters: int) -> None:
        if self.max_contributors(num_parameters) < self.min_contributors:
            raise ValueError(f"a sum of {self.min_contributors} updates could leave its 32-bit words: lower grid_bits")


def rounded_l2_bound(clip_units: float, num_parameters: int) -> float:
    """B: the L2 norm that conditional stochastic rounding keeps to.

    ``min(S + sqrt(d), sqrt(S^2 + d/4 + sqrt(2 ln(1/beta)) (S + sqrt(d)/2)))`` with ``beta = e^-0.5``: Kairouz, Liu,
    Steinke 2021, proposition 26. One try stays within it with probability at least ``1 - beta`` = 0.39.

    Args:
        clip_units: S.
        num_parameters: d.
    """
    root = math.sqrt(num_parameters)
    slack = math.sqrt(2.0 * math.log(1.0 / _RETRY_PROBABILITY)) * (clip_units + root / 2.0)
    return min(clip_units + root, math.sqrt(clip_units**2 + num_parameters / 4.0 + slack))


def rounded_l1_bound(clip_units: float, num_parameters: int) -> float:
    """The same for the L1 norm: ``S + sqrt(d ln(1/beta) / 2)``.

    Rounding leaves E|q_i| = |y_i|, and each |q_i| lies in an interval of length 1: Hoeffding's inequality.
    """
    return clip_units + min(num_parameters, math.sqrt(num_parameters * math.log(1.0 / _RETRY_PROBABILITY) / 2.0))
