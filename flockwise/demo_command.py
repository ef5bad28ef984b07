"""`flockwise demo`: the whole loop on this machine, with real parts."""

import sys
from pathlib import Path
from typing import Any

import click

from flockwise.reporting import one_line_errors, print_json

__all__ = ["demo"]

_UNFINISHED = 3
_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"devices": 20, "rounds": 10, "epochs": 5, "batch_size": 16, "learning_rate": 0.1, "model": "mlp"},
    "mnist": {"devices": 5, "rounds": 10, "epochs": 1, "batch_size": 32, "learning_rate": 0.05, "model": "cnn"},
    "csv": {"devices": 1, "rounds": 10, "epochs": 5, "batch_size": 16, "learning_rate": 0.05, "model": "mlp"},
}

_PRIVATE_DEFAULTS: dict[str, Any] = {"devices": 60, "model": "linear", "epochs": 2}
"""Privacy needs many devices and a small model."""
_CONFIDENTIAL_EPSILON = 8.0
"""Of a confidential demo that names none: sums are taken of private updates."""


@click.command()
@click.option("--dataset", type=click.Choice(["digits", "mnist", "csv"]), default="digits", show_default=True)
@click.option(
    "--model",
    type=click.Choice(["mlp", "cnn", "linear"]),
    help="[default: mlp for digits, cnn for mnist, linear with --epsilon]",
)
@click.option("--devices", type=click.IntRange(1, 500), help="[default: 20 for digits, 5 for mnist]")
@click.option("--rounds", type=click.IntRange(1), help="Rounds to commit. [default: 10]")
@click.option("--epochs", type=click.IntRange(1), help="Local passes per round. [default: 5 for digits, 1 for mnist]")
@click.option("--batch-size", type=click.IntRange(1), help="[default: 16 for digits, 32 for mnist]")
@click.option("--learning-rate", type=float, help="Of the devices. [default: 0.1 for digits, 0.05 for mnist]")
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), default=0.9, show_default=True)
@click.option("--partition", type=click.Choice(["iid", "dirichlet", "label", "file"]), default="iid", show_default=True)
@click.option("--alpha", type=float, default=1.0, show_default=True, help="Of the Dirichlet partition.")
@click.option(
    "--broker",
    default="embedded",
    show_default=True,
    help="embedded, mosquitto, mqtt://host:port or mqtts://host:port.",
)
@click.option("--processes", type=click.IntRange(1), default=4, show_default=True, help="Processes for the devices.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where MNIST or the CSV files are.")
@click.option(
    "--out", "out_dir", type=click.Path(path_type=Path), default=Path("flockwise-demo"), show_default=True,
    help="Gets curve.png and report.json.",
)  # fmt: skip
@click.option("--epsilon", type=click.FloatRange(0, min_open=True), help="Device-level privacy of all rounds together.")
@click.option(
    "--confidentiality", type=click.Choice(["none", "helpers", "masks", "he"]), default="none", show_default=True,
    help="Who opens the sums, which the coordinator cannot take apart; with --epsilon 8 unless you name another.",
)  # fmt: skip
@click.option("--clipping-norm", type=float, default=0.5, show_default=True, help="Of updates, with --epsilon.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The report on standard output, progress on standard error.")
def demo(**options: Any) -> None:
    """Train on real handwritten digits over real device processes and a real MQTT broker.

    Exit codes: 0 all rounds committed, 1 failed, 2 wrong usage, 3 ended before all rounds were committed.

    Example: flockwise demo --dataset mnist --model cnn --devices 5 --rounds 10
    """
    if options["confidentiality"] != "none" and options["epsilon"] is None:
        options["epsilon"] = _CONFIDENTIAL_EPSILON
    defaults = _DEFAULTS[options["dataset"]] | (_PRIVATE_DEFAULTS if options["epsilon"] is not None else {})
    for name, value in defaults.items():
        if options[name] is None:
            options[name] = value
    sys.exit(_demo(options))


def _demo(options: dict[str, Any]) -> int:
    from broker_link.errors import LinkError
    from coordinator.errors import CoordinatorError
    from edge_client.errors import EdgeClientError
    from secure_sum.errors import SecureSumError
    from simulators.errors import SimulationError

    ours = (SimulationError, CoordinatorError, EdgeClientError, LinkError, SecureSumError)
    return one_line_errors(*ours, ValueError, OSError)(_run)(options)


def _run(options: dict[str, Any]) -> int:
    from rich.console import Console

    from simulators.demo import run_demo
    from simulators.demo_report import DemoConfig, DemoRound

    config = DemoConfig(
        dataset=options["dataset"],
        model=options["model"],
        num_devices=options["devices"],
        num_rounds=options["rounds"],
        num_epochs=options["epochs"],
        batch_size=options["batch_size"],
        learning_rate=options["learning_rate"],
        momentum=options["momentum"],
        partition=options["partition"],
        alpha=options["alpha"],
        broker=options["broker"],
        num_processes=options["processes"],
        data_dir=options["data_dir"],
        out_dir=options["out_dir"],
        seed=options["seed"],
        epsilon=options["epsilon"],
        clipping_norm=options["clipping_norm"],
        confidentiality=options["confidentiality"],
    )
    console = Console(stderr=options["as_json"])
    with console.status("starting") as status:

        def on_progress(text: str) -> None:
            console.print(f"[dim]· {text}[/dim]")
            status.update(text)

        def on_round(row: DemoRound) -> None:
            epsilon = "" if row.epsilon is None else f"  epsilon {row.epsilon:.3f}"
            console.print(
                f"  round {row.round_id:3d}  updates {row.num_reports}/{row.num_assigned}  test accuracy "
                f"{row.test_accuracy:7.2%}  loss {row.test_loss:.4f}{epsilon}  {row.duration_s:5.1f} s"
            )

        report = run_demo(config, on_progress=on_progress, on_round=on_round)
    if options["as_json"]:
        print_json(report.as_dict())
    else:
        console.print(_table(report))
        console.print(f"curve:  {config.out_dir / 'curve.png'}\nreport: {config.out_dir / 'report.json'}")
    return 0 if report.finished else _UNFINISHED


def _privacy_line(report: Any) -> str:
    spent = report.rounds[-1].epsilon if report.rounds else None
    if spent is None:
        return "none: the coordinator sees each device's update"
    who = report.who_must_be_believed or "the coordinator is trusted not to look at single updates"
    return (
        f"epsilon {spent:.3f} at delta {report.config.target_delta:g}, per device, for whoever sees the models; {who}"
    )


def _table(report: Any) -> Any:
    from rich.table import Table

    table = Table(title="What happened", show_header=False)
    rows = {
        "test accuracy": f"{report.final_accuracy:.2%} (examples that no device holds)",
        "privacy": _privacy_line(report),
        "federated evaluation": "  ".join(f"{name} {value:.4g}" for name, value in report.evaluation.items()) or "none",
        "devices, rounds": f"{report.config.num_devices}, {len(report.rounds)} committed, {report.num_abandoned} abandoned",
        "identity": f"{report.num_authenticated} devices, enrolled, signed all they said",
        "reports rejected": "  ".join(f"{name} {count}" for name, count in report.rejections.items()) or "none",
        "model": f"{report.num_parameters:,} parameters; file {report.model_bytes:,} bytes, "
        f"{sum(report.op_counts.values())} ops, all builtin",
        "distance from Keras": "  ".join(f"{name[4:]} {value:.1e}" for name, value in report.parity.items()),
        "seconds": "  ".join(f"{name} {value:.1f}" for name, value in report.seconds.items()),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
