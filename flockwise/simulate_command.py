"""`flockwise simulate`: a fleet of any size on this machine."""

import sys
from pathlib import Path
from typing import Any

import click

from flockwise.privacy_options import privacy_options, take_privacy_file
from flockwise.reporting import one_line_errors, print_json
from flockwise.serve_privacy import waiting_room
from flockwise.simulate_privacy import check_process_fleet, owners_rules, private_task, run_secretly

__all__ = ["simulate"]

_UNFINISHED = 3


@click.command()
@click.option(
    "--fleet",
    type=click.Choice(["virtual", "processes"]),
    default="virtual",
    show_default=True,
    help="In memory on virtual time, or real device processes on a real broker.",
)
@click.option("--devices", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Rounds to commit.")
@click.option(
    "--report-goal", type=click.IntRange(1), help="Reports that are enough. [default: a twentieth, at least 5]"
)
@click.option("--over-selection", type=float, default=1.5, show_default=True)
@click.option(
    "--dropout",
    type=click.FloatRange(0, 0.95),
    default=0.0,
    show_default=True,
    help="Chance that a device vanishes while it trains.",
)
@click.option(
    "--stragglers",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Chance that training takes 20 times as long.",
)
@click.option("--loss", type=click.FloatRange(0, 0.9), default=0.0, show_default=True, help="Chance a message is lost.")
@click.option(
    "--duplicates",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Chance that a message arrives twice.",
)
@click.option("--partition", type=click.Choice(["iid", "dirichlet", "label", "file"]), default="iid", show_default=True)
@click.option("--alpha", type=float, default=1.0, show_default=True, help="Of the Dirichlet partition.")
@click.option("--dataset", type=click.Choice(["digits", "mnist", "csv"]), default="digits", show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where MNIST or the CSV files are.")
@click.option("--epochs", type=click.IntRange(1), default=2, show_default=True, help="Local passes per round.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--learning-rate", type=float, default=0.2, show_default=True)
@click.option("--aggregator", type=click.Choice(["numpy", "tff"]), default="numpy", show_default=True)
@click.option("--broker", default="embedded", show_default=True, help="With --fleet processes.")
@click.option(
    "--out",
    "out_dir",
    type=click.Path(path_type=Path),
    default=Path("flockwise-simulation"),
    show_default=True,
    help="Gets curve and report, with --fleet processes.",
)
@privacy_options
@click.option(
    "--clipping-norm", type=click.FloatRange(0, min_open=True), default=0.5, show_default=True, help="With --epsilon."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def simulate(**options: Any) -> None:
    """Simulate a federated training. The virtual fleet trains softmax regression, exactly, on each device.

    Every device runs the real device agent and the real coordinator; the same seed gives the same run, but for noise,
    which has no seed. With --sampling-rate the coordinator knows everybody and draws secret Poisson cohorts, the one
    setting in which amplification by sampling is claimed; there is no network then.

    Exit codes: 0 all rounds committed, 1 failed, 2 wrong usage, 3 ended before all rounds were committed.

    Example: flockwise simulate --devices 1000 --dropout 0.3 --rounds 20
    """
    sys.exit(_simulate(options))


def _simulate(options: dict[str, Any]) -> int:
    from broker_link.errors import LinkError
    from coordinator.errors import CoordinatorError
    from simulators.errors import SimulationError

    guarded = one_line_errors(SimulationError, CoordinatorError, LinkError, ValueError)
    guarded(take_privacy_file)(options)
    run = _run_processes if options["fleet"] == "processes" else _run_virtual
    return guarded(run)(options)


def _run_virtual(options: dict[str, Any]) -> int:
    from coordinator.round_loop import RoundSchedule
    from coordinator.round_policy import RoundPolicy
    from simulators.scenario import load_scenario
    from simulators.virtual_fleet import BadNetwork, BadWorld
    from simulators.virtual_run import VirtualRun, linear_task, run_virtual

    scenario = load_scenario(
        options["dataset"],
        num_devices=options["devices"],
        partition=options["partition"],
        alpha=options["alpha"],
        seed=options["seed"],
        data_dir=options["data_dir"],
    )
    goal = options["report_goal"] or min(scenario.num_devices, max(5, scenario.num_devices // 20))
    features = int(scenario.dataset.x_train[0].size)
    bundle = linear_task(
        features,
        scenario.dataset.num_classes,
        batch_size=options["batch_size"],
        num_epochs=options["epochs"],
        learning_rate=options["learning_rate"],
        seed=options["seed"],
    )
    if options["sampling_rate"] is not None:
        goal = max(1, round(options["sampling_rate"] * scenario.num_devices))
    bundle = private_task(bundle, options, goal)
    if options["sampling_rate"] is not None:
        return run_secretly(options, scenario, bundle)
    least = max(1, goal // 2) if bundle.plan.privacy is None else bundle.plan.privacy.min_contributors
    run = VirtualRun(
        scenario=scenario,
        plan=bundle.plan,
        policy=RoundPolicy(
            report_goal=goal,
            min_reports=least,
            over_selection=options["over_selection"],
            report_timeout_s=300.0,
            **waiting_room(bundle),
        ),
        schedule=RoundSchedule(num_commits=options["rounds"]),
        world=BadWorld(
            dropout=options["dropout"],
            straggler=options["stragglers"],
            network=BadNetwork(loss=options["loss"], duplication=options["duplicates"]),
        ),
        seed=options["seed"],
        privacy=owners_rules(bundle),
    )
    aggregator = None
    if options["aggregator"] == "tff":
        from coordinator.aggregation_spec import AggregationSpec
        from coordinator.server import tff_aggregator

        aggregator = tff_aggregator(bundle, AggregationSpec())
    report = run_virtual(run, aggregator=aggregator, on_round=None if options["as_json"] else _print_round)
    _print_report(report, scenario.num_devices, as_json=options["as_json"])
    return 0 if report.finished else _UNFINISHED


def _print_round(summary: Any) -> None:
    loss = f"  training loss {summary.metrics['loss']:.4f}" if "loss" in summary.metrics else ""
    epsilon = "" if summary.epsilon is None else f"  epsilon let through {summary.epsilon:.4f}"
    click.echo(
        f"round {summary.round_id:4d}  {summary.state.value:9s}  reports {summary.num_reports:4d} of "
        f"{summary.num_assigned:4d}  {summary.duration_s:7.1f} virtual s{loss}{epsilon}"
    )


def _print_report(report: Any, num_devices: int, *, as_json: bool) -> None:
    values = {
        "num_devices": num_devices,
        "num_commits": report.num_commits,
        "epsilon_let_through": report.rounds[-1].epsilon if report.rounds else None,
        "num_abandoned": report.num_abandoned,
        "finished": report.finished,
        "test_accuracy": round(report.test_accuracy, 4),
        "test_loss": round(report.test_loss, 4),
        "rejections": dict(report.rejections),
        "num_vanished": report.num_vanished,
        "num_messages_delivered": report.num_messages_delivered,
        "num_messages_lost": report.num_messages_lost,
        "virtual_s": round(report.virtual_s, 1),
    }
    if as_json:
        print_json(values)
        return
    for name, value in values.items():
        click.echo(f"{name:24s} {value}")


def _run_processes(options: dict[str, Any]) -> int:
    check_process_fleet(options)
    from simulators.demo import run_demo
    from simulators.demo_report import DemoConfig

    config = DemoConfig(
        out_dir=options["out_dir"],
        dataset=options["dataset"],
        model="mlp" if options["dataset"] != "mnist" else "cnn",
        num_devices=options["devices"],
        num_rounds=options["rounds"],
        partition=options["partition"],
        alpha=options["alpha"],
        num_epochs=options["epochs"],
        batch_size=options["batch_size"],
        learning_rate=options["learning_rate"],
        broker=options["broker"],
        data_dir=options["data_dir"],
        seed=options["seed"],
        epsilon=options["epsilon"],
        clipping_norm=options["clipping_norm"],
    )
    report = run_demo(config, on_progress=lambda text: click.echo(text, err=True), on_round=lambda _: None)
    values = report.as_dict()
    if options["as_json"]:
        print_json(values)
    else:
        for name, value in values.items():
            click.echo(f"{name:24s} {value}")
    return 0 if report.finished else _UNFINISHED
