"""Amplification by sampling: the price, where it is claimed, and where it is refused with the reason."""

import dataclasses
import itertools
import json
import math
import random

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from coordinator.errors import InvalidConfig
from coordinator.privacy_accounting import claimed_epsilon
from coordinator.private_task import PrivacyWish, made_private
from coordinator.secret_sampling import calibrate_sampled, check_sampling, sampled_epsilon
from flockwise.cli import main
from simulators.scenario import load_scenario
from simulators.secret_cohorts import SecretCohortReport, SecretCohortRun, draw_secret_cohort, run_secret_cohorts
from simulators.virtual_run import linear_task
from wire_protocol.model_contract import BUNDLE_CHECKPOINT, BUNDLE_MODEL, BUNDLE_PLAN
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.tensors import encode_tensors

D = 650


def _spec(**changes):
    values = {"mode": "central", "clipping_norm": 0.5, "noise_multiplier": 1.3, "num_rounds": 200}
    return PrivacySpec(**{**values, "target_epsilon": 2.0, "grid_bits": 16, **changes})


# -- the price


@pytest.mark.parametrize("step", [0.4, 0.6, 1.0])
def test_continuous_noise_and_a_step_that_sees_no_data_make_discrete_gaussian_noise(step):
    wide, k = 3.0, np.arange(-60, 61)
    y = np.linspace(-60, 60, 24_001)
    density = np.exp(-(y**2) / (2 * wide**2))
    weights = np.exp(-((k[:, None] - y) ** 2) / (2 * step**2))
    made = (weights / weights.sum(axis=0)) @ density
    made /= made.sum()
    wanted = np.exp(-(k**2) / (2 * (wide**2 + step**2)))
    wanted /= wanted.sum()
    near = np.abs(k) < 30
    worst = np.abs(made[near] / wanted[near] - 1).max()
    bound = 3 * math.exp(-2 * math.pi**2 * step**2)
    assert worst <= 2 * bound + 1e-9
    if step < 0.5:
        assert worst > 1e-4  # what is bounded is there to be seen


def test_the_price_of_secret_cohorts_is_the_published_one():
    """TF-privacy's own test: n = 60000, batches of 150, z = 1.3, 15 epochs."""
    assert sampled_epsilon(_spec(), D, 6000, 150 / 60_000) == pytest.approx(0.7242234026, rel=1e-6)


def test_noise_for_secret_cohorts_is_calibrated_to_the_published_value_and_keeps_the_target():
    spec = calibrate_sampled(_spec(), D, 0.1)
    assert spec.noise_multiplier == pytest.approx(3.237, abs=3e-3)
    assert 1.99 < sampled_epsilon(spec, D, 200, 0.1) <= 2.0


def test_everybody_in_every_cohort_costs_what_is_claimed_without_sampling_and_fewer_cost_less():
    prices = [sampled_epsilon(_spec(), D, 30, rate) for rate in (0.01, 0.1, 0.5, 1.0)]
    assert prices == sorted(prices)
    # Orders are fewer here, and the bound by so much weaker.
    assert claimed_epsilon(_spec(), 30) <= prices[-1] < 1.01 * claimed_epsilon(_spec(), 30)
    assert prices[0] < 0.1 * prices[-1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "distributed"}, "amplifies nothing in distributed mode"),
        ({"mode": "local"}, "amplifies nothing in local mode"),
        ({"num_bands": 4}, "no coin"),
        ({"noise": "geometric", "clipping": "l1"}, "discrete_gaussian noise alone"),
    ],
)
def test_no_claim_is_made_where_no_secret_sample_can_support_it(changes, reason):
    with pytest.raises(InvalidConfig, match=reason):
        check_sampling(_spec(**changes), 0.1)
    with pytest.raises(InvalidConfig, match=reason):
        sampled_epsilon(_spec(**changes), D, 10, 0.1)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(InvalidConfig, match="sampling rate"):
        check_sampling(_spec(), rate)


# -- where devices are served there is no claim


@pytest.fixture
def bundle_dir(tmp_path):
    bundle = linear_task(4, 2)
    (tmp_path / "bundle").mkdir()
    for name, data in (
        (BUNDLE_PLAN, bundle.plan_bytes),
        (BUNDLE_MODEL, bundle.model_bytes),
        (BUNDLE_CHECKPOINT, encode_tensors(bundle.initial_weights)),
    ):
        (tmp_path / "bundle" / name).write_bytes(data)
    return tmp_path / "bundle"


def _serve(bundle_dir, *more):
    words = ("coordinator", "serve", "--task", bundle_dir, "--broker", "mqtt://127.0.0.1:1", "--population", "p")
    goals = ("--state-dir", bundle_dir.parent / "state", "--report-goal", "20", "--rounds", "5", "--dry-run", "--json")
    return CliRunner().invoke(main, [str(word) for word in (*words, *goals, *more)])


FLAGS = ("--epsilon", "8", "--clipping-norm", "0.5", "--privacy-mode", "central")
FILE = 'epsilon = 8.0\nclipping_norm = 0.5\nmode = "central"\n'


def test_a_coordinator_that_serves_devices_refuses_the_claim_and_says_why(bundle_dir, tmp_path):
    (tmp_path / "sampled.toml").write_text(FILE + "sampling_rate = 0.1\n")
    for words in ((*FLAGS, "--sampling-rate", "0.1"), ("--privacy", tmp_path / "sampled.toml")):
        refused = _serve(bundle_dir, *words)
        assert refused.exit_code == 1
        assert all(reason in refused.output for reason in ("check in by themselves", "broker", "abandoned"))
    assert _serve(bundle_dir, *FLAGS).exit_code == 0


def test_what_is_served_is_priced_as_if_everybody_were_in_every_round(bundle_dir):
    served = json.loads(_serve(bundle_dir, *FLAGS).output)["privacy"]
    spec = msgspec.convert(served, type=PrivacySpec)
    assert 7.9 < claimed_epsilon(spec, 5) <= 8.0


# -- a privacy file


@pytest.mark.parametrize("name", ["privacy.toml", "privacy.json"])
def test_a_file_says_the_same_as_the_options(bundle_dir, tmp_path, name):
    more = {"bands": 2, "rounds": 12, "min_contributors": 15, "delta": 1e-6}
    text = FILE + "".join(f"{word} = {value!r}\n" for word, value in more.items())
    if name.endswith("json"):
        text = json.dumps({"epsilon": 8.0, "clipping_norm": 0.5, "mode": "central", **more})
    (tmp_path / name).write_text(text)
    flags = ("--privacy-bands", "2", "--privacy-rounds", "12", "--min-contributors", "15", "--delta", "1e-6")
    by_file, by_flags = _serve(bundle_dir, "--privacy", tmp_path / name), _serve(bundle_dir, *FLAGS, *flags)
    assert by_file.exit_code == by_flags.exit_code == 0, by_file.output
    assert by_file.output == by_flags.output
    explained = CliRunner().invoke(main, ["privacy", "explain", "--privacy", str(tmp_path / name), "--json"])
    assert explained.exit_code == 0, explained.output
    values = json.loads(explained.output)
    assert (values["num_rounds"], values["num_participations"], values["min_contributors"]) == (12, 6, 15)


@pytest.mark.parametrize(
    ("text", "words", "code", "said"),
    [
        (FILE + "sensitivity = 1\n", (), 1, "sensitivity"),
        ("epsilon = 4\n", (), 1, "clipping_norm"),
        ("epsilon = inf\nclipping_norm = 1\n", (), 1, "finite"),
        (FILE, ("--epsilon", "4"), 2, "--epsilon is said in"),
        (None, (), 1, "cannot read"),
    ],
)
def test_a_file_that_is_none_or_says_a_thing_twice_is_refused(bundle_dir, tmp_path, text, words, code, said):
    if text is not None:
        (tmp_path / "p.toml").write_text(text)
    refused = _serve(bundle_dir, "--privacy", tmp_path / "p.toml", *words)
    assert refused.exit_code == code
    assert said in refused.output


# -- the simulation


def test_each_device_is_drawn_by_a_coin_of_its_own_and_nobody_or_everybody_may_be_drawn():
    num_draws, rate = 20_000, 0.3
    counts = {subset: 0 for size in range(4) for subset in itertools.combinations("abc", size)}
    for _ in range(num_draws):
        counts[tuple(draw_secret_cohort("abc", rate))] += 1
    for subset, count in counts.items():
        chance = rate ** len(subset) * (1 - rate) ** (3 - len(subset))
        assert abs(count - num_draws * chance) < 6 * math.sqrt(num_draws * chance * (1 - chance)), subset


def test_the_coins_have_no_seed():
    draws = []
    for _ in range(2):
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002 - that it changes nothing is the point
        draws.append(draw_secret_cohort([str(index) for index in range(200)], 0.5))
    assert draws[0] != draws[1]


def _run(epsilon, rate, num_rounds, **wish):
    scenario = load_scenario("digits", num_devices=100, partition="iid", alpha=1.0, seed=0)
    task = linear_task(64, 10, batch_size=8, num_epochs=1, learning_rate=0.5)
    private = made_private(
        task,
        PrivacyWish(
            epsilon=epsilon, num_rounds=num_rounds, clipping_norm=1.0, min_contributors=20, mode="central",
            sampling_rate=rate, **wish,
        ),
    )  # fmt: skip
    return SecretCohortRun(scenario=scenario, plan=private.plan, sampling_rate=rate, num_rounds=num_rounds)


def test_a_round_to_which_nobody_comes_releases_its_noise_like_any_other():
    run = _run(8.0, 0.2, 3)
    nobody = dataclasses.replace(run, sampling_rate=1e-12, num_rounds=1)
    released = []

    class Recording:
        """The numpy mean, remembering what it was given."""

        def __init__(self):
            from coordinator.aggregation_spec import AggregationSpec
            from coordinator.numpy_mean import NumpyMeanAggregator

            self._inner = NumpyMeanAggregator(run.plan.weights, AggregationSpec())

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def begin(self, state):
            accumulator = self._inner.begin(state)
            fold = accumulator.fold
            accumulator.fold = lambda update: (released.append(update.model_delta), fold(update))
            return accumulator

    run_secret_cohorts(nobody, aggregator=Recording())
    [delta] = released
    noise = np.concatenate([part.ravel() for part in delta])
    spec = run.plan.privacy
    scale = spec.sum_noise_units(D) / spec.units_per_weight  # of the sum; the denominator is 1
    assert noise.std() == pytest.approx(scale, rel=6 / math.sqrt(2 * D))


@pytest.mark.parametrize("wish", [{}, {"adaptive_quantile": 0.5}], ids=["fixed clip", "clip that adapts"])
def test_a_fleet_of_secret_cohorts_learns_and_its_report_keeps_the_secret(wish):
    run = _run(60.0, 0.4, 15, **wish)
    shown = []
    report = run_secret_cohorts(run, on_round=shown.append)
    assert report.test_accuracy > 0.5
    assert 55 < report.epsilon <= 60.0 + 1e-3
    assert report.epsilon_without_the_secret > report.epsilon
    assert shown == list(range(1, 16))
    assert {field.name for field in dataclasses.fields(SecretCohortReport)} == {
        "num_rounds", "sampling_rate", "noise_multiplier", "epsilon", "epsilon_without_the_secret", "target_delta",
        "test_accuracy", "test_loss",
    }  # fmt: skip


def test_simulate_prints_both_prices_and_explain_warns():
    words = ["simulate", "--devices", "60", "--rounds", "3", "--epsilon", "30", "--privacy-mode", "central"]
    done = CliRunner().invoke(main, [*words, "--sampling-rate", "0.3", "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.output)
    assert values["epsilon"] <= 30 + 1e-3 < values["epsilon_without_the_secret"]
    refused = CliRunner().invoke(main, [*words[:-2], "--sampling-rate", "0.3"])
    assert refused.exit_code == 1
    assert "amplifies nothing in distributed mode" in refused.output
    noisy = CliRunner().invoke(main, [*words, "--sampling-rate", "0.3", "--loss", "0.1"])
    assert (noisy.exit_code, "no network" in noisy.output) == (2, True)
    explain = ["privacy", "explain", "--mode", "central", "--clipping-norm", "0.5", "--rounds", "20", "--epsilon", "1"]
    values = json.loads(CliRunner().invoke(main, [*explain, "--sampling-rate", "0.1", "--json"]).output)
    assert values["epsilon_of_secret_cohorts"] <= 1 < values["epsilon_by_rdp"]
    assert "never where devices are served" in values["amplification"]


def test_simulate_runs_central_mode_with_bands_and_without_the_claim():
    words = ["simulate", "--devices", "60", "--rounds", "8", "--epsilon", "50", "--privacy-mode", "central"]
    # Six cohorts, of which five rest: nobody is asked too early, and no round waits in vain.
    bands = ("--privacy-bands", "6", "--report-goal", "10", "--over-selection", "1", "--json")
    done = CliRunner().invoke(main, [*words, *bands])
    assert done.exit_code == 0, done.output
    values = json.loads(done.output)
    assert (values["num_commits"], values["num_abandoned"]) == (8, 0)
    assert values["epsilon_let_through"] <= 50
