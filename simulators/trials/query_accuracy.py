"""How exact answers are: a thousand temperature sensors, their own contributions and shares of noise, many times over.

The set-up of the study that chose the mechanisms: one value per device, normal with mean 21 and standard deviation 4,
clamped to 0 to 40; `n_min` is the number of devices.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from edge_client.privacy.integer_update import clip_and_round
from integer_noise.noise_tables import polya_table
from integer_noise.secure_random import SecureRandom
from wire_protocol.query import Query, QueryKind, contribution
from wire_protocol.query_answer import QueryAnswer, answer_query

__all__ = ["QueryAccuracy", "measure_accuracy", "temperatures"]

_LOW, _HIGH = 0.0, 40.0
_BLOCK_DEVICES = 100
_QUANTILES = (0.5, 0.9)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QueryAccuracy:
    """Root mean square errors of noise, for one epsilon."""

    num_devices: int
    epsilon: float
    num_repeats: int
    count: float
    """Devices."""
    mean: float
    """Degrees."""
    median: float
    """Degrees, against the exact quantile of the values."""
    q90: float
    """Degrees."""
    histogram: float
    """Devices: of the largest error among ten bins."""
    covered: float
    """Share of all numbers whose error bar holds the exact answer."""


def temperatures(num_devices: int, seed: int) -> npt.NDArray[np.float64]:
    """[num_devices] one value per device."""
    return np.clip(np.random.default_rng(seed).normal(21.0, 4.0, num_devices), _LOW, _HIGH)


def measure_accuracy(epsilon: float, *, num_devices: int, num_repeats: int, seed: int = 0) -> QueryAccuracy:
    """Asks all four questions many times.

    Args:
        epsilon: Of each question.
        num_devices: n, and n_min.
        num_repeats: Answers of each kind, each with new noise.
        seed: Of the values; the noise comes from the operating system.
    """
    values = temperatures(num_devices, seed)
    exact: dict[QueryKind, list[float]] = {
        "count": [float((values >= _LOW).sum())],
        "mean": [float(values.mean()), float(num_devices)],
        "histogram": [float(number) for number in np.histogram(values, 10, (_LOW, _HIGH))[0]],
        "quantiles": [float(value) for value in np.quantile(values, _QUANTILES)],
    }
    answers = {kind: _answers(kind, epsilon, values, num_repeats) for kind in exact}
    errors = {kind: _errors(answers[kind], truth) for kind, truth in exact.items()}
    held = [
        estimate.low <= truth <= estimate.high
        for kind, truths in exact.items()
        for answer in answers[kind]
        for estimate, truth in zip(answer.estimates, truths, strict=True)
    ]
    return QueryAccuracy(
        num_devices=num_devices,
        epsilon=epsilon,
        num_repeats=num_repeats,
        count=_rms(errors["count"][:, 0]),
        mean=_rms(errors["mean"][:, 0]),
        median=_rms(errors["quantiles"][:, 0]),
        q90=_rms(errors["quantiles"][:, 1]),
        histogram=_rms(np.abs(errors["histogram"]).max(axis=1)),
        covered=float(np.mean(held)),
    )


def _answers(kind: QueryKind, epsilon: float, values: npt.NDArray[np.float64], num_repeats: int) -> list[QueryAnswer]:
    edges = tuple(np.linspace(_LOW, _HIGH, 11).tolist()) if kind == "histogram" else (_LOW, _HIGH)
    query = Query(
        name="temperature", period="bench", kind=kind, edges=edges, epsilon=epsilon, min_contributors=len(values)
    )
    exact = _rounded_sum(query, values)
    sums = []
    for _ in range(num_repeats):
        # Whole grid units of all but a mean: rounding them again at random would change nothing.
        exact = _rounded_sum(query, values) if kind == "mean" else exact
        sums.append(exact + _noise_sum(query, len(values)))
    return [answer_query(query, total.tolist(), num_reports=len(values), probabilities=_QUANTILES) for total in sums]


def _rounded_sum(query: Query, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """[d] what all devices say before noise."""
    spec, random = query.privacy_spec(), SecureRandom()
    total = np.zeros(query.num_cells, np.int64)
    for value in values:
        total += clip_and_round(contribution(query, float(value)), spec, random).values
    return total


def _noise_sum(query: Query, num_devices: int) -> npt.NDArray[np.int64]:
    """[d] the sum of every device's share, as `integer_update.noise_vector` draws it, a hundred devices at a time."""
    spec = query.privacy_spec()
    table = polya_table(spec.sum_noise_units(query.num_cells), spec.honest_contributors)
    random, total = SecureRandom(), np.zeros(query.num_cells, np.int64)
    for begin in range(0, num_devices, _BLOCK_DEVICES):
        size = min(_BLOCK_DEVICES, num_devices - begin) * query.num_cells
        shares = table.sample(size, random) - table.sample(size, random)
        total += shares.reshape(-1, query.num_cells).sum(axis=0)
    return total


def _errors(answers: list[QueryAnswer], truth: list[float]) -> npt.NDArray[np.float64]:
    found = np.array([[estimate.value for estimate in answer.estimates] for answer in answers], np.float64)
    return found - np.array(truth, np.float64)


def _rms(errors: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))
