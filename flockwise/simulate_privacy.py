"""What `flockwise simulate` does for private tasks."""

from typing import TYPE_CHECKING, Any

import click

from flockwise.reporting import print_json

if TYPE_CHECKING:
    from coordinator.task_bundle import TaskBundle
    from edge_client.privacy.rules import PrivacyRules
    from simulators.scenario import Scenario

__all__ = ["check_process_fleet", "owners_rules", "private_task", "run_secretly"]

_SIMULATED_BUDGET = 1e6


def private_task(bundle: "TaskBundle", options: dict[str, Any], report_goal: int) -> "TaskBundle":
    """The task as the options want it; itself if it is not private.

    Raises:
        InvalidConfig: The mechanism does not fit the task.
    """
    from coordinator.private_task import PrivacyWish, least_contributors, made_private

    if options["epsilon"] is None:
        if options["sampling_rate"] is not None or options["adaptive_clip"] is not None:
            raise click.UsageError("--sampling-rate and --adaptive-clip belong to --epsilon")
        return bundle
    wish = PrivacyWish(
        epsilon=options["epsilon"],
        num_rounds=options["privacy_rounds"] or options["rounds"],
        clipping_norm=options["clipping_norm"],
        min_contributors=options["min_contributors"] or least_contributors(report_goal),
        target_delta=options["delta"],
        mode=options["privacy_mode"],
        num_bands=options["privacy_bands"],
        adaptive_quantile=options["adaptive_clip"],
        sampling_rate=options["sampling_rate"],
    )
    return made_private(bundle, wish)


def owners_rules(bundle: "TaskBundle") -> "PrivacyRules | None":
    """Owners who agree to what is simulated; None, the simulator's own, unless they have to trust the coordinator."""
    from edge_client.privacy.rules import PrivacyBudget, PrivacyRules

    if bundle.plan.privacy is None or bundle.plan.privacy.mode != "central":
        return None
    budget = PrivacyBudget(epsilon=_SIMULATED_BUDGET)
    return PrivacyRules(budget=budget, min_noise_multiplier=0.0, modes=frozenset({"central"}))


def check_process_fleet(options: dict[str, Any]) -> None:
    """Refuses what a fleet of processes does not simulate.

    Raises:
        click.UsageError: Names it.
    """
    for name in ("privacy_bands", "adaptive_clip", "sampling_rate", "privacy_rounds", "min_contributors"):
        if options[name] not in (None, 1):
            raise click.UsageError(f"--{name.replace('_', '-')} is simulated with --fleet virtual alone")
    if options["privacy_mode"] != "distributed":
        raise click.UsageError("--privacy-mode is simulated with --fleet virtual alone")


def run_secretly(options: dict[str, Any], scenario: "Scenario", bundle: "TaskBundle") -> int:
    """Trains with secret Poisson cohorts and prints the report."""
    import dataclasses

    from simulators.secret_cohorts import SecretCohortRun, run_secret_cohorts

    for name in ("stragglers", "loss", "duplicates"):
        if options[name]:
            raise click.UsageError(f"--{name} has no meaning with --sampling-rate: such a fleet has no network")
    run = SecretCohortRun(
        scenario=scenario,
        plan=bundle.plan,
        sampling_rate=options["sampling_rate"],
        num_rounds=options["rounds"],
        dropout=options["dropout"],
    )
    show = None if options["as_json"] else lambda round_id: click.echo(f"round {round_id:4d}  committed")
    report = run_secret_cohorts(run, on_round=show)
    values = dataclasses.asdict(report)
    if options["as_json"]:
        print_json(values)
        return 0
    for name, value in values.items():
        click.echo(f"{name:28s} {value:.6g}" if isinstance(value, float) else f"{name:28s} {value}")
    return 0
