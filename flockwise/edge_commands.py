"""`flockwise edge`: run and inspect the device daemon."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from broker_link.errors import LinkError
from edge_client.errors import EdgeClientError
from flockwise.edge_budget_command import budget
from flockwise.edge_directory_command import directory_request
from flockwise.edge_doctor_command import doctor
from flockwise.edge_install_commands import install, uninstall
from flockwise.edge_settings import config_option, load
from flockwise.eligible_command import eligible
from flockwise.reporting import one_line_errors, print_json
from wire_protocol.errors import WireError

if TYPE_CHECKING:
    from edge_client.config import EdgeConfig

__all__ = ["edge"]

_NO_ROUND: Final = 3
_REJECTED: Final = 4
_NOT_COUNTED: Final = 5

_json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and end.")
_errors_in_one_line = one_line_errors(EdgeClientError, LinkError)


@click.group()
def edge() -> None:
    """Run and inspect the device daemon.

    Settings come from a TOML file and from variables such as FLOCKWISE__BROKER__URL, which win.

    Example: flockwise edge doctor --config client.toml
    """


edge.add_command(doctor)
edge.add_command(install)
edge.add_command(uninstall)
edge.add_command(eligible)
edge.add_command(budget)
edge.add_command(directory_request)


@edge.command()
@config_option
@_json_option
@_dry_run_option
@_errors_in_one_line
def run(config_path: Path | None, *, as_json: bool, dry_run: bool) -> None:
    """Take part in rounds until stopped by SIGTERM or Ctrl-C. Its log goes to standard error.

    Exit codes: 0 stopped by a signal, 1 failed to start, 2 wrong usage.

    Example: flockwise edge run --config client.toml
    """
    config = load(config_path)
    if dry_run:
        _print_plan(config, as_json=as_json)
        return
    from edge_client.daemon import run as run_daemon

    _start_log(config, as_json=as_json)
    run_daemon(config)


@edge.command()
@config_option
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), help="Give up after this. [default: never]")
@_json_option
@_dry_run_option
@_errors_in_one_line
def once(config_path: Path | None, *, timeout_s: float | None, as_json: bool, dry_run: bool) -> None:
    """Take part in one round, then end.

    Exit codes: 0 the report was accepted, 1 failed to start, 2 wrong usage, 3 no round came in time (or a signal
    came first), 4 the report was rejected, 5 the round ended without it (withdrawn, closed, too late).

    Example: flockwise edge once --config client.toml --timeout-s 600
    """
    config = load(config_path)
    if dry_run:
        _print_plan(config, as_json=as_json)
        return
    from edge_client.daemon import once as run_once

    _start_log(config, as_json=as_json)
    outcome = run_once(config, timeout_s=timeout_s if timeout_s is not None else math.inf)
    if outcome is None:
        _print_outcome({"ending": "no_round"}, as_json=as_json)
        sys.exit(_NO_ROUND)
    reason = outcome.reason.value if outcome.reason is not None else None
    values = {"round_id": outcome.round_id, "ending": outcome.ending.value, "reason": reason}
    _print_outcome(values, as_json=as_json)
    sys.exit({"accepted": 0, "rejected": _REJECTED}.get(outcome.ending.value, _NOT_COUNTED))


@edge.command()
@config_option
@_json_option
@_dry_run_option
@_errors_in_one_line
def reset(config_path: Path | None, *, as_json: bool, dry_run: bool) -> None:
    """Forget earlier crashes, so that the device leaves safe mode at its next start. Everything else is kept.

    Stop the daemon first: it keeps the record in memory.

    Exit codes: 0 forgotten (or there was nothing), 1 a daemon is running or the state directory is not usable, 2 wrong
    usage.

    Example: flockwise edge reset --config client.toml
    """
    from edge_client.crash_guard import forget_crashes

    record = forget_crashes(Path(load(config_path).device.state_dir), only_look=dry_run)
    values = {
        "was_safe_mode": record.is_safe_mode,
        "reason": record.reason,
        "num_bad_starts": record.num_bad_starts,
        "num_trainer_deaths": record.num_trainer_deaths,
    }
    if as_json:
        print_json(values | {"dry_run": dry_run})
        return
    verb = "would forget" if dry_run else "forgot"
    click.echo(f"{verb} " + " ".join(f"{key}={json.dumps(value)}" for key, value in values.items()))


@edge.command()
@config_option
@click.option("--token", "token_text", envvar="FLOCKWISE_ENROL_TOKEN", help="Of flockwise coordinator enrol-token.")
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True)
@_json_option
@_dry_run_option
@one_line_errors(EdgeClientError, LinkError, WireError)
def enrol(config_path: Path | None, *, token_text: str | None, timeout_s: float, as_json: bool, dry_run: bool) -> None:
    """Make this device's key, if it has none, and have it enrolled. The daemon must not be running.

    A token on the command line is seen by this machine's other users; FLOCKWISE_ENROL_TOKEN is not.

    Exit codes: 0 enrolled, 1 refused or failed, 2 wrong usage.

    Example: FLOCKWISE_ENROL_TOKEN=fwt1... flockwise edge enrol --config client.toml
    """
    from edge_client.enrolment import enrol as enrol_device
    from wire_protocol.enrolment import EnrolmentToken

    if not token_text:
        raise click.UsageError("a token is needed: --token, or the variable FLOCKWISE_ENROL_TOKEN")
    config, token = load(config_path), EnrolmentToken.parse(token_text)
    device_id = config.device.id if dry_run else enrol_device(config, token, timeout_s=timeout_s)
    if as_json:
        print_json({"device_id": device_id, "population": config.device.population, "enrolled": not dry_run})
    else:
        click.echo(f"{'would enrol' if dry_run else 'enrolled'} {device_id} in {config.device.population}")


@edge.command("show-config")
@config_option
@_json_option
@_errors_in_one_line
def show_config(config_path: Path | None, *, as_json: bool) -> None:
    """Show the settings in force, from file, environment and defaults; passwords are left out.

    Exit codes: 0 shown, 1 the settings are not valid, 2 wrong usage.

    Example: FLOCKWISE__TRAINING__NUM_THREADS=2 flockwise edge show-config --config client.toml
    """
    from edge_client.config import config_as_dict

    values = config_as_dict(load(config_path))
    if as_json:
        print_json(values)
        return
    for section, entries in values.items():
        click.echo(f"[{section}]")
        for key, value in entries.items():
            click.echo(f"{key} = {json.dumps(value)}")


@edge.command("import-data")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), help="Label file, if SOURCE is .npy or raw.")
@click.option("--out", "target", type=click.Path(path_type=Path), required=True, help="Directory to make or replace.")
@click.option("--shape", "shape_text", help="Shape of one input, such as 28x28x1. [default: as in SOURCE]")
@click.option("--scale", "scale_text", default="1", show_default=True, help="Factor for the inputs, such as 1/255.")
@click.option(
    "--dtype", type=click.Choice(["uint8", "int16", "int32", "float32", "float64"]), help="Numbers in raw inputs."
)
@click.option(
    "--labels-dtype", type=click.Choice(["uint8", "int32", "int64", "float32"]), help="Numbers in raw labels."
)
@_json_option
@_dry_run_option
@_errors_in_one_line
def import_data(**options: Any) -> None:
    """Import examples from a CSV file, or from .npy or raw arrays, into a directory that the daemon can use.

    A CSV file needs a header row; the column 'label', or else the last one, is the class number; or columns whose
    names begin with 'target' are numbers to predict. If anything goes wrong, the examples that were there before stay.

    Exit codes: 0 imported, 1 the source or the target is not usable, 2 wrong usage.

    Example: flockwise edge import-data images.npy --labels labels.npy --scale 1/255 --out data
    """
    values = _import(options)
    if options["as_json"]:
        print_json(values)
    else:
        verb = "would import" if options["dry_run"] else "imported"
        click.echo(f"{verb} {values['num_examples']} examples of shape {values['x_shape']} into {values['path']}")


def _import(options: dict[str, Any]) -> dict[str, Any]:
    from edge_client.example_store import check_arrays, write_examples
    from edge_client.import_examples import read_array, read_csv_arrays, shaped

    source, target = options["source"], options["target"]
    scale, shape = _parse_scale(options["scale_text"]), _parse_shape(options["shape_text"])
    if source.suffix.lower() == ".csv":
        x, y = read_csv_arrays(source)
    elif options["labels"] is None:
        raise click.UsageError("arrays need their labels: --labels FILE")
    else:
        x, y = read_array(source, dtype=options["dtype"]), read_array(options["labels"], dtype=options["labels_dtype"])
    x = shaped(x, shape)
    check_arrays(x, y)
    if not options["dry_run"]:
        write_examples(target, x=x, y=y, scale=scale)
    return {"path": str(target), "num_examples": len(y), "x_shape": list(x.shape[1:]), "scale": scale}


def _parse_shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise click.UsageError(f"--shape {text!r} is no shape; write it like 28x28x1")
    return shape


def _parse_scale(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    try:
        scale = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        scale = math.nan
    if not math.isfinite(scale) or scale == 0:
        raise click.UsageError(f"--scale {text!r} is no factor; write it like 0.5 or 1/255")
    return scale


def _start_log(config: "EdgeConfig", *, as_json: bool) -> None:
    from edge_client.device_log import log_to_stderr

    log_to_stderr(config.device.log_level, style="json" if as_json else "text")


def _print_plan(config: "EdgeConfig", *, as_json: bool) -> None:
    """What a run with these settings would use; reads the examples."""
    from edge_client.config import config_as_dict
    from edge_client.example_store import open_examples

    examples = open_examples(Path(config.data.path))
    values = {
        "would_run": True,
        "population": config.device.population,
        "broker": config_as_dict(config)["broker"]["url"],
        "num_examples": examples.num_examples,
        "input_shape": list(examples.input_shape),
        "trainer": config.training.trainer,
    }
    if as_json:
        print_json(values)
    else:
        click.echo(" ".join(f"{key}={value}" for key, value in values.items()))


def _print_outcome(values: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(values)
    else:
        click.echo(" ".join(f"{key}={value}" for key, value in values.items() if value is not None))
