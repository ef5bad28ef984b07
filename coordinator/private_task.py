"""How a task becomes a private one: the same bundle, its plan with a calibrated mechanism."""

import contextlib
import dataclasses
import math
from typing import Literal

import msgspec

from coordinator.errors import InvalidConfig
from coordinator.task_bundle import TaskBundle
from wire_protocol.adaptive_clip import AdaptiveClip
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["PrivacyWish", "least_contributors", "made_private", "with_adaptive_clip"]

_LEAST_SHARE = 0.9
_COARSEST_GRID_BITS = 6
_BIT_NOISE = 10.0
_LARGEST_BIT_SHARE = 0.6
"""Above this a fifth of the update's accuracy would pay for the bit."""
_CLIP_RANGE = 1000.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyWish:
    """What an operator asks for; the noise follows."""

    epsilon: float
    num_rounds: int
    """Rounds that the budget is for, abandoned ones included: every device pays for each that it answers."""
    clipping_norm: float
    min_contributors: int
    """Fewer reports, and a round is abandoned."""
    target_delta: float = 1e-5
    mode: Literal["distributed", "local", "central"] = "distributed"
    num_bands: int = 1
    """Of central mode: noise correlated over so many rounds, each device in every so many-th at most."""
    adaptive_quantile: float | None = None
    """Of central mode: the clip follows the updates, so that this share of devices is within it."""
    sampling_rate: float | None = None
    """Of central mode, and of a simulation alone: the noise is sized for secret Poisson cohorts of this rate
    (`coordinator.secret_sampling`). Such a task must not be served."""


def least_contributors(report_goal: int) -> int:
    """A usual ``min_contributors``: a tenth of the goal may stay away; the others' shares bring the whole noise."""
    return max(1, math.ceil(_LEAST_SHARE * report_goal))


def made_private(bundle: TaskBundle, wish: PrivacyWish) -> TaskBundle:
    """The same task with differential privacy, its noise calibrated to the rounds. Another task: it has another id.

    Raises:
        InvalidConfig: The bundle is private already, or the mechanism does not fit the model; says what does.
    """
    if bundle.plan.privacy is not None:
        raise InvalidConfig("this task's plan is private already: its mechanism is not changed")
    try:
        spec = _calibrated(
            PrivacySpec(
                mode=wish.mode,
                clipping_norm=wish.clipping_norm,
                noise_multiplier=1.0,
                min_contributors=wish.min_contributors,
                num_rounds=wish.num_rounds,
                target_epsilon=wish.epsilon,
                target_delta=wish.target_delta,
                num_bands=wish.num_bands,
            ),
            bundle.plan.num_parameters,
            wish.sampling_rate,
        )
        if wish.adaptive_quantile is not None:
            spec = with_adaptive_clip(spec, wish.adaptive_quantile)
        plan = msgspec.structs.replace(bundle.plan, privacy=_on_a_grid_that_fits(spec, bundle.plan.num_parameters))
    except ValueError as error:
        raise InvalidConfig(str(error)) from error
    return dataclasses.replace(bundle, plan=plan)


def _calibrated(spec: PrivacySpec, num_parameters: int, sampling_rate: float | None) -> PrivacySpec:
    if sampling_rate is not None:
        from coordinator.secret_sampling import calibrate_sampled

        return calibrate_sampled(spec, num_parameters, sampling_rate)
    from coordinator.privacy_accounting import calibrate

    return calibrate(spec)


def with_adaptive_clip(spec: PrivacySpec, target_quantile: float) -> PrivacySpec:
    """The same mechanism with a clip that adapts; at the same price, by a little more noise on the update.

    The bit is sized so that the noise on the number of devices within the clip is a twentieth of the devices (Andrew et
    al. 2021, section 3.1). With ``a = 10 z / m`` that is ``K = C a / sqrt(1 - a^2)``, and the noise on the update grows by
    ``1 / sqrt(1 - a^2)``.

    Args:
        spec: A calibrated mechanism of central mode.
        target_quantile: gamma.

    Raises:
        InvalidConfig: There are too few devices for it; says how many it takes.
        ValueError: A clip does not adapt in this mode.
    """
    share = _BIT_NOISE * spec.noise_multiplier / spec.min_contributors
    if share > _LARGEST_BIT_SHARE:
        needed = math.ceil(_BIT_NOISE * spec.noise_multiplier / _LARGEST_BIT_SHARE)
        raise InvalidConfig(
            f"a clip that adapts needs {needed} contributors at this noise, not {spec.min_contributors}: with fewer, noise "
            "drowns how many are within it; raise report_goal or epsilon, or leave the clip fixed"
        )
    return msgspec.structs.replace(
        spec,
        adaptive_clip=AdaptiveClip(
            target_quantile=target_quantile,
            indicator_weight=share / math.sqrt(1.0 - share * share),
            min_clipping_norm=spec.clipping_norm / _CLIP_RANGE,
            max_clipping_norm=spec.clipping_norm * _CLIP_RANGE,
        ),
    )


def _on_a_grid_that_fits(spec: PrivacySpec, num_parameters: int) -> PrivacySpec:
    """The same mechanism on the finest grid whose noise a device can draw; as it is if no grid fits."""
    for grid_bits in range(spec.grid_bits, _COARSEST_GRID_BITS - 1, -1):
        coarser = msgspec.structs.replace(spec, grid_bits=grid_bits)
        with contextlib.suppress(ValueError):
            coarser.check_for(num_parameters)
            return coarser
    return spec
