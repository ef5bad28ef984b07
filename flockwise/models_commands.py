"""`flockwise models`: the releases of a channel, their lineage, and their cards."""

from pathlib import Path

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

__all__ = ["models"]


@click.group()
def models() -> None:
    """List, show, compare and withdraw the signed releases of a channel.

    Exit codes: 0 done, 1 no such release or no usable channel, 2 wrong usage. Every verb knows --json.

    Example: flockwise models list --channel releases
    """


@models.command("list")
@channel_option
@json_option
@errors_in_one_line
def list_(*, channel: Path, as_json: bool) -> None:
    """List every release that is signed, and what the fleet is ordered to run.

    Exit codes: 0 done, 1 no usable channel, 2 wrong usage.

    Example: flockwise models list --channel releases
    """
    repository, book, _ = open_rollouts(channel)
    book.close()
    orders = repository.orders()
    rows = [msgspec.to_builtins(manifest) for manifest in repository.manifests()]
    if as_json:
        print_json({"releases": rows, "orders": {name: msgspec.to_builtins(order) for name, order in orders.items()}})
        return
    for manifest in repository.manifests():
        order = orders.get(manifest.name)
        role = ""
        if order is not None and manifest.number == order.baseline:
            role = "baseline"
        elif order is not None and manifest.number == order.candidate:
            role = f"candidate, {order.permille / 10:g} % of the fleet"
        epsilon = "" if manifest.lineage.epsilon is None else f"  epsilon {manifest.lineage.epsilon:.3g}"
        click.echo(
            f"{manifest.name:20} {manifest.number:5}  {manifest.model.num_bytes:10} bytes  round "
            f"{manifest.lineage.round_id:5}{epsilon}  {role}"
        )


@models.command()
@click.argument("name")
@click.argument("number", type=int)
@channel_option
@json_option
@errors_in_one_line
def show(*, name: str, number: int, channel: Path, as_json: bool) -> None:
    """Print the model card of a release (Markdown), or with --json its manifest.

    Exit codes: 0 done, 1 no such release or no usable channel, 2 wrong usage.

    Example: flockwise models show digits 3 --channel releases
    """
    from coordinator.releases.model_card import model_card

    repository, book, _ = open_rollouts(channel)
    book.close()
    manifest = repository.manifest(name, number)
    if as_json:
        print_json(msgspec.to_builtins(manifest))
    else:
        click.echo(model_card(manifest), nl=False)


@models.command()
@click.argument("name")
@click.argument("first", type=int)
@click.argument("second", type=int)
@channel_option
@json_option
@errors_in_one_line
def diff(*, name: str, first: int, second: int, channel: Path, as_json: bool) -> None:
    """Say in what two releases of a model differ.

    Exit codes: 0 done (also if they are alike), 1 no such release or no usable channel, 2 wrong usage.

    Example: flockwise models diff digits 2 3 --channel releases
    """
    from coordinator.releases.model_card import differences

    repository, book, _ = open_rollouts(channel)
    book.close()
    found = differences(repository.manifest(name, first), repository.manifest(name, second))
    if as_json:
        print_json({"differences": {field: list(pair) for field, pair in found.items()}})
        return
    for field, (one, other) in found.items():
        click.echo(f"{field:14} {one or '-'}  ->  {other or '-'}")


@models.command()
@click.argument("name")
@click.argument("number", type=int)
@channel_option
@key_option
@json_option
@dry_run_option
@errors_in_one_line
def withdraw(*, name: str, number: int, channel: Path, keys: tuple[Path, ...], as_json: bool, dry_run: bool) -> None:
    """Take a release out of the channel: no device accepts it any more. At most 16 can be live. Needs the targets key.

    What the fleet is ordered to run cannot be withdrawn; a device that has it keeps it. Its number is not used again.

    Exit codes: 0 withdrawn, 1 no such release, one that is ordered, or a key is missing, 2 wrong usage.

    Example: flockwise models withdraw digits 2 --channel releases --key targets.pem
    """
    repository, book, _ = open_rollouts(channel, keys)
    book.close()
    if dry_run:
        repository.check_can_withdraw(name, number)
    else:
        repository.withdraw_release(name, number)
    if as_json:
        print_json({"name": name, "number": number, "withdrawn": not dry_run})
    else:
        click.echo(f"{'would withdraw' if dry_run else 'withdrew'} {name} {number}")


@models.command()
@click.option("--state-dir", type=click.Path(path_type=Path), required=True, help="The coordinator's.")
@click.option("--task", "task_id", default="", help="Only this task's.")
@json_option
@errors_in_one_line
def committed(*, state_dir: Path, task_id: str, as_json: bool) -> None:
    """List every committed checkpoint of a coordinator with its lineage; check the signed log and every file.

    Note the head that is printed somewhere else: whoever holds the coordinator's key could write another log.

    Exit codes: 0 whole, 1 no registry, or one that is not what was written, 2 wrong usage.

    Example: flockwise models committed --state-dir state
    """
    from coordinator.commit_recorder import REGISTRY_DIRECTORY
    from coordinator.model_registry import read_registry

    entries, head = read_registry(state_dir / REGISTRY_DIRECTORY)
    found = [entry for entry in entries if task_id in {"", entry.task_id}]
    if as_json:
        print_json({"entries": [msgspec.to_builtins(entry) for entry in found], "head": head})
        return
    for entry in found:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in sorted(entry.metrics.items()))
        epsilon = "" if entry.epsilon is None else f"  epsilon {entry.epsilon:.4g}"
        click.echo(
            f"{entry.task_id} round {entry.round_id:5} {entry.kind:9} {entry.checkpoint_sha256[:16]} from "
            f"{entry.parent_sha256[:16] or '-':16}{epsilon}  {figures}"
        )
    click.echo(f"head {head}")
