"""Attacks on what devices send. Each succeeds when protection is off (the positive control), and fails when it is on.

Statistical bounds are wrong with probability 1e-6: a failure here is a fault, not bad luck.
"""

import math

import msgspec
import numpy as np
import pytest

from coordinator.private_admission import honest_l2_bound, is_overlong
from edge_client.privacy.accountant import gaussian_epsilon, gaussian_mu
from edge_client.privacy.integer_update import clip_and_round, make_integer_update, noise_vector
from integer_noise.secure_random import SecureRandom
from simulators.datasets import load_digits
from simulators.privacy_audit import audit_shares, canary_epsilon, lower_rate, upper_rate
from simulators.trials.privacy_frontier import private_mean
from wire_protocol.integer_updates import decode_sum
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.query import Query, contribution

FAILURE = 1e-6


def _spec(**changes):
    values = {"mode": "distributed", "clipping_norm": 1.0, "noise_multiplier": 1.0, "min_contributors": 1}
    return PrivacySpec(**{**values, "num_rounds": 1, "target_epsilon": 10.0, **changes})


# -- the noise is as large as it is said to be


@pytest.mark.parametrize(
    ("z", "num_shares", "mode"),
    [(1.0, 1, "local"), (1.0, 50, "distributed"), (4.0, 50, "distributed"), (1.0, 50, "central")],
)
def test_nobody_tells_a_device_from_none_better_than_is_claimed_and_the_audit_comes_close(z, num_shares, mode):
    audit = audit_shares(_spec(mode=mode, noise_multiplier=z, min_contributors=num_shares), 1000)
    assert audit.holds
    assert audit.least_mu > 0.75 / z - 0.02
    assert audit.least_epsilon(1, 1e-5) <= gaussian_epsilon(1 / z, 1e-5)


@pytest.mark.parametrize(
    "factor", [1 / math.sqrt(50), 0.8], ids=["a share of 1/n instead of 1/sqrt n", "a fifth too little noise"]
)
def test_the_audit_finds_noise_that_is_too_small(factor):
    spec = _spec(min_contributors=50)
    faulty = msgspec.structs.replace(spec, noise_multiplier=factor)
    audit = audit_shares(spec, 1000, noise_of=faulty)
    assert not audit.holds


def test_the_audit_finds_a_coordinator_that_adds_too_little():
    spec = _spec(mode="central")
    assert not audit_shares(spec, 1000, noise_of=msgspec.structs.replace(spec, noise_multiplier=0.8)).holds


def test_all_rows_of_correlated_noise_together_tell_a_part_no_better_than_it_is_charged_for():
    spec = _spec(mode="central", num_bands=4, noise_multiplier=2.0)
    charged = spec.event(1000).noise_multiplier
    audit = audit_shares(spec, 1000)
    assert audit.holds
    assert 0.85 / charged < audit.least_mu < audit.claimed_mu == pytest.approx(1 / charged)
    # Charged like one release with independent noise, a part would be more telling than is claimed.
    assert audit.least_mu > 1 / spec.noise_multiplier
    assert not audit_shares(spec, 1000, noise_of=msgspec.structs.replace(spec, noise_multiplier=1.6)).holds


def _told_epsilon(query, noise_of, num_vectors=60):
    """Least pure epsilon by which somebody tells from a bin of the answer whether one device is in it: Clopper-Pearson.

    The bins' noises are independent, so that each of them is a game.
    """
    spec, random = noise_of.privacy_spec(), SecureRandom()
    own = int(clip_and_round(contribution(query, 0.5), query.privacy_spec(), random).values[0])
    worlds = np.zeros((2, num_vectors, query.num_cells), np.int64)
    for world, vector in np.ndindex(2, num_vectors):
        for _ in range(query.min_contributors):
            worlds[world, vector] += noise_vector(query.num_cells, spec, random)
    without, beside = worlds[0].reshape(-1), worlds[1].reshape(-1) + own
    half = len(without) // 2

    def told(limit, games):
        hits, false_alarms = int((beside[games] > limit).sum()), int((without[games] > limit).sum())
        return math.log(lower_rate(hits, half, FAILURE / 2) / upper_rate(false_alarms, half, FAILURE / 2))

    # The best threshold of a half of the games is played with the other half.
    limits = np.quantile(without[:half], np.linspace(0.5, 0.97, 30))
    return told(max(limits, key=lambda limit: told(limit, slice(None, half))), slice(half, None))


def test_nobody_tells_who_answered_a_question_better_than_is_claimed_and_the_audit_comes_close():
    edges = tuple(float(edge) for edge in range(1001))
    query = Query(name="q", period="1", kind="histogram", edges=edges, epsilon=2.0, min_contributors=10)
    assert 0.75 * query.epsilon < _told_epsilon(query, query) <= query.epsilon
    # A third too little noise is found, and shares as small as if thirty answered.
    assert _told_epsilon(query, msgspec.structs.replace(query, epsilon=3.0)) > query.epsilon
    assert _told_epsilon(query, msgspec.structs.replace(query, min_contributors=30)) > query.epsilon


def test_bounds_of_rates_are_those_of_a_table():
    # Clopper, Pearson 1934: 5 of 10, 95 % two-sided.
    assert lower_rate(5, 10, 0.025) == pytest.approx(0.187, abs=5e-4)
    assert upper_rate(5, 10, 0.025) == pytest.approx(0.813, abs=5e-4)
    assert (lower_rate(0, 10, 0.025), upper_rate(10, 10, 0.025)) == (0.0, 1.0)


# -- one run, many canaries


def _guess_canaries(spec, noise_scale, *, num_canaries=2000, size=10_000, num_sure=100):
    rng = np.random.default_rng(1)
    canaries = rng.standard_normal((num_canaries, size), dtype=np.float32)
    canaries /= np.linalg.norm(canaries, axis=1, keepdims=True)
    is_in = rng.random(num_canaries) < 0.5
    total, random = np.zeros(size, np.uint32), SecureRandom()
    for canary in canaries[is_in]:
        total += clip_and_round(canary, spec, random).values.astype(np.uint32)
    noise = msgspec.structs.replace(spec, noise_multiplier=spec.noise_multiplier * noise_scale)
    for _ in range(spec.min_contributors):
        total += noise_vector(size, noise, random).astype(np.uint32)
    scores = canaries @ decode_sum(total).astype(np.float32)
    order = np.argsort(scores)
    return int(is_in[order[-num_sure:]].sum() + (~is_in[order[:num_sure]]).sum())


def test_canaries_in_one_sum_are_found_no_better_than_is_claimed_and_well_without_the_noise():
    delta, spec = 1e-12, _spec(noise_multiplier=4.0, min_contributors=20)
    claimed = gaussian_epsilon(1 / 4.0, delta)
    audited = canary_epsilon(2000, 200, _guess_canaries(spec, 1.0), target_delta=delta, failure_probability=FAILURE)
    assert audited <= claimed
    exposed = canary_epsilon(2000, 200, _guess_canaries(spec, 0.05), target_delta=delta, failure_probability=FAILURE)
    assert exposed > claimed


# -- the low bits of a number


def _laplace(answer, scale, uniform):
    low, high = answer + scale * np.log(uniform + uniform), answer - scale * np.log(2.0 - uniform - uniform)
    return np.where(uniform >= 0.5, high, low)


def _is_reachable(values, answer, scale, width=4):
    """Whether some 53-bit uniform number gives exactly this float from this answer (Mironov 2012)."""
    shifted = (values - answer) / scale
    around = np.rint(np.where(shifted < 0, np.exp(shifted) / 2, 1 - np.exp(-shifted) / 2) * 2**53).astype(np.int64)
    found = np.zeros(len(values), bool)
    for step in range(-width, width + 1):
        found |= _laplace(answer, scale, np.clip(around + step, 1, 2**53 - 1) * 2.0**-53) == values
    return found


def test_low_bits_of_float_noise_rule_out_the_wrong_answer():
    # By inversion of a 53-bit uniform number, as libraries do it.
    values = _laplace(0.0, 1.0, np.random.default_rng(0).integers(1, 2**53, 50_000) * 2.0**-53)
    assert _is_reachable(values, 0.0, 1.0).mean() > 0.999
    assert _is_reachable(values, 1.0, 1.0).mean() < 0.5


def test_every_integer_that_a_device_sends_could_have_come_from_the_other_answer():
    spec = _spec(mode="local", clipping="l1", noise="geometric", noise_multiplier=10.0, grid_bits=6)
    with_it = make_integer_update(np.eye(1, 50_000, dtype=np.float32)[0], spec, SecureRandom()).view(np.int32)
    without = make_integer_update(np.zeros(50_000, np.float32), spec, SecureRandom()).view(np.int32)
    sensitivity = math.ceil(spec.sensitivity_units(50_000))
    # Every integer within 80 scales is in the support of every answer; nothing near its end is ever drawn.
    reach = 80 * spec.sum_noise_units(50_000)
    for values in (with_it, without):
        assert np.abs(values).max() + sensitivity < reach
    # And the low bits have no preference: 16 classes of about 3,125 of 50,000, six standard deviations.
    for values in (with_it, without):
        classes = np.bincount(values & 15, minlength=16)
        assert np.abs(classes - 3125).max() < 6 * math.sqrt(3125)


# -- pictures out of gradients


DIGITS = load_digits()
IMAGES = DIGITS.x_train.reshape(len(DIGITS.x_train), -1).astype(np.float32)


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


class _Network:
    """One hidden layer; all weights in one vector."""

    def __init__(self, hidden, seed=0):
        rng = np.random.default_rng(seed)
        self.shapes = ((64, hidden), (hidden,), (hidden, 10), (10,))
        self.start = np.concatenate(
            [rng.normal(0, 0.2, int(np.prod(shape))) * (len(shape) > 1) for shape in self.shapes]
        ).astype(np.float32)

    def parts(self, flat):
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), self.shapes, strict=True)]

    def gradient(self, flat, x, y):
        first, bias, second, last = self.parts(flat)
        hidden = np.maximum(x @ first + bias, 0)
        residual = _softmax(hidden @ second + last)
        residual[np.arange(len(y)), y] -= 1
        residual /= len(y)
        back = (residual @ second.T) * (hidden > 0)
        parts = (x.T @ back, back.sum(0), hidden.T @ residual, residual.sum(0))
        return np.concatenate([part.reshape(-1) for part in parts]).astype(np.float32)

    def losses(self, flat, x, y):
        first, bias, second, last = self.parts(flat)
        chances = _softmax(np.maximum(x @ first + bias, 0) @ second + last)
        return -np.log(chances[np.arange(len(y)), y] + 1e-9)


def _inverted(network, gradient):
    """The picture: a row of the first layer's gradient is the input times the bias's gradient."""
    kernel, bias, *_ = network.parts(gradient)
    unit = int(np.abs(bias).argmax())
    return kernel[:, unit] / bias[unit] if bias[unit] else np.zeros(len(kernel))


def _psnr(picture, truth):
    return -10 * math.log10(float(np.mean((np.clip(picture, 0, 1) - truth) ** 2)) + 1e-12)


def test_a_picture_is_read_from_a_raw_gradient_and_not_from_what_a_device_sends():
    network = _Network(32)
    spec = _spec(mode="local", clipping_norm=0.1)
    raw, private, black = [], [], []
    for image, label in zip(IMAGES[:40], DIGITS.y_train[:40], strict=True):
        gradient = network.gradient(network.start, image[None], np.array([label]))
        sent = make_integer_update(gradient, spec, SecureRandom()).view(np.int32) / spec.units_per_weight
        raw.append(_psnr(_inverted(network, gradient), image))
        private.append(_psnr(_inverted(network, sent), image))
        black.append(_psnr(np.zeros(64), image))
    assert min(raw) > 60
    # No better than a guess that looks at nothing.
    assert np.mean(private) < np.mean(black) + 1
    assert max(private) < 20


# -- who was there


def _auc(inside, outside):
    ranks = np.argsort(np.argsort(np.concatenate([inside, outside])))
    return (ranks[: len(inside)].mean() - (len(inside) - 1) / 2) / len(outside)


def test_members_are_told_from_others_by_an_overfitted_model_and_not_by_a_private_one():
    rng = np.random.default_rng(5)
    order = rng.permutation(len(IMAGES))
    # Labels at random: all that there is to learn is who was there.
    labels = rng.integers(0, 10, len(IMAGES))
    members, others = order[:300], order[300:600]
    network, devices, rounds = _Network(64), 100, 30

    def auc(model):
        losses = [network.losses(model, IMAGES[rows], labels[rows]) for rows in (members, others)]
        return _auc(-losses[0], -losses[1])

    exposed = network.start
    for _ in range(1200):
        exposed = exposed - 0.5 * network.gradient(exposed, IMAGES[members], labels[members])
    assert auc(exposed) > 0.95

    mu = gaussian_mu(4.0, 1e-5)
    spec = _spec(
        clipping_norm=0.5, noise_multiplier=math.sqrt(rounds) / mu, min_contributors=devices, num_rounds=rounds
    )
    private = network.start
    for _ in range(rounds):
        rows = members.reshape(devices, 3)
        updates = np.stack([-network.gradient(private, IMAGES[row], labels[row]) for row in rows])
        private = private + np.float32(0.5) * private_mean(iter([updates]), spec, num_devices=devices)[0]
    # The bound on any test's AUC, Phi(mu / sqrt 2), and 4.9 standard errors of an AUC of 300 and 300.
    bound = 0.5 * math.erfc(-mu / 2)
    assert auc(private) < bound + 4.9 * 0.024


# -- one device that shouts


def _train_with_poisoner(*, poison, is_guarded, rounds=15, devices=200):
    """Softmax regression on digits, 7 examples a device; device 0 answers with what ``poison`` makes."""
    spec = _spec(clipping_norm=0.5, noise_multiplier=3.0, min_contributors=devices, num_rounds=rounds)
    x = np.concatenate([IMAGES, np.ones((len(IMAGES), 1), np.float32)], axis=1)[: devices * 7].reshape(devices, 7, 65)
    y = DIGITS.y_train[: devices * 7].reshape(devices, 7)
    model, random, refused = np.zeros((65, 10), np.float32), SecureRandom(), 0
    for _ in range(rounds):
        total = np.zeros(650, np.uint32)
        for index in range(devices):
            residual = _softmax(x[index] @ model)
            residual[np.arange(7), y[index]] -= 1
            honest = (-x[index].T @ residual / 7).reshape(-1).astype(np.float32)
            update = make_integer_update(honest, spec, random)
            if index == 0 and poison is not None:
                update = poison(honest, spec)
            if is_guarded and is_overlong(update, spec):
                refused += 1
                continue
            total += update
        model = model + 2.0 * (decode_sum(total) / (spec.units_per_weight * devices)).reshape(65, 10)
    tests = np.concatenate([DIGITS.x_test.reshape(len(DIGITS.x_test), -1), np.ones((len(DIGITS.x_test), 1))], axis=1)
    return float(((tests @ model).argmax(axis=1) == DIGITS.y_test).mean()), refused


def _boosted(honest, spec):
    return np.clip(-1000 * honest * spec.units_per_weight, -(2.0**31), 2**31 - 1).astype(np.int64).astype(np.uint32)


def _as_long_as_is_let_in(honest, spec):
    longest = honest_l2_bound(spec, len(honest)) * 0.999
    return np.trunc(-honest / np.linalg.norm(honest) * longest).astype(np.int64).astype(np.uint32)


def test_one_boosted_device_of_two_hundred_breaks_a_sum_that_takes_everything_and_not_one_that_is_guarded():
    quiet, _ = _train_with_poisoner(poison=None, is_guarded=True)
    assert quiet > 0.8
    broken, _ = _train_with_poisoner(poison=_boosted, is_guarded=False)
    assert broken < 0.4
    guarded, refused = _train_with_poisoner(poison=_boosted, is_guarded=True)
    assert (guarded > quiet - 0.1, refused) == (True, 15)
    sly, refused = _train_with_poisoner(poison=_as_long_as_is_let_in, is_guarded=True)
    assert (sly > quiet - 0.15, refused) == (True, 0)
