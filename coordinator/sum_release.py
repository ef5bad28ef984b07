"""What is said of a sum of private updates: itself (its noise is the devices'), or with the coordinator's noise."""

import numpy as np
import numpy.typing as npt

from coordinator.band_history import BandHistory
from coordinator.central_noise import draw_central_noise
from integer_noise.secure_random import SecureRandom
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["release_sum"]


def release_sum(
    total: npt.NDArray[np.int64], spec: PrivacySpec, history: BandHistory | None, round_id: int
) -> tuple[npt.NDArray[np.float64], BandHistory | None]:
    """Draws the coordinator's noise, if it is the coordinator's to add.

    Args:
        total: [d] the sum of a round, grid units.
        spec: The mechanism.
        history: Of correlated noise: what earlier rounds left; None of any other.
        round_id: The round's number.

    Returns:
        [d] what may be released, in grid units, and the history with this round in it.

    Raises:
        StateMismatch: A later round is part of the history already.
    """
    if spec.mode != "central":
        return total.astype(np.float64), None
    noise = draw_central_noise(spec, len(total), SecureRandom())
    if history is None:
        return (total + noise).astype(np.float64), None
    after = history.after(round_id, total, history.row(round_id, total, noise))
    return after.estimates[0], after
