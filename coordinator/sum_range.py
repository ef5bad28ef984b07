"""A sum that honest devices cannot have made is no sum: a helper lied, a device spoilt it, or it left its words.

Admission keeps rounds so small that the sum of honest updates fits into 32 bits (`PrivacySpec.max_contributors`). What
lies beyond the honest bound is therefore refused; a sum of masks that do not belong together is uniform over the words
and passes for a model of more than a few numbers with no probability worth a name.
"""

import math
from typing import Final

import numpy as np

from coordinator.sum_mode import Opened
from secure_sum.errors import OpeningFailed
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["check_range", "honest_sum_bound"]

_WORD: Final = 2**31
_LOG_ODDS: Final = 40.0


def honest_sum_bound(spec: PrivacySpec, num_parameters: int, num_contributors: int) -> float:
    """Grid units that no number of an honest sum exceeds, but with probability below e^-40.

    Values at their bound; noise ``s sqrt(2 n (t + ln 2d))`` for Gaussian kinds (sub-Gaussian with their own s: Canonne,
    Kamath, Steinke 2020), ``s (t + ln 2d)`` per device for geometric ones, t = 40.

    Args:
        spec: The mechanism.
        num_parameters: d.
        num_contributors: n.
    """
    n, odds = num_contributors, _LOG_ODDS + math.log(2.0 * max(1, num_parameters))
    share, values = spec.share_stddev_units(num_parameters), n * spec.sensitivity_units(num_parameters)
    if spec.noise == "geometric":
        # n_min shares make one geometric variable of scale `share`; n devices make n / n_min of them at most, rounded up.
        whole = math.ceil(n / max(1, spec.honest_contributors)) if spec.mode == "distributed" else n
        return values + whole * share * odds
    return values + share * math.sqrt(2.0 * n * odds) + 2.0 * odds


def check_range(opened: Opened, spec: PrivacySpec) -> None:
    """Refuses a sum that honest contributors cannot have made.

    Raises:
        OpeningFailed: A number of it is too large.
    """
    bound = honest_sum_bound(spec, len(opened.total), opened.num_contributors)
    if bound >= _WORD:
        raise OpeningFailed(f"the sum of {opened.num_contributors} updates could leave its 32-bit words")
    largest = int(np.abs(opened.total.view(np.int32).astype(np.int64)).max(initial=0))
    if largest > bound:
        raise OpeningFailed(
            f"a number of the sum is {largest} grid units; {opened.num_contributors} honest updates make at most {bound:.0f}"
        )
