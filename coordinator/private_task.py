"""How a task becomes a private one: the same bundle, its plan with a calibrated mechanism."""

import contextlib
import dataclasses
import math
from typing import Literal

import msgspec

from coordinator.errors import InvalidConfig
from coordinator.task_bundle import TaskBundle
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["PrivacyWish", "least_contributors", "made_private"]

_LEAST_SHARE = 0.9
_COARSEST_GRID_BITS = 6


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


def least_contributors(report_goal: int) -> int:
    """A usual ``min_contributors``: a tenth of the goal may stay away; the others' shares bring the whole noise."""
    return max(1, math.ceil(_LEAST_SHARE * report_goal))


def made_private(bundle: TaskBundle, wish: PrivacyWish) -> TaskBundle:
    """The same task with differential privacy, its noise calibrated to the rounds. Another task: it has another id.

    Raises:
        InvalidConfig: The bundle is private already, or the mechanism does not fit the model; says what does.
    """
    from coordinator.privacy_accounting import calibrate

    if bundle.plan.privacy is not None:
        raise InvalidConfig("this task's plan is private already: its mechanism is not changed")
    try:
        spec = calibrate(
            PrivacySpec(
                mode=wish.mode,
                clipping_norm=wish.clipping_norm,
                noise_multiplier=1.0,
                min_contributors=wish.min_contributors,
                num_rounds=wish.num_rounds,
                target_epsilon=wish.epsilon,
                target_delta=wish.target_delta,
                num_bands=wish.num_bands,
            )
        )
        plan = msgspec.structs.replace(bundle.plan, privacy=_on_a_grid_that_fits(spec, bundle.plan.num_parameters))
    except ValueError as error:
        raise InvalidConfig(str(error)) from error
    return dataclasses.replace(bundle, plan=plan)


def _on_a_grid_that_fits(spec: PrivacySpec, num_parameters: int) -> PrivacySpec:
    """The same mechanism on the finest grid whose noise a device can draw; as it is if no grid fits."""
    for grid_bits in range(spec.grid_bits, _COARSEST_GRID_BITS - 1, -1):
        coarser = msgspec.structs.replace(spec, grid_bits=grid_bits)
        with contextlib.suppress(ValueError):
            coarser.check_for(num_parameters)
            return coarser
    return spec
