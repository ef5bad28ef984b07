"""`flockwise coordinator`: run the coordinator of a fleet."""

import dataclasses
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from broker_link.broker_url import parse_broker_url
from broker_link.errors import LinkError
from coordinator.errors import CoordinatorError
from flockwise.broker_commands import broker_config, broker_login
from flockwise.fleet_options import broker_with_login, certificate, fleet_options, roster_in_force
from flockwise.privacy_options import privacy_options
from flockwise.probe_command import probe_acl
from flockwise.reporting import one_line_errors, print_json
from flockwise.roster_commands import devices, enrol_token
from flockwise.serve_confidentiality import (
    confidential_bundle,
    confidentiality_options,
    confidentiality_values,
    directory_bytes,
)
from flockwise.serve_encryption import encryption_key_bytes, forecast_text
from flockwise.serve_privacy import epsilon_text, epsilon_values, private_bundle, round_recorder, waiting_room
from wire_protocol.errors import WireError

__all__ = ["coordinator"]

_GAVE_UP = 3
_STOPPED = 4
_BUDGET_SPENT = 5


def _aggregation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how updates become the next model."""
    options = (
        click.option(
            "--server-optimizer",
            default="sgd",
            show_default=True,
            type=click.Choice(["sgd", "momentum", "adam", "adagrad", "yogi"]),
        ),
        click.option("--server-learning-rate", type=float, default=1.0, show_default=True),
        click.option("--clipping", type=click.Choice(["none", "fixed", "adaptive"]), default="none", show_default=True),
        click.option("--clipping-norm", type=float, help="With --clipping fixed, or on devices with --epsilon."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def coordinator() -> None:
    """Run the coordinator of a fleet."""


coordinator.add_command(enrol_token)
coordinator.add_command(devices)
coordinator.add_command(broker_config)
coordinator.add_command(broker_login)
coordinator.add_command(probe_acl)


@coordinator.command()
@click.option("--task", "task_dir", type=click.Path(path_type=Path), required=True, help="Bundle of flockwise export.")
@fleet_options
@click.option("--rounds", type=click.IntRange(1), required=True, help="Training rounds to commit before ending.")
@click.option("--report-goal", type=click.IntRange(1), required=True, help="Reports that are enough for a round.")
@click.option(
    "--min-reports", type=click.IntRange(1), help="Fewer at the deadline abandon it. [default: half the goal]"
)
@click.option("--over-selection", type=float, default=1.3, show_default=True, help="Cohort size / report goal.")
@click.option("--selection-timeout-s", type=float, default=60.0, show_default=True)
@click.option("--report-timeout-s", type=float, default=600.0, show_default=True)
@click.option("--evaluate-every", type=click.IntRange(0), default=0, show_default=True, help="Commits per evaluation.")
@_aggregation_options
@privacy_options
@confidentiality_options
@click.option("--max-update-norm", type=float, default=float("inf"), help="Reject updates with a larger L2 norm.")
@click.option(
    "--artefact",
    "artefact_dir",
    type=click.Path(path_type=Path, exists=True),
    help="Run this compiled aggregation (of coordinator compile) without TFF.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per round on standard output.")
@click.option("--dry-run", is_flag=True, help="Check the settings and the bundle, say what would run, and end.")
@one_line_errors(CoordinatorError, LinkError, WireError, ValueError, OSError)
def serve(**options: Any) -> None:
    """Run rounds over a broker until enough are committed. Goes on where it stopped if started again.

    Exit codes: 0 all rounds committed, 1 failed, 2 wrong usage, 3 gave up after too many abandoned rounds, 4 stopped
    by a signal before the end, 5 stopped because one more round would pass the privacy budget.

    Example: flockwise coordinator serve --task bundle --broker mqtt://127.0.0.1:1883 --population digits
    --state-dir state --report-goal 10 --rounds 50
    """
    sys.exit(_serve(options))


@coordinator.command(name="compile")
@click.option("--task", "task_dir", type=click.Path(path_type=Path), required=True, help="Bundle of flockwise export.")
@click.option("--out", "out_dir", type=click.Path(path_type=Path), required=True, help="Where to write the artefact.")
@_aggregation_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--dry-run", is_flag=True, help="Check the bundle and the settings, and write nothing.")
@one_line_errors(CoordinatorError, ValueError, OSError)
def compile_(**options: Any) -> None:
    """Compile a task's aggregation with TFF into files that run with TensorFlow alone.

    Exit codes: 0 written, 1 failed, 2 wrong usage.

    Example: flockwise coordinator compile --task bundle --out artefact --server-optimizer adam
    --server-learning-rate 0.01
    """
    from coordinator.server import write_artefact
    from coordinator.task_bundle import read_task_bundle

    bundle = read_task_bundle(options["task_dir"])
    spec = _aggregation_spec(options)
    num_bytes = 0 if options["dry_run"] else write_artefact(bundle, spec, options["out_dir"])
    values = {"task_id": bundle.task_id, "out": str(options["out_dir"]), "num_bytes": num_bytes}
    if options["as_json"]:
        print_json(values | {"written": not options["dry_run"]})
    else:
        click.echo(f"{'would write' if options['dry_run'] else 'wrote'} {values['out']} ({num_bytes} bytes)")


def _aggregation_spec(options: dict[str, Any]) -> Any:
    from coordinator.aggregation_spec import AggregationSpec

    return AggregationSpec(
        server_optimizer=options["server_optimizer"],
        server_learning_rate=options["server_learning_rate"],
        clipping=options["clipping"],
        clipping_norm=options["clipping_norm"],
    )


def _serve(options: dict[str, Any]) -> int:
    from coordinator.broker_choice import broker_at, check_broker_choice
    from coordinator.commit_recorder import CommitRecorder
    from coordinator.down_signing import load_signer, public_key_text
    from coordinator.late_aggregator import LateAggregator
    from coordinator.private_sum import check_private_rounds
    from coordinator.server import open_task_state, run_rounds
    from coordinator.state_lock import sole_coordinator
    from coordinator.task_bundle import read_task_bundle

    bundle = confidential_bundle(private_bundle(read_task_bundle(options["task_dir"]), options), options)
    spec = _aggregation_spec(options)
    config = _server_config(options, bundle, broker_url="mqtt://127.0.0.1")
    check_private_rounds(bundle.plan, config.policy)
    check_broker_choice(options["broker"])
    broker = broker_with_login(options)
    if options["dry_run"]:
        print_json(
            {
                "task_id": bundle.task_id,
                "num_parameters": bundle.plan.num_parameters,
                "would_run": True,
                "cohort_size": config.policy.cohort_size,
                "rounds": options["rounds"],
                "privacy": msgspec.to_builtins(bundle.plan.privacy),
            }
            | confidentiality_values(bundle, options["report_goal"])
        )
        return 0
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with sole_coordinator(options["state_dir"], config.population), broker_at(broker) as url:
        task = open_task_state(options["state_dir"], bundle)
        click.echo(
            f"coordinator task={bundle.task_id} broker={parse_broker_url(url)} commits={task.state.num_commits} "
            "compiling the aggregation while devices are answered ...",
            err=True,
        )
        told = confidentiality_values(bundle, options["report_goal"])
        if told:
            click.echo(f"confidentiality {told['confidentiality']}: {told['who_must_be_believed']}", err=True)
        if "forecast" in told:
            click.echo(forecast_text(told["forecast"]), err=True)
        signer = load_signer(options["state_dir"])
        config = dataclasses.replace(config, broker_url=url, signer=signer)
        click.echo(f"devices may pin broker.coordinator_key = {public_key_text(signer.public_key)!r}", err=True)
        note = round_recorder(options["state_dir"], bundle)
        registry = CommitRecorder(options["state_dir"], bundle)
        registry.catch_up(task.state)
        show = _print_round_json if options["as_json"] else _print_round_line

        def on_round(summary: Any, state: Any) -> None:
            registry.note(summary, state)
            note(summary)
            show(summary, bundle)

        loop = run_rounds(
            config,
            bundle=bundle,
            aggregator=LateAggregator(lambda: _make_aggregator(options, bundle, spec, config.policy)),
            task=task,
            on_round=on_round,
            stop=stop,
        )
    if loop.gave_up:
        return _GAVE_UP
    if loop.budget_is_spent:
        click.echo("error: one more round would pass the privacy budget of this task; it is not raised", err=True)
        return _BUDGET_SPENT
    return 0 if loop.is_done else _STOPPED


def _make_aggregator(options: dict[str, Any], bundle: Any, spec: Any, policy: Any) -> Any:
    from coordinator.private_sum import private_aggregator
    from coordinator.server import artefact_aggregator, tff_aggregator

    if options["artefact_dir"] is not None:
        inner = artefact_aggregator(options["artefact_dir"], bundle)
    else:
        inner = tff_aggregator(bundle, spec)
    return private_aggregator(inner, bundle.plan, policy)


def _server_config(options: dict[str, Any], bundle: Any, *, broker_url: str) -> Any:
    from coordinator.admission import AdmissionPolicy
    from coordinator.opening import OpeningSettings
    from coordinator.round_loop import RoundSchedule
    from coordinator.round_policy import RoundPolicy
    from coordinator.server import ServerConfig

    goal = options["report_goal"]
    return ServerConfig(
        broker_url=broker_url,
        population=options["population"],
        policy=RoundPolicy(
            report_goal=goal,
            min_reports=options["min_reports"] or max(1, goal // 2),
            over_selection=options["over_selection"],
            selection_timeout_s=options["selection_timeout_s"],
            report_timeout_s=options["report_timeout_s"],
            **waiting_room(bundle),
        ),
        schedule=RoundSchedule(num_commits=options["rounds"], evaluate_every=options["evaluate_every"]),
        admission=AdmissionPolicy(max_update_norm=options["max_update_norm"]),
        ca_file=options["ca_file"],
        certificate=certificate(options),
        roster_file=roster_in_force(options),
        directory=directory_bytes(options),
        encryption_keys=encryption_key_bytes(options),
        opening=OpeningSettings(give_up_s=options["opening_timeout_s"]),
    )


def _round_values(summary: Any) -> dict[str, Any]:
    return {
        "round_id": summary.round_id,
        "kind": summary.kind.value,
        "state": summary.state.value,
        "abandon_reason": summary.abandon_reason,
        "num_assigned": summary.num_assigned,
        "num_reports": summary.num_reports,
        "metrics": dict(summary.metrics),
        "duration_s": round(summary.duration_s, 3),
        "num_commits": summary.num_commits,
        "refusals": dict(summary.refusals),
    }


def _print_round_json(summary: Any, bundle: Any) -> None:
    click.echo(json.dumps(_round_values(summary) | epsilon_values(summary, bundle)))
    sys.stdout.flush()


def _print_round_line(summary: Any, bundle: Any) -> None:
    words = [f"{name}={value:.4g}" for name, value in summary.metrics.items()]
    words += [f"refused_{reason}={num}" for reason, num in summary.refusals.items()]
    click.echo(
        f"round {summary.round_id} {summary.kind.value} {summary.state.value} "
        f"{f'({summary.abandon_reason}) ' if summary.abandon_reason else ''}"
        f"reports={summary.num_reports}/{summary.num_assigned} in {summary.duration_s:.1f} s {' '.join(words)}"
        f"{epsilon_text(summary, bundle)}"
    )
