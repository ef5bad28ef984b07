"""The noise of central mode: the coordinator's, on the sum, in integers, from the operating system's randomness.

It is drawn when a round is finished, and never stored by itself. The state that holds the noised sum is durable before
anything of it is said (`round_loop`): a coordinator that dies before that has told nobody, and draws new noise; one that
dies after it never sums the same updates again. A seed that was written down beforehand would be worse: a round that
goes on after a crash may count more updates, and the same noise on two sums cancels in their difference.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.errors import InvalidConfig
from integer_noise.noise_tables import polya_table
from integer_noise.secure_random import SecureRandom
from integer_noise.wide_gaussian import sample_discrete_gaussian
from wire_protocol.band_matrix import band_denominator
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["check_central_noise", "draw_central_noise"]

_WHY_NOT: Final = {
    "gaussian": "floating-point noise from a generator that can be predicted (TFF's is) tells more than its formula says",
    "laplace": "floating-point noise from a generator that can be predicted tells more than its formula says",
    "skellam": "dp-accounting has no price for it",
}


def check_central_noise(spec: PrivacySpec) -> None:
    """Refuses noise that the coordinator does not draw.

    Raises:
        InvalidConfig: The noise is none of ``discrete_gaussian`` and ``geometric``; says why, and what to use.
    """
    reason = _WHY_NOT.get(spec.noise)
    if reason is not None:
        instead = "geometric" if spec.clipping == "l1" else "discrete_gaussian"
        raise InvalidConfig(f"the coordinator adds no {spec.noise} noise: {reason}; use {instead}")


def draw_central_noise(spec: PrivacySpec, num_parameters: int, random: SecureRandom) -> npt.NDArray[np.int64]:
    """What is added to a sum.

    Args:
        spec: A mechanism of central mode.
        num_parameters: d.
        random: A generator made for this round.

    Returns:
        int64 [d] (with a clip that adapts [d + 1]), grid units (with bands: units of 1/M grid units): standard deviation (or scale)
        ``spec.sum_noise_units(d)`` in each number, independent.

    Raises:
        InvalidConfig: As ``check_central_noise``.
    """
    check_central_noise(spec)
    # Of correlated noise the rows live on a finer grid.
    units = spec.sum_noise_units(num_parameters) * band_denominator(spec.num_bands)
    count = num_parameters + spec.num_indicators
    if spec.noise == "geometric":
        # One share is the whole: the difference of two geometric variables is two-sided geometric.
        table = polya_table(units, 1)
        return table.sample(count, random) - table.sample(count, random)
    return sample_discrete_gaussian(units, count, random)
