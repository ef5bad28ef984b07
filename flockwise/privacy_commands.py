"""`flockwise privacy`: what a mechanism is, what it costs, and how much noise a target needs."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from coordinator.errors import CoordinatorError
from flockwise.privacy_options import AS_SERVED, privacy_file_option, take_privacy_file
from flockwise.privacy_report_command import report
from flockwise.reporting import one_line_errors, print_json

if TYPE_CHECKING:
    from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["privacy"]

_errors_in_one_line = one_line_errors(ValueError, CoordinatorError)
_WORDS: Final[Mapping[str, str]] = {
    **AS_SERVED,
    "mode": "mode",
    "rounds": "rounds",
    "min_contributors": "contributors",
    "bands": "bands",
}


@click.group()
def privacy() -> None:
    """Explain, calibrate and report on differential privacy.

    Exit codes: 0 done, 1 the mechanism does not fit together (the reason is on standard error), 2 wrong usage.

    Example: flockwise privacy explain --epsilon 4 --rounds 30 --contributors 100 --clipping-norm 0.5
    """


privacy.add_command(report)


@privacy.command()
@click.option(
    "--mode", type=click.Choice(["local", "distributed", "central"]), default="distributed", show_default=True
)
@click.option(
    "--noise",
    type=click.Choice(["gaussian", "discrete_gaussian", "skellam", "laplace", "geometric"]),
    default="discrete_gaussian",
    show_default=True,
)
@privacy_file_option
@click.option("--clipping-norm", type=float, help="C: norm to which a device clips its update.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds; every device in each of them.")
@click.option("--epsilon", type=float, help="Target: the noise is calibrated to it.")
@click.option("--noise-multiplier", type=float, help="z, instead of a target.")
@click.option("--delta", type=float, default=1e-5, show_default=True)
@click.option("--contributors", type=click.IntRange(1), default=1, show_default=True, help="n_min of a round.")
@click.option("--colluding", type=float, default=0.0, show_default=True, help="Fraction of them that may collude.")
@click.option(
    "--bands",
    type=click.IntRange(1, 12),
    default=1,
    show_default=True,
    help="Central mode: noise correlated over so many rounds; a device is in every so many-th at most.",
)
@click.option(
    "--adaptive-clip",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="QUANTILE",
    help="Central mode: the clip follows this quantile of the updates' norms; --clipping-norm is the first.",
)
@click.option(
    "--sampling-rate",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="Q",
    help="Central mode, simulated alone: priced for secret Poisson cohorts.",
)
@click.option("--grid-bits", type=click.IntRange(6, 16), default=14, show_default=True)
@click.option("--parameters", type=click.IntRange(1), default=50_000, show_default=True, help="Size of the model.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@_errors_in_one_line
def explain(*, as_json: bool, **options: Any) -> None:
    """Print a mechanism: sensitivity, noise, and what its rounds cost a device.

    Needs the coordinator's installation (dp-accounting). Nothing is changed.

    Exit codes: 0 explained, 1 the mechanism does not fit together, 2 wrong usage.

    Example: flockwise privacy explain --epsilon 2 --rounds 100 --contributors 6000 --clipping-norm 0.1 --parameters 3930
    """
    take_privacy_file(options, _WORDS)
    if options["clipping_norm"] is None or options["rounds"] is None:
        raise click.UsageError("--clipping-norm and --rounds are needed, or a --privacy file that says them")
    if (options["epsilon"] is None) == (options["noise_multiplier"] is None):
        raise click.UsageError("give either --epsilon or --noise-multiplier")
    spec = _spec(options)
    spec.check_for(options["parameters"])
    values = _explanation(spec, options["parameters"]) | _of_sampling(spec, options)
    if as_json:
        print_json(values)
        return
    for name, value in values.items():
        shown = f"{value:.6g}" if isinstance(value, float) else value
        click.echo(f"{name:24} {shown}")


def _spec(options: dict[str, Any]) -> "PrivacySpec":
    from coordinator.private_task import with_adaptive_clip
    from wire_protocol.privacy_spec import PrivacySpec

    target = options["epsilon"]
    given = PrivacySpec(
        mode=options["mode"],
        clipping="l1" if options["noise"] in {"laplace", "geometric"} else "l2",
        clipping_norm=_positive(options["clipping_norm"], "--clipping-norm"),
        noise=options["noise"],
        noise_multiplier=_positive(options["noise_multiplier"] or 1.0, "--noise-multiplier"),
        min_contributors=options["contributors"] or 1,
        max_colluding_fraction=options["colluding"],
        num_rounds=options["rounds"],
        # Without a target there is none to keep: the price that follows is shown.
        target_epsilon=_positive(target or 1.0, "--epsilon"),
        target_delta=options["delta"],
        grid_bits=options["grid_bits"],
        num_bands=options["bands"],
    )
    spec = _calibrated(given, options) if target is not None else given
    return spec if options["adaptive_clip"] is None else with_adaptive_clip(spec, options["adaptive_clip"])


def _calibrated(spec: "PrivacySpec", options: dict[str, Any]) -> "PrivacySpec":
    from coordinator.privacy_accounting import calibrate
    from coordinator.secret_sampling import calibrate_sampled

    rate = options["sampling_rate"]
    return calibrate(spec) if rate is None else calibrate_sampled(spec, options["parameters"], rate)


def _of_sampling(spec: "PrivacySpec", options: dict[str, Any]) -> dict[str, Any]:
    """What secret cohorts would be worth; the other epsilons stay those of whoever knows the cohorts."""
    rate = options["sampling_rate"]
    if rate is None:
        return {}
    from coordinator.secret_sampling import sampled_epsilon

    return {
        "sampling_rate": rate,
        "epsilon_of_secret_cohorts": sampled_epsilon(spec, options["parameters"], spec.num_rounds, rate),
        "amplification": "claimed for secret Poisson cohorts, simulated alone: never where devices are served",
    }


def _positive(value: float, name: str) -> float:
    # msgspec checks ranges only when it decodes.
    if not value > 0:
        raise click.UsageError(f"{name} must be positive")
    return value


def _explanation(spec: "PrivacySpec", num_parameters: int) -> dict[str, Any]:
    from edge_client.privacy.accountant import cost_of, epsilon_of
    from wire_protocol.private_reports import PRIVATE_WEIGHT

    own = epsilon_of(
        cost_of(spec.event(num_parameters)).times(spec.num_participations(spec.num_rounds)), spec.target_delta
    )
    unit = spec.units_per_weight
    return {
        "unit": "device",
        "neighbours": "add or remove one device",
        "mode": spec.mode,
        "noise": spec.noise,
        "clipping": spec.clipping,
        "clipping_norm": spec.clipping_norm,
        "sensitivity": spec.sensitivity_units(num_parameters) / unit,
        "sensitivity_units": spec.sensitivity_units(num_parameters),
        "noise_multiplier": spec.noise_multiplier,
        "noise_on_the_sum": spec.sum_noise_units(num_parameters) / unit,
        "noise_per_device_units": spec.share_stddev_units(num_parameters),
        **_of_the_bit(spec, num_parameters),
        "aggregation_weight": PRIVATE_WEIGHT,
        "min_contributors": spec.min_contributors,
        "max_contributors": spec.max_contributors(num_parameters),
        "num_rounds": spec.num_rounds,
        "num_participations": spec.num_participations(spec.num_rounds),
        "target_delta": spec.target_delta,
        "epsilon_on_the_device": own,
        **_coordinator_prices(spec),
        "amplification": "none claimed: devices check in by themselves",
    }


def _of_the_bit(spec: "PrivacySpec", num_parameters: int) -> dict[str, Any]:
    """What the bit of a clip that adapts costs and tells."""
    if not spec.num_indicators:
        return {}
    sigma = spec.sum_noise_units(num_parameters)
    return {
        "noise_multiplier_of_update": sigma / spec.update_bound_units(num_parameters),
        "noise_on_num_within_clip": sigma / (2 * spec.indicator_units),
    }


def _coordinator_prices(spec: "PrivacySpec") -> dict[str, Any]:
    """By dp-accounting, which knows no Skellam noise."""
    if spec.noise == "skellam":
        return {}
    from coordinator.privacy_accounting import forecast

    values = dataclasses.asdict(forecast(spec, spec.num_rounds))
    return {name: values[name] for name in ("epsilon_by_rdp", "epsilon_by_pld")}
