"""`flockwise query`: ask the fleet for a count, a mean, a histogram or quantiles, with differential privacy."""

import dataclasses
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from broker_link.errors import LinkError
from coordinator.errors import CoordinatorError
from flockwise.fleet_options import STARTED_FOR_THE_RUN, broker_with_login, certificate, roster_in_force
from flockwise.query_options import bounds_options, question_options
from flockwise.query_rehearsal import read_values, rehearse
from flockwise.reporting import one_line_errors, print_json
from flockwise.serve_confidentiality import confidential_bundle, confidentiality_values, directory_bytes
from flockwise.serve_encryption import encryption_key_bytes
from wire_protocol.errors import WireError
from wire_protocol.query import Query
from wire_protocol.query_answer import QueryAnswer, answer_query

if TYPE_CHECKING:
    from coordinator.server import ServerConfig

__all__ = ["query"]

_SUPPRESSED: Final = 3
_STOPPED: Final = 4
_errors_in_one_line = one_line_errors(CoordinatorError, LinkError, WireError, ValueError, OSError)


@click.group()
def query() -> None:
    """Ask the fleet a question about one value per device; every device adds noise, and charges its own budget.

    The coordinator of the population must not run meanwhile; start it again afterwards.

    Exit codes: 0 answered, 1 failed, 2 wrong usage, 3 too few devices answered, 4 stopped by a signal.

    Example: flockwise query mean --broker mqtt://127.0.0.1:1883 --population greenhouses --state-dir state
    --name temperature --period 2026-11 --of input_mean --low 0 --high 40 --epsilon 0.5 --min-contributors 100
    """


@query.command()
@bounds_options
@question_options
@_errors_in_one_line
def count(*, low: float, high: float, **options: Any) -> None:
    """How many devices have a value within the bounds.

    Exit codes: 0 answered, 1 failed, 2 wrong usage, 3 too few devices answered, 4 stopped by a signal.

    Example: flockwise query count --broker mqtt://127.0.0.1:1883 --population p --state-dir state
    --name well-filled --period 2026-11 --of num_examples --low 100 --high 1e9 --epsilon 0.5 --min-contributors 100
    """
    sys.exit(_ask(options, kind="count", edges=(low, high)))


@query.command()
@bounds_options
@question_options
@_errors_in_one_line
def mean(*, low: float, high: float, **options: Any) -> None:
    """The mean of the devices' values, each clamped to the bounds; and how many devices have one.

    Exit codes: 0 answered, 1 failed, 2 wrong usage, 3 too few devices answered, 4 stopped by a signal.

    Example: flockwise query mean --broker mqtt://127.0.0.1:1883 --population p --state-dir state
    --name temperature --period 2026-11 --of input_mean --column 0 --low 0 --high 40 --epsilon 0.5 --min-contributors 100
    """
    sys.exit(_ask(options, kind="mean", edges=(low, high)))


@query.command()
@click.option("--edges", required=True, help="Rising edges of the bins: 0,10,20,40. Values outside are not counted.")
@question_options
@_errors_in_one_line
def histogram(*, edges: str, **options: Any) -> None:
    """How many devices have a value in each bin.

    Exit codes: 0 answered, 1 failed, 2 wrong usage, 3 too few devices answered, 4 stopped by a signal.

    Example: flockwise query histogram --broker mqtt://127.0.0.1:1883 --population p --state-dir state
    --name sizes --period 2026-11 --of num_examples --edges 0,100,1000,10000 --epsilon 0.5 --min-contributors 100
    """
    try:
        values = tuple(float(edge) for edge in edges.split(","))
    except ValueError as error:
        raise click.UsageError(f"--edges must be numbers with commas between them, not {edges!r}") from error
    sys.exit(_ask(options, kind="histogram", edges=values))


@query.command()
@bounds_options
@click.option("--bins", type=int, default=256, show_default=True, help="Fineness: a power of 2.")
@click.option(
    "--quantile", "probabilities", type=click.FloatRange(0, 1, min_open=True, max_open=True), multiple=True,
    default=(0.25, 0.5, 0.75), show_default=True, help="Which; may be given again. More of them cost nothing.",
)  # fmt: skip
@question_options
@_errors_in_one_line
def quantiles(*, low: float, high: float, bins: int, probabilities: tuple[float, ...], **options: Any) -> None:
    """Quantiles of the devices' values, each clamped to the bounds.

    Exit codes: 0 answered, 1 failed, 2 wrong usage, 3 too few devices answered, 4 stopped by a signal.

    Example: flockwise query quantiles --broker mqtt://127.0.0.1:1883 --population p --state-dir state
    --name spread --period 2026-11 --of input_mean --low 0 --high 40 --quantile 0.5 --quantile 0.9 --epsilon 0.5 --min-contributors 100
    """
    sys.exit(_ask(options, kind="quantiles", edges=(low, high), num_bins=bins, probabilities=probabilities))


def _ask(options: dict[str, Any], *, probabilities: tuple[float, ...] = (), **asked: Any) -> int:
    from coordinator.broker_choice import broker_at, check_broker_choice
    from coordinator.down_signing import load_signer
    from coordinator.private_sum import check_private_rounds
    from coordinator.query_round import query_bundle
    from coordinator.query_run import AskedOnce
    from coordinator.state_lock import sole_coordinator

    question = Query(
        name=options["name"],
        period=options["period"],
        of=options["of"],
        column=options["column"],
        mode=options["mode"],
        epsilon=options["epsilon"],
        min_contributors=options["min_contributors"],
        **asked,
    )
    if options["rehearse"] is not None:
        return _rehearse(options, question, probabilities)
    config = _config(options, question)
    bundle = confidential_bundle(query_bundle(question), options)
    check_private_rounds(bundle.plan, config.policy)
    check_broker_choice(options["broker"])
    broker = broker_with_login(options)
    if broker in STARTED_FOR_THE_RUN:
        raise click.UsageError("name the fleet's --broker: one that is started for the question has no devices")
    asked_once = AskedOnce(question, options["state_dir"])
    if options["dry_run"]:
        print_json(
            _price(question)
            | confidentiality_values(bundle, config.policy.report_goal)
            | {"is_answered": asked_once.known is not None}
        )
        return 0
    stop = threading.Event()
    if asked_once.known is not None:
        outcome = asked_once.ask(config, bundle=bundle, stop=stop)
    else:
        with sole_coordinator(options["state_dir"], config.population), broker_at(broker) as url:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            outcome = asked_once.ask(
                dataclasses.replace(config, broker_url=url, signer=load_signer(options["state_dir"])),
                bundle=bundle,
                stop=stop,
            )
    if outcome.answer is None:
        return _no_answer(outcome.abandon_reason, question) if outcome.is_over else _STOPPED
    origin = "answered before" if outcome.was_known else "answered"
    _show(_read_again(outcome.answer, probabilities), as_json=options["as_json"], origin=origin)
    return 0


def _rehearse(options: dict[str, Any], question: Query, probabilities: tuple[float, ...]) -> int:
    values = read_values(options["rehearse"])
    if options["dry_run"]:
        print_json(_price(question) | {"would_ask": False, "num_virtual_devices": len(values)})
        return 0
    answer = rehearse(question, values)
    if answer is None:
        click.echo(
            f"no answer: of {len(values)} devices fewer than {question.min_contributors} answered; with fewer there is "
            "none. Owners who have said nothing refuse an epsilon above 3.3",
            err=True,
        )
        return _SUPPRESSED
    _show(_read_again(answer, probabilities), as_json=options["as_json"], origin="rehearsed")
    return 0


def _config(options: dict[str, Any], question: Query) -> "ServerConfig":
    from coordinator.admission import AdmissionPolicy
    from coordinator.opening import OpeningSettings
    from coordinator.query_run import query_schedule
    from coordinator.round_policy import RoundPolicy
    from coordinator.server import ServerConfig

    return ServerConfig(
        broker_url="mqtt://127.0.0.1",
        population=options["population"],
        policy=RoundPolicy(
            report_goal=max(options["max_devices"], question.min_contributors),
            min_reports=question.min_contributors,
            over_selection=1.0,
            selection_timeout_s=options["selection_timeout_s"],
            report_timeout_s=options["report_timeout_s"],
        ),
        schedule=query_schedule(),
        admission=AdmissionPolicy(),
        ca_file=options["ca_file"],
        certificate=certificate(options),
        roster_file=roster_in_force(options),
        directory=directory_bytes(options),
        encryption_keys=encryption_key_bytes(options),
        opening=OpeningSettings(give_up_s=options["opening_timeout_s"]),
    )


def _read_again(answer: QueryAnswer, probabilities: tuple[float, ...]) -> QueryAnswer:
    """The same sum read for these quantiles."""
    if not probabilities:
        return answer
    return answer_query(answer.query, answer.noisy_sum, num_reports=answer.num_reports, probabilities=probabilities)


def _price(question: Query) -> dict[str, Any]:
    """What a question costs and how exact its answer is, before anybody is asked."""
    least = answer_query(question, [0] * question.num_cells, num_reports=question.min_contributors)
    return {
        "query": msgspec.to_builtins(question),
        "num_cells": question.num_cells,
        "noise_stddev_devices": least.noise_stddev,
        "mechanism": msgspec.to_builtins(question.privacy_spec()),
        "would_ask": True,
    }


def _no_answer(reason: str | None, question: Query) -> int:
    click.echo(
        f"no answer: {reason}; with fewer than {question.min_contributors} answers there is none. Devices that answered "
        "have been charged; ask under another --period",
        err=True,
    )
    return _SUPPRESSED


def _show(answer: QueryAnswer, *, as_json: bool, origin: str) -> None:
    """Prints an answer. Origin: ``answered``, ``answered before`` or ``rehearsed``."""
    if as_json:
        print_json(msgspec.to_builtins(answer) | {"origin": origin})
        return
    asked = answer.query
    click.echo(
        f"{asked.name} ({asked.period}): {asked.kind} of {asked.of} over {answer.num_reports} devices, "
        f"epsilon {asked.epsilon:g}, {origin}"
    )
    for estimate in answer.estimates:
        click.echo(f"  {estimate.name:>20s} {estimate.value:12.4g}  ({estimate.low:.4g} to {estimate.high:.4g})")
