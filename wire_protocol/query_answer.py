"""From the noisy sum to the answer, with error bars. Post-processing: nothing here costs privacy, or knows any data.

An error bar covers the **noise** with at least 95 % (each number for itself), not how well these devices stand for
others. With n reports where n_min were needed the noise's variance is n / n_min times as large; in local mode n times.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from wire_protocol.dyadic_tree import Counts, cumulative, leaf_counts
from wire_protocol.query import Query

__all__ = ["Estimate", "QueryAnswer", "answer_query"]

_LOG_ODDS: Final = math.log(20.0)
"""P(|X| > t) <= exp(-t / scale) for two-sided geometric X: 95 % lie within ``ln 20`` scales, 2.1 standard deviations;
more of a sum of several, which is nearer to a Gaussian."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number of an answer."""

    name: str
    value: float
    low: float
    """With ``high``: the error bar."""
    high: float


class QueryAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a fleet has answered."""

    query: Query
    num_reports: int
    """Devices that answered, those without a value among them; this is no secret."""
    noisy_sum: tuple[int, ...]
    """Grid units. It is what was released; everything else follows from it."""
    noise_stddev: float
    """Standard deviation of the noise on each count, in devices."""
    estimates: tuple[Estimate, ...]


def answer_query(
    query: Query, noisy_sum: Sequence[int], *, num_reports: int, probabilities: Sequence[float] = (0.25, 0.5, 0.75)
) -> QueryAnswer:
    """Reads a sum.

    Args:
        query: The question.
        noisy_sum: [d] sum of all integer updates, signed.
        num_reports: How many updates that were.
        probabilities: Of ``quantiles``: which ones, each in (0, 1).

    Raises:
        ValueError: Fewer reports than ``min_contributors`` (the answer is suppressed), a sum of another length, or a
            probability outside (0, 1).
    """
    if num_reports < query.min_contributors:
        raise ValueError(f"{num_reports} answers; with fewer than {query.min_contributors} there is none")
    if len(noisy_sum) != query.num_cells:
        raise ValueError(f"a sum of {len(noisy_sum)} numbers; the question has {query.num_cells}")
    if not all(0 < probability < 1 for probability in probabilities):
        raise ValueError(f"probabilities must be between 0 and 1, not {tuple(probabilities)}")
    spec = query.privacy_spec()
    scale = spec.sum_noise_units(query.num_cells) / query.device_units
    growth = math.sqrt(num_reports / (spec.honest_contributors if query.mode == "distributed" else 1))
    stddev = _geometric_stddev(spec.sum_noise_units(query.num_cells)) / query.device_units * growth
    counts = np.asarray(noisy_sum, np.float64) / query.device_units
    margin = _LOG_ODDS * scale * growth
    match query.kind:
        case "count":
            estimates = [_around("count", float(counts[0]), margin)]
        case "mean":
            estimates = _mean(query, counts, margin)
        case "histogram":
            estimates = _histogram(query, counts, margin)
        case "quantiles":
            estimates = _quantiles(query, counts, stddev, probabilities)
    return QueryAnswer(
        query=query,
        num_reports=num_reports,
        noisy_sum=tuple(int(value) for value in noisy_sum),
        noise_stddev=stddev,
        estimates=tuple(estimates),
    )


def _geometric_stddev(scale: float) -> float:
    """Of P(k) proportional to a^|k|, ``a = exp(-1/scale)``: ``sqrt(2 a) / (1 - a)``."""
    return math.sqrt(2.0 * math.exp(-1.0 / scale)) / -math.expm1(-1.0 / scale)


def _around(name: str, value: float, margin: float) -> Estimate:
    return Estimate(name=name, value=value, low=value - margin, high=value + margin)


def _mean(query: Query, counts: Counts, margin: float) -> list[Estimate]:
    """Sum over count; the error to first order, of two independent noises."""
    low, high = query.edges
    middle, half = (low + high) / 2.0, (high - low) / 2.0
    devices = max(float(counts[1]), 1.0)
    ratio = min(max(float(counts[0]) / devices, -1.0), 1.0)
    error = half * margin * math.sqrt(1.0 + ratio * ratio) / devices
    mean = middle + half * ratio
    bounded = Estimate(name="mean", value=mean, low=max(low, mean - error), high=min(high, mean + error))
    return [bounded, _around("devices", float(counts[1]), margin)]


def _histogram(query: Query, counts: Counts, margin: float) -> list[Estimate]:
    names = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(query.edges)]
    return [_around(name, float(count), margin) for name, count in zip(names, counts, strict=True)]


def _quantiles(query: Query, nodes: Counts, stddev: float, probabilities: Sequence[float]) -> list[Estimate]:
    """From the tree's distribution function; the error bar is that of the rank, which is a sum of L nodes at most."""
    sums = cumulative(leaf_counts(nodes, query.num_levels))
    total = max(float(sums[-1]), 1.0)
    rank_error = 2.0 * stddev * math.sqrt(query.num_levels) / total
    ask = np.array([(p, max(p - rank_error, 0.0), min(p + rank_error, 1.0)) for p in probabilities])
    found = _inverse(sums / total, query, ask)
    return [
        Estimate(name=f"q{p:g}", value=float(row[0]), low=float(row[1]), high=float(row[2]))
        for p, row in zip(probabilities, found, strict=True)
    ]


def _inverse(distribution: Counts, query: Query, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The values at which a distribution function over the bins' edges reaches these probabilities."""
    low, high = query.edges
    edges = np.linspace(low, high, query.num_bins + 1)
    # Strictly rising, or a flat part would have no inverse; far below one device.
    rising = distribution + np.arange(len(distribution)) * 1e-12
    values: npt.NDArray[np.float64] = np.interp(probabilities, rising, edges)
    return values
