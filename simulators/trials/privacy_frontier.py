"""Accuracy against epsilon: a linear head on fixed features, every device in every round, no amplification claimed.

The fast path of this trial computes all devices' model deltas with a few matrix products. From there on an update goes
the device's own way: `clip_and_round` for each, integers added modulo 2^32. Of the noise the *sum* of the shares (in
local mode of the whole noises) is drawn, from the same tables: a sum of discrete Gaussian shares is one discrete Gaussian of the summed variance, to
1e-1000 (`wire_protocol.privacy_spec`). `tests/privacy/test_frontier.py` holds the fast path against devices one by one.

Before the first round one more sum is released, of features and their squares, so that features can be centred and
scaled; it takes 3 % of the budget. The claim is by RDP, with the device's own accountant.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_client.privacy.accountant import cost_of, epsilon_of, no_cost
from edge_client.privacy.integer_update import clip_and_round
from integer_noise.secure_random import SecureRandom
from integer_noise.wide_gaussian import sample_discrete_gaussian
from wire_protocol.integer_updates import decode_sum
from wire_protocol.privacy_spec import MAX_SHARE_STDDEV_UNITS, GaussianEvent, PrivacySpec

__all__ = ["FrontierCase", "FrontierData", "FrontierRow", "model_deltas", "private_mean", "run_case"]

_STATISTICS_SHARE: Final = 0.03
_SQUARES_WEIGHT: Final = 5.0
_STATISTICS_NORM: Final = 1.2
_LEAST_STDDEV: Final = 0.01
_CHUNK: Final = 500
_BISECTIONS: Final = 60
_DELTA: Final = 1e-5

_Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FrontierCase:
    """One point of the frontier."""

    num_devices: int
    epsilon: float
    num_rounds: int
    clipping_norm: float
    server_learning_rate: float
    """In clips: the model moves by this times the mean of updates of norm 1."""
    momentum: float = 0.9
    mode: Literal["distributed", "local"] = "distributed"
    features: Literal["centred", "exported"] = "centred"
    """``centred``: in distributed mode a first private sum centres and scales them. ``exported``: those that a device
    computes inside the model file of ``zoo:private-head``, as they are."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FrontierData:
    """Features and labels, before they are spread over devices."""

    x_train: _Floats
    """[n, f]"""
    y_train: npt.NDArray[np.int32]
    x_test: _Floats
    y_test: npt.NDArray[np.int32]
    num_classes: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FrontierRow:
    """What one case came to with one seed."""

    case: FrontierCase
    seed: int
    accuracy: float
    """Test accuracy of the model after the last round."""
    noise_multiplier: float
    claimed_epsilon: float
    """By RDP, of all rounds and the statistics."""
    clipped_share: float
    """Share of the updates that were clipped."""


def run_case(case: FrontierCase, data: FrontierData, *, seed: int) -> FrontierRow:
    """Trains once. The seed spreads the examples; noise has none."""
    order = np.random.default_rng(seed).permutation(len(data.x_train))
    order = order[: len(order) // case.num_devices * case.num_devices]
    has_statistics = case.mode == "distributed" and case.features == "centred"
    z, z_statistics = _noise_multipliers(case, has_statistics=has_statistics)
    x_train, x_test = data.x_train[order], data.x_test
    if has_statistics:
        centre, scale = _statistics(x_train.reshape(case.num_devices, -1, x_train.shape[1]), case, z_statistics)
        x_train, x_test = (x_train - centre) * scale, (x_test - centre) * scale
    x = _with_ones(x_train).reshape(case.num_devices, -1, x_train.shape[1] + 1)
    y = data.y_train[order].reshape(case.num_devices, -1)
    model = np.zeros((x.shape[2], data.num_classes), np.float32)
    velocity = np.zeros_like(model)
    spec, num_clipped = _spec(case, z, model.size), 0
    for _ in range(case.num_rounds):
        mean, clipped = private_mean(_chunks(model, x, y), spec, num_devices=case.num_devices)
        velocity = case.momentum * velocity + mean.reshape(model.shape) / np.float32(case.clipping_norm)
        model = model + np.float32(case.server_learning_rate) * velocity
        num_clipped += clipped
    hits = (_with_ones(x_test) @ model).argmax(axis=1) == data.y_test
    return FrontierRow(
        case=case,
        seed=seed,
        accuracy=float(hits.mean()),
        noise_multiplier=z,
        claimed_epsilon=_epsilon(case.num_rounds, z, z_statistics if has_statistics else math.inf),
        clipped_share=num_clipped / (case.num_rounds * case.num_devices),
    )


def model_deltas(model: _Floats, x: _Floats, y: npt.NDArray[np.int32]) -> _Floats:
    """[n, f * c] what n devices learn in one full-batch step of softmax regression with learning rate 1.

    Args:
        model: [f, c] kernel, and bias as its last row.
        x: [n, m, f] features with a last column of ones.
        y: [n, m] labels.
    """
    logits = x @ model
    logits -= logits.max(axis=2, keepdims=True)
    residual = np.exp(logits)
    residual /= residual.sum(axis=2, keepdims=True)
    np.put_along_axis(residual, y[..., None], np.take_along_axis(residual, y[..., None], axis=2) - 1, axis=2)
    deltas: _Floats = -(x.transpose(0, 2, 1) @ residual) / np.float32(x.shape[1])
    return deltas.reshape(len(x), -1)


def private_mean(chunks: Iterator[_Floats], spec: PrivacySpec, *, num_devices: int) -> tuple[_Floats, int]:
    """Clips, rounds and adds every device's update, adds the noise of all, and divides.

    Args:
        chunks: [n, d] model deltas of some devices each; of ``num_devices`` in all.
        spec: The mechanism.
        num_devices: The denominator.

    Returns:
        [d] the mean as the coordinator decodes it, and how many updates were clipped.
    """
    random, num_clipped = SecureRandom(), 0
    total = np.zeros(0, np.uint32)
    for deltas in chunks:
        total = np.zeros(deltas.shape[1], np.uint32) if not len(total) else total
        for delta in deltas:
            rounded = clip_and_round(delta, spec, random)
            total += rounded.values.astype(np.uint32)
            num_clipped += rounded.was_clipped
    total += _summed_noise(len(total), spec, num_devices, random).astype(np.uint32)
    mean = decode_sum(total) / (spec.units_per_weight * num_devices)
    return mean.astype(np.float32), num_clipped


def _summed_noise(size: int, spec: PrivacySpec, num_devices: int, random: SecureRandom) -> npt.NDArray[np.int64]:
    """[size] the noise of all devices together: one discrete Gaussian of the summed variance."""
    return sample_discrete_gaussian(math.sqrt(num_devices) * spec.share_stddev_units(size), size, random)


def _chunks(model: _Floats, x: _Floats, y: npt.NDArray[np.int32]) -> Iterator[_Floats]:
    for start in range(0, len(x), _CHUNK):
        yield model_deltas(model, x[start : start + _CHUNK], y[start : start + _CHUNK])


def _with_ones(x: _Floats) -> _Floats:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)


def _spec(case: FrontierCase, z: float, num_parameters: int) -> PrivacySpec:
    """The mechanism, on the finest grid whose shares fit a device's table."""
    spec = PrivacySpec(
        mode=case.mode,
        clipping_norm=case.clipping_norm,
        noise_multiplier=z,
        min_contributors=case.num_devices,
        num_rounds=case.num_rounds,
        target_epsilon=case.epsilon,
        target_delta=_DELTA,
    )
    while spec.share_stddev_units(num_parameters) > MAX_SHARE_STDDEV_UNITS:
        spec = msgspec.structs.replace(spec, grid_bits=spec.grid_bits - 1)
    spec.check_for(num_parameters)
    return spec


def _statistics(x: _Floats, case: FrontierCase, z: float) -> tuple[_Floats, _Floats]:
    """[f] mean and [f] scale of the features, from one private sum; variances are shrunk as far as they are noise."""
    num_features = x.shape[2]
    own = np.concatenate([x.mean(axis=1), np.float32(_SQUARES_WEIGHT) * (x**2).mean(axis=1)], axis=1)
    spec = _spec(dataclasses.replace(case, clipping_norm=_STATISTICS_NORM), z, 2 * num_features)
    mean, _ = private_mean(iter([own]), spec, num_devices=case.num_devices)
    centre, squares = mean[:num_features], mean[num_features:] / np.float32(_SQUARES_WEIGHT)
    noise = spec.sum_noise_units(2 * num_features) / (spec.units_per_weight * case.num_devices)
    variance = squares - centre**2
    deviation = variance - variance.mean()
    noise_variance = (noise / _SQUARES_WEIGHT) ** 2 + 4 * float((centre**2).mean()) * noise**2
    kept = max(0.0, 1.0 - num_features * noise_variance / float((deviation**2).sum()))
    shrunk = np.maximum(variance.mean() + kept * deviation, _LEAST_STDDEV**2)
    scale = 1.0 / (np.sqrt(shrunk) + _LEAST_STDDEV)
    # Norms near 1, as they were: clip and learning rate keep their meaning.
    scale /= math.sqrt(float((shrunk * scale**2).sum()))
    return centre, scale.astype(np.float32)


def _noise_multipliers(case: FrontierCase, *, has_statistics: bool) -> tuple[float, float]:
    """Multipliers of the rounds and of the statistics: the least that keep the target by RDP."""
    ratio = math.sqrt(_STATISTICS_SHARE / (1 - _STATISTICS_SHARE) * case.num_rounds) if has_statistics else 0.0
    low, high = 1e-2, 1e5
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        is_enough = _epsilon(case.num_rounds, middle, middle / ratio if ratio else math.inf) <= case.epsilon
        low, high = (low, middle) if is_enough else (middle, high)
    return high, high / ratio if ratio else math.inf


def _epsilon(num_rounds: int, z: float, z_statistics: float) -> float:
    cost = cost_of(GaussianEvent(noise_multiplier=z, is_discrete=True)).times(num_rounds)
    once = no_cost()
    if z_statistics < math.inf:
        once = cost_of(GaussianEvent(noise_multiplier=z_statistics, is_discrete=True))
    return epsilon_of(cost + once, _DELTA)
