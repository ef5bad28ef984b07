"""Lower bounds on the privacy loss, measured on the code that devices run. A claim below such a bound is false.

Two audits. The *share audit* plays the worst pair of neighbours (one device with an update of the clip's length, or with
zero) many times, and bounds the trade-off of an adversary who sees one number of the sum. The *one-run audit* hides
many canaries in one sum and guesses which of them are in it.

Each bound is wrong with at most the stated probability: a test that fails at 1e-6 has found a fault.
"""

import dataclasses
import math
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from coordinator.band_history import empty_history
from coordinator.central_noise import draw_central_noise
from edge_client.privacy.accountant import gaussian_epsilon
from edge_client.privacy.integer_update import clip_and_round, noise_vector
from integer_noise.secure_random import SecureRandom
from wire_protocol.band_matrix import band_numerators, band_price
from wire_protocol.integer_updates import decode_sum
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["ShareAudit", "audit_shares", "canary_epsilon", "lower_rate", "upper_rate"]

_MOST_DRAWS: Final = 10_000_000
_MOST_GAMES: Final = 100_000
_NUM_THRESHOLDS: Final = 99
_BISECTIONS: Final = 60


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ShareAudit:
    """What the worst pair of neighbours could be told apart by."""

    num_shares: int
    num_games: int
    """Sums per world; a half chose the threshold, a half was counted."""
    failure_probability: float
    claimed_mu: float
    """Of one part in a round, if the noise is what is claimed: 1 / noise_multiplier, with bands ``||c||`` times that."""
    least_mu: float
    """The same as measured: the claim is false if this is above it."""

    @property
    def holds(self) -> bool:
        """Whether the measurement is consistent with the claim."""
        return self.least_mu <= self.claimed_mu

    def least_epsilon(self, num_participations: int, target_delta: float) -> float:
        """Epsilon below which taking part so often cannot be, if each time is at least as telling as the measured one."""
        return gaussian_epsilon(self.least_mu * math.sqrt(num_participations), target_delta)


def audit_shares(
    spec: PrivacySpec, num_parameters: int, *, noise_of: PrivacySpec | None = None, failure_probability: float = 1e-6
) -> ShareAudit:
    """Plays the distinguishing game with the integers that devices, or in central mode the coordinator, make.

    Args:
        spec: The mechanism that is claimed, of Gaussian kind.
        num_parameters: d, the length of an update.
        noise_of: Draw the noise by this mechanism instead: a fault, for a test of the audit.
        failure_probability: Of the bound.

    Returns:
        The audit. ``least_mu`` is ``Phi^-1(TPR) - Phi^-1(FPR)`` at Clopper-Pearson bounds of both rates (Dong, Roth, Su
        2022, "Gaussian differential privacy", equation 6).
    """
    num_shares = _num_shares(spec)
    num_games = max(200, min(_MOST_GAMES, _MOST_DRAWS // (2 * num_shares)))
    signal = _longest_update(spec, num_parameters)
    play = _band_games if spec.num_bands > 1 else _share_games
    without = play(noise_of or spec, num_parameters, num_games, 0)
    beside = play(noise_of or spec, num_parameters, num_games, signal)
    half = num_games // 2
    threshold = _best_threshold(without[:half], beside[:half])
    least_mu = max(0.0, _least_mu(without[half:], beside[half:], threshold, failure_probability))
    return ShareAudit(
        num_shares=num_shares,
        num_games=num_games,
        failure_probability=failure_probability,
        claimed_mu=math.sqrt(band_price(spec.num_bands)) / spec.noise_multiplier,
        least_mu=least_mu,
    )


def canary_epsilon(
    num_canaries: int, num_guesses: int, num_right: int, *, target_delta: float, failure_probability: float = 1e-6
) -> float:
    """Lower bound on epsilon from one run: Steinke, Nasr, Jagielski 2023, theorem 5.2.

    Args:
        num_canaries: m, each of them in the data with probability 1/2, independently.
        num_guesses: r, those that were guessed about.
        num_right: v, right guesses.
        target_delta: The delta of the claim under test.
        failure_probability: Of the bound.
    """
    low, high = 0.0, 30.0
    if _one_run_p_value(num_canaries, num_guesses, num_right, 0.0, target_delta) > failure_probability:
        return 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        p_value = _one_run_p_value(num_canaries, num_guesses, num_right, middle, target_delta)
        low, high = (middle, high) if p_value < failure_probability else (low, middle)
    return low


def lower_rate(hits: int, trials: int, alpha: float) -> float:
    """Clopper-Pearson: a rate below this would show so many hits with probability below ``alpha``."""
    return 0.0 if hits == 0 else float(stats.beta.ppf(alpha, hits, trials - hits + 1))


def upper_rate(hits: int, trials: int, alpha: float) -> float:
    """Clopper-Pearson: a rate above this would show so few hits with probability below ``alpha``."""
    return 1.0 if hits == trials else float(stats.beta.ppf(1.0 - alpha, hits + 1, trials - hits))


def _one_run_p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    rate = 1.0 / (1.0 + math.exp(-epsilon))
    beyond = float(stats.binom.sf(v - 1, r, rate))
    below = np.cumsum(stats.binom.pmf(np.arange(v - 1, -1, -1), r, rate))
    steepest = float((below / np.arange(1, len(below) + 1)).max()) if len(below) else 0.0
    return min(1.0, beyond + steepest * delta * 2.0 * m)


def _longest_update(spec: PrivacySpec, num_parameters: int) -> int:
    """Grid units of the first number of an update that is as long as the clip and has nothing else."""
    update = np.zeros(num_parameters, np.float32)
    update[0] = 2.0 * spec.clipping_norm
    return int(clip_and_round(update, spec, SecureRandom()).values[0])


def _num_shares(spec: PrivacySpec) -> int:
    return spec.honest_contributors if spec.mode == "distributed" else 1


def _share_games(spec: PrivacySpec, num_parameters: int, num_games: int, signal: int) -> npt.NDArray[np.float64]:
    """[num_games] sums of shares modulo 2^32, as the coordinator adds and reads them, and the signal.

    A device's numbers have independent noise, so that each of them is a game; the shares are of the right size for d.
    In central mode the one share is the coordinator's.
    """
    random = SecureRandom()
    num_vectors = -(-num_games // num_parameters)
    if spec.mode == "central":
        rows = [draw_central_noise(spec, num_parameters, random) for _ in range(num_vectors)]
        return np.concatenate(rows)[:num_games].astype(np.float64) + signal
    total = np.zeros(num_games, np.uint32)
    for _ in range(_num_shares(spec)):
        shares = [noise_vector(num_parameters, spec, random) for _ in range(num_vectors)]
        total += np.concatenate(shares)[:num_games].astype(np.uint32)
    return decode_sum(total).astype(np.float64) + signal


def _band_games(spec: PrivacySpec, num_parameters: int, num_games: int, signal: int) -> npt.NDArray[np.float64]:
    """[num_games] what all the rows together that a device touches by taking part once say of its number, grid units.

    The best statistic of Gaussian rows: each weighted by how much of the device is in it.
    """
    numerators = np.array(band_numerators(spec.num_bands), np.float64)
    played = [_touched_rows(spec, num_parameters, signal) for _ in range(-(-num_games // num_parameters))]
    statistic = numerators @ np.concatenate(played, axis=1)[:, :num_games]
    return np.asarray(statistic / np.dot(numerators, numerators))


def _touched_rows(spec: PrivacySpec, num_parameters: int, signal: int) -> npt.NDArray[np.float64]:
    """[b, d] the rows of a round in which every number is the signal, and of those after it, as the coordinator makes them."""
    history, random = empty_history(spec.num_bands, num_parameters), SecureRandom()
    rows = []
    for round_id in range(1, spec.num_bands + 1):
        total = np.full(num_parameters, signal if round_id == 1 else 0, np.int64)
        row = history.row(round_id, total, draw_central_noise(spec, num_parameters, random))
        history = history.after(round_id, total, row)
        rows.append(row.astype(np.float64))
    return np.array(rows)


def _best_threshold(without: npt.NDArray[np.float64], beside: npt.NDArray[np.float64]) -> float:
    """Where the bound is best, on data that is not counted."""
    candidates = np.quantile(without, np.linspace(0.01, 0.99, _NUM_THRESHOLDS))
    return float(max(candidates, key=lambda threshold: _least_mu(without, beside, threshold, 1e-6)))


def _least_mu(
    without: npt.NDArray[np.float64], beside: npt.NDArray[np.float64], threshold: float, failure_probability: float
) -> float:
    power = lower_rate(int((beside >= threshold).sum()), len(beside), failure_probability / 2)
    false_alarms = upper_rate(int((without >= threshold).sum()), len(without), failure_probability / 2)
    return float(stats.norm.ppf(power) - stats.norm.ppf(false_alarms))
