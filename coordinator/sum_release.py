"""What is said of a sum of private updates, and what the server's state remembers for it.

| task | released | remembered |
|---|---|---|
| local, distributed | the sum: its noise is the devices' | nothing |
| central | the sum with the coordinator's noise | nothing |
| central, noise in bands | an estimate from noised rows (`coordinator.band_history`) | the last sums and estimates: secret |
| central, a clip that adapts | the same as central, in units of the round's clip | the next round's clip |

What is remembered is leaves of the server's state, behind those of the aggregator: one file, written in one step.
"""

import dataclasses
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from coordinator.aggregation import Leaf, ServerState
from coordinator.band_history import NUM_HISTORY_LEAVES, empty_history, history_from
from coordinator.central_noise import draw_central_noise
from coordinator.errors import StateMismatch
from integer_noise.secure_random import SecureRandom
from wire_protocol.adaptive_clip import AdaptiveClip, next_clip, share_below
from wire_protocol.plan import TrainingPlan
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["Released", "SumRelease", "round_clip", "sum_release"]

_NO_LEAVES: Final[tuple[Leaf, ...]] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Released:
    """What comes of a sum."""

    total: npt.NDArray[np.float64]
    """[d] the sum that may be released, in weights: units of the model."""
    leaves: tuple[Leaf, ...]
    """What the next round needs to know."""
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    """What else may be said."""


class SumRelease(Protocol):
    """One way to release sums."""

    num_leaves: int
    """How many leaves of a state are its own."""

    def first_leaves(self) -> tuple[Leaf, ...]:
        """What is remembered before the first round."""

    def check(self, leaves: tuple[Leaf, ...], round_id: int) -> None:
        """Refuses leaves that are not its own, or a round that they do not allow.

        Raises:
            StateMismatch: Says which.
        """

    def release(self, total: npt.NDArray[np.int64], leaves: tuple[Leaf, ...], round_id: int) -> Released:
        """Draws the noise, if it is the coordinator's to add.

        Args:
            total: The exact sum of a round, grid units; with a clip that adapts [d + 1], else [d].
            leaves: What earlier rounds left.
            round_id: The round's number.

        Raises:
            StateMismatch: As ``check``.
        """


def sum_release(plan: TrainingPlan, *, num_devices: int) -> SumRelease:
    """How the sums of a private plan are released.

    Args:
        plan: A plan with a privacy specification.
        num_devices: m: the fixed number of devices that a share is taken of.
    """
    spec = plan.privacy
    if spec is None:
        raise ValueError("the plan has no privacy specification")
    if spec.adaptive_clip is not msgspec.UNSET:
        return _ClippedSums(spec, spec.adaptive_clip, plan.num_parameters, num_devices)
    if spec.num_bands > 1:
        return _BandedSums(spec, plan.num_parameters)
    return _PlainSums(spec)


def round_clip(plan: TrainingPlan, state: ServerState) -> float | None:
    """The clip of the round that starts from a state, of a task whose clip adapts; None of any other.

    Needs no aggregator: it may still be in the making, and before the first commit a state may hold weights alone.
    """
    spec = plan.privacy
    if spec is None or spec.adaptive_clip is msgspec.UNSET:
        return None
    return float(state.leaves[-1]) if state.num_commits else spec.clipping_norm


class _PlainSums:
    """Sums with the devices' noise, or with independent noise of the coordinator."""

    num_leaves = 0

    def __init__(self, spec: PrivacySpec) -> None:
        self._spec = spec

    def first_leaves(self) -> tuple[Leaf, ...]:
        return _NO_LEAVES

    def check(self, leaves: tuple[Leaf, ...], round_id: int) -> None:
        del leaves, round_id

    def release(self, total: npt.NDArray[np.int64], leaves: tuple[Leaf, ...], round_id: int) -> Released:
        del round_id
        if self._spec.mode == "central":
            total = total + draw_central_noise(self._spec, len(total), SecureRandom())
        return Released(total=total / self._spec.units_per_weight, leaves=leaves)


class _BandedSums:
    """Sums with noise that is correlated over rounds."""

    num_leaves = NUM_HISTORY_LEAVES

    def __init__(self, spec: PrivacySpec, num_parameters: int) -> None:
        self._spec = spec
        self._num_parameters = num_parameters

    def first_leaves(self) -> tuple[Leaf, ...]:
        return empty_history(self._spec.num_bands, self._num_parameters).leaves

    def check(self, leaves: tuple[Leaf, ...], round_id: int) -> None:
        history_from(leaves, self._spec.num_bands, self._num_parameters).check_next(round_id)

    def release(self, total: npt.NDArray[np.int64], leaves: tuple[Leaf, ...], round_id: int) -> Released:
        history = history_from(leaves, self._spec.num_bands, self._num_parameters)
        noise = draw_central_noise(self._spec, len(total), SecureRandom())
        after = history.after(round_id, total, history.row(round_id, total, noise))
        return Released(total=after.estimates[0] / self._spec.units_per_weight, leaves=after.leaves)


class _ClippedSums:
    """Sums of updates whose clip follows them: the last number of a sum says how many were within it."""

    num_leaves = 1

    def __init__(self, spec: PrivacySpec, clip: AdaptiveClip, num_parameters: int, num_devices: int) -> None:
        self._spec = spec
        self._clip = clip
        self._num_parameters = num_parameters
        self._num_devices = num_devices

    def first_leaves(self) -> tuple[Leaf, ...]:
        return (np.array(self._spec.clipping_norm, np.float64),)

    def check(self, leaves: tuple[Leaf, ...], round_id: int) -> None:
        del round_id
        (leaf,) = leaves
        if leaf.shape != () or leaf.dtype != np.float64 or not self._clip.allows(float(leaf)):
            raise StateMismatch("the state holds no clip of this task")

    def release(self, total: npt.NDArray[np.int64], leaves: tuple[Leaf, ...], round_id: int) -> Released:
        self.check(leaves, round_id)
        clipping_norm = float(leaves[0])
        noised = total + draw_central_noise(self._spec, self._num_parameters, SecureRandom())
        share = share_below(float(noised[-1]), self._spec.indicator_units, self._num_devices)
        after = next_clip(self._clip, clipping_norm, share)
        return Released(
            total=noised[:-1] / (self._spec.clip_units / clipping_norm),
            leaves=(np.array(after, np.float64),),
            figures={"clipping_norm": clipping_norm, "share_within_clip": share},
        )
