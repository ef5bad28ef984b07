"""`flockwise rollout`: bring a release to the fleet in stages, watch it, stop it, take it back."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec

from flockwise.release_options import (
    channel_option,
    dry_run_option,
    errors_in_one_line,
    json_option,
    key_option,
    open_rollouts,
)
from flockwise.reporting import print_json

__all__ = ["rollout"]

_PERMILLE_PER_PERCENT = 10


@click.group()
def rollout() -> None:
    """Roll a release out in stages, and take it back.

    The commands sign orders; `flockwise rollout serve` keeps them on the broker, hears what devices say, and moves
    stages by the gates. It need not run for a command to work.

    Exit codes: 0 done, 1 refused (the reason is on standard error), 2 wrong usage. Every verb knows --json.

    Example: flockwise rollout start digits 3 --channel releases
    """


def _percents(text: str) -> tuple[int, ...]:
    try:
        return tuple(round(float(part) * _PERMILLE_PER_PERCENT) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: write percents with commas, such as 1,5,25,100") from error


@rollout.command()
@click.argument("name")
@click.argument("number", type=int)
@channel_option
@key_option
@click.option("--stages", default="1,5,25,100", show_default=True, help="Shares of the fleet, in percent.")
@click.option("--tag", "tags", multiple=True, help="Only devices with this tag or hardware class. May be repeated.")
@click.option("--min-devices", type=click.IntRange(1), default=3, show_default=True, help="That must have tried it.")
@click.option("--min-success", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="To go on.")
@click.option("--max-failures", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Beyond: take back.")
@click.option("--max-crashes", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Beyond: take back.")
@click.option("--max-latency-ratio", type=click.FloatRange(0, min_open=True), default=1.5, show_default=True)
@click.option("--max-accuracy-drop", type=click.FloatRange(0, 1), default=0.01, show_default=True)
@click.option("--max-stage-h", type=click.FloatRange(0, min_open=True), default=24.0, show_default=True)
@json_option
@dry_run_option
@errors_in_one_line
def start(**options: Any) -> None:
    """Begin a rollout: the first stage is ordered.

    Exit codes: 0 begun, 1 refused: no such release, worse in federated evaluation, or another rollout is under way, 2
    wrong usage.

    Example: flockwise rollout start digits 3 --channel releases --stages 5,100 --min-devices 10
    """
    from coordinator.releases.gates import GateRules

    rules = GateRules(
        min_devices=options["min_devices"],
        min_success=options["min_success"],
        max_failures=options["max_failures"],
        max_crashes=options["max_crashes"],
        max_latency_ratio=options["max_latency_ratio"],
        max_accuracy_drop=options["max_accuracy_drop"],
        max_stage_s=options["max_stage_h"] * 3600.0,
    )
    _, book, rollouts = open_rollouts(options["channel"], options["keys"])
    begin = rollouts.plan if options["dry_run"] else rollouts.start
    try:
        made = begin(
            options["name"], options["number"], stages=_percents(options["stages"]), rules=rules, tags=options["tags"]
        )
    finally:
        book.close()
    _show(made, as_json=options["as_json"], is_done=not options["dry_run"])


@rollout.command()
@click.argument("name", required=False, default="")
@channel_option
@json_option
@errors_in_one_line
def status(*, name: str, channel: Path, as_json: bool) -> None:
    """Show rollouts: where each stands, what devices said, and what happened.

    Exit codes: 0 done, 1 no usable channel, 2 wrong usage.

    Example: flockwise rollout status digits --channel releases
    """
    _, book, rollouts = open_rollouts(channel)
    try:
        found = [(number, made, rollouts.evidence(made)) for number, made in book.rollouts(name)]
    finally:
        book.close()
    if as_json:
        print_json({"rollouts": [_as_dict(number, made, evidence) for number, made, evidence in found]})
        return
    for number, made, evidence in found:
        click.echo(f"{number}: {_line(made)}")
        failures = ", ".join(f"{kind.value} {num}" for kind, num in evidence.failures.items()) or "none"
        click.echo(
            f"   fetching {evidence.num_fetching}, on trial {evidence.num_trial}, settled {evidence.num_settled}, "
            f"failures: {failures}"
        )
        for step in made.steps:
            click.echo(f"   {step.what} at {step.permille / _PERMILLE_PER_PERCENT:g} %  {step.reason}")


def _verb(verb: str, summary: str, code_1: str) -> None:
    """Makes ``pause``, ``resume`` and ``abort``, which differ in a word."""

    @rollout.command(
        verb,
        help=f"{summary}\n\nExit codes: 0 done, 1 {code_1}, 2 wrong usage.\n\n"
        f"Example: flockwise rollout {verb} digits --channel releases",
    )
    @click.argument("name")
    @channel_option
    @key_option
    @click.option("--reason", default="by the operator", show_default=True, help="For the book.")
    @json_option
    @dry_run_option
    @errors_in_one_line
    def command(*, name: str, channel: Path, keys: tuple[Path, ...], reason: str, as_json: bool, dry_run: bool) -> None:
        _, book, rollouts = open_rollouts(channel, keys)
        try:
            made = rollouts.check(name, verb) if dry_run else getattr(rollouts, verb)(name, reason)
        finally:
            book.close()
        _show(made, as_json=as_json, is_done=not dry_run)


_verb("pause", "Stop a rollout where it is: devices in the stage keep what they have.", "no rollout is running")
_verb("resume", "Go on with the present stage; its time begins anew.", "no rollout is paused")
_verb("abort", "Order everybody back to the baseline.", "no rollout is under way")


@rollout.command()
@click.argument("name")
@click.argument("number", type=int)
@channel_option
@key_option
@json_option
@dry_run_option
@errors_in_one_line
def rollback(*, name: str, number: int, channel: Path, keys: tuple[Path, ...], as_json: bool, dry_run: bool) -> None:
    """Order the whole fleet to run an earlier release, at once. Devices that still have it switch without a download.

    Exit codes: 0 ordered, 1 no such release, 2 wrong usage.

    Example: flockwise rollout rollback digits 2 --channel releases
    """
    repository, book, rollouts = open_rollouts(channel, keys)
    try:
        if dry_run:
            repository.manifest(name, number)
            repository.check_can_order()
        else:
            rollouts.roll_back(name, number)
    finally:
        book.close()
    if as_json:
        print_json({"name": name, "number": number, "ordered": not dry_run})
    else:
        click.echo(f"{'would order' if dry_run else 'ordered'} the whole fleet to run {name} {number}")


@rollout.command()
@channel_option
@click.option("--population", required=True, help="Name of the population.")
@click.option("--broker", required=True, help="mqtts://host:8883, or mqtt://127.0.0.1:1883.")
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False), help="PEM file of the CA to trust.")
@click.option("--cert-file", type=click.Path(exists=True, dir_okay=False), help="Our certificate.")
@click.option("--key-file", type=click.Path(exists=True, dir_okay=False), help="Its private key.")
@click.option(
    "--roster", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Believe its devices alone."
)
@click.option("--once", is_flag=True, help="End when everything is on the broker.")
@json_option
@errors_in_one_line
def serve(**options: Any) -> None:
    """Keep the channel on the broker, hear what devices say, and move rollouts by their gates, until stopped.

    Exit codes: 0 stopped, 1 the channel, the roster or the broker's address cannot be used, 2 wrong usage.

    Example: flockwise rollout serve --channel releases --population digits --broker mqtts://broker.example
    """
    from broker_link.tls import ClientCertificate
    from coordinator.releases.serving import run_station

    if bool(options["cert_file"]) != bool(options["key_file"]):
        raise click.UsageError("--cert-file and --key-file belong together")
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    pair = {name: options[name] for name in ("cert_file", "key_file")}
    certificate = ClientCertificate(**pair) if options["cert_file"] else None
    station = run_station(
        directory=options["channel"],
        population=options["population"],
        broker_url=options["broker"],
        ca_file=options["ca_file"],
        certificate=certificate,
        roster_file=options["roster"],
        stop=stop,
        until=(lambda station: station.is_published) if options["once"] else (lambda _: False),
    )
    figures = {"published": station.num_published, "bytes": station.num_bytes_published}
    if options["as_json"]:
        print_json(figures)
    else:
        click.echo(f"published {figures['published']} messages, {figures['bytes']} bytes")


def _show(made: Any, *, as_json: bool, is_done: bool) -> None:
    if as_json:
        print_json(msgspec.to_builtins(made) | {"done": is_done})
    else:
        click.echo(("" if is_done else "would be: ") + _line(made))


def _line(made: Any) -> str:
    return (
        f"{made.name} {made.baseline} -> {made.candidate}: {made.state.value}, "
        f"{made.permille / _PERMILLE_PER_PERCENT:g} % of the fleet"
    )


def _as_dict(number: int, made: Any, evidence: Any) -> dict[str, Any]:
    failures = {kind.value: num for kind, num in evidence.failures.items()}
    counts = {"fetching": evidence.num_fetching, "trial": evidence.num_trial, "settled": evidence.num_settled}
    shown: dict[str, Any] = msgspec.to_builtins(made)
    return shown | {"id": number, "devices": counts, "failures": failures}
