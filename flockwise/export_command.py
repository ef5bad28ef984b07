"""``flockwise export``: a Keras model becomes a bundle that devices can train."""

import os
import pathlib
from typing import Any, NoReturn, get_args

import click
import msgspec
import rich.console
import rich.table

from flockwise.export_explain import explain_bundle
from flockwise.zoo_listing import print_zoo
from wire_protocol.plan import LossName

__all__ = ["export"]

_EXIT_USAGE = 2
_EXIT_UNSUPPORTED = 3
_EXIT_PARITY = 4
_OF_THE_LOSS = ("loss", "huber_delta")


@click.command(
    epilog="\b\nExample:\n  flockwise export zoo:mnist_cnn --out bundle --batch-size 32 --learning-rate 0.05",
)
@click.argument("model", required=False)
@click.option("--out", type=click.Path(path_type=pathlib.Path), help="Directory to write the bundle to.")
@click.option("--batch-size", type=click.IntRange(1, 65536), help="Examples per step. [default: 32]")
@click.option("--learning-rate", type=float, help="Of the device's optimizer. [default: 0.05]")
@click.option("--optimizer", type=click.Choice(["sgd", "adam", "adamw"]), help="On the device. [default: sgd]")
@click.option("--momentum", type=float, help="Of sgd; 0 is plain SGD. [default: 0]")
@click.option("--nesterov", is_flag=True, default=None, help="Nesterov's momentum.")
@click.option("--weight-decay", type=float, help="Of adamw, decoupled. [default: 0]")
@click.option("--proximal-mu", type=float, help="FedProx's term; 0 leaves it out. [default: 0]")
@click.option(
    "--per-example-clip",
    "per_example_clipping_norm",
    type=click.FloatRange(0, min_open=True),
    help="Scale each example's gradient to this norm at most, in every step. [default: not done]",
)
@click.option(
    "--loss",
    type=click.Choice(get_args(LossName)),
    help="What to minimise. [default: what MODEL was compiled with, or else sparse_categorical_crossentropy]",
)
@click.option("--huber-delta", type=float, help="Of --loss huber: where it becomes linear. [default: 1]")
@click.option("--epochs", "num_epochs", type=click.IntRange(1, 1000), help="Local passes per round. [default: 1]")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of batch order, dropout, zoo weights."
)
@click.option("--list-zoo", is_flag=True, help="List the models that come with Flockwise, and their plans.")
@click.option(
    "--explain",
    type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path),
    help="Print the certificate of a bundle instead of exporting.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--dry-run", is_flag=True, help="Convert and check, but write nothing; --out is then optional.")
def export(
    *,
    model: str | None,
    out: pathlib.Path | None,
    seed: int,
    list_zoo: bool,
    explain: pathlib.Path | None,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Export MODEL as a trainable TFLite bundle.

    MODEL is a .keras or .h5 file, or zoo:NAME for a model that comes with Flockwise (see --list-zoo); such a model
    brings its own plan, of which any part can be given otherwise (with another --optimizer, its learning rate and
    momentum are the general defaults). The bundle is model.tflite (builtin ops only, no weights), plan.json,
    initial.safetensors, graph.json (for flockwise freeze) and certificate.json. The exported file is run in LiteRT and
    compared with Keras; if they differ, nothing is written.

    \b
    Exit codes:
      0  exported (or, with --dry-run, would be)
      2  wrong usage: no such model or bundle, an option out of range, --out holds other files
      3  the model has a layer or an option that cannot be exported
      4  the exported file does not compute what Keras computes
    """  # noqa: D301 - \b is click's mark for a paragraph to leave alone
    if list_zoo:
        print_zoo(as_json=as_json)
        return
    if explain is not None:
        explain_bundle(explain, as_json=as_json)
        return
    if model is None:
        raise click.UsageError("name a model: a .keras or .h5 file, or zoo:NAME (--list-zoo lists them)")
    if out is None and not dry_run:
        raise click.UsageError("name a directory with --out, or use --dry-run")
    if options["huber_delta"] is not None and options["loss"] != "huber":
        raise click.UsageError("--huber-delta belongs to --loss huber")
    result = _export(model, out=None if dry_run else out, quiet=as_json, given={"seed": seed, **options})
    if as_json:
        click.echo(msgspec.json.encode(_summary(result, None if dry_run else out)).decode())
    else:
        _print_result(result, None if dry_run else out)


def _export(model: str, *, out: pathlib.Path | None, quiet: bool, given: dict[str, Any]) -> Any:
    """Runs the export; errors become exit codes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from model_export.errors import ExportError, NotABundle, ParityRefused, UnreadableModel
    from model_export.zoo_presets import fields_for
    from wire_protocol.errors import MalformedMessage

    plan_fields = fields_for(model, {name: value for name, value in given.items() if name not in _OF_THE_LOSS})
    console = rich.console.Console(stderr=True, quiet=quiet)
    with console.status("loading TensorFlow") as status:
        from model_export.exporter import build_export, export_model
        from model_export.model_files import open_model

        try:
            keras_model = open_model(model, seed=given["seed"])
            loss = _loss(given["loss"], given["huber_delta"])
            if out is None:
                return build_export(keras_model, loss=loss, on_stage=status.update, **plan_fields)
            return export_model(keras_model, out_dir=out, loss=loss, on_stage=status.update, **plan_fields)
        except (UnreadableModel, NotABundle, MalformedMessage) as error:
            _fail(error, _EXIT_USAGE)
        except ParityRefused as error:
            _fail(error, _EXIT_PARITY)
        except ExportError as error:
            _fail(error, _EXIT_UNSUPPORTED)


def _loss(name: LossName | None, huber_delta: float | None) -> Any:
    """The loss that was asked for; ``None``: the model's own."""
    from model_export.loss_spec import LossSpec

    return None if name is None else LossSpec(name=name, huber_delta=1.0 if huber_delta is None else huber_delta)


def _fail(error: Exception, exit_code: int) -> NoReturn:
    click.echo(f"Error: {error}", err=True)
    raise SystemExit(exit_code) from error


def _summary(result: Any, out: pathlib.Path | None) -> dict[str, Any]:
    return {
        "directory": None if out is None else str(out),
        "plan": result.plan,
        "certificate": result.certificate,
    }


def _print_result(result: Any, out: pathlib.Path | None) -> None:
    certificate = result.certificate
    table = rich.table.Table(title="not written (dry run)" if out is None else f"bundle in {out}", show_header=False)
    rows = {
        "model.tflite": f"{certificate.model_bytes:,} bytes, {sum(certificate.op_counts.values())} builtin ops",
        "initial.safetensors": f"{certificate.checkpoint_bytes:,} bytes, {certificate.num_parameters:,} parameters",
        "loss": f"{certificate.loss}, read from the {certificate.loss_reads}",
        "steps compared with Keras": str(certificate.num_steps_compared),
        "largest loss error": f"{certificate.max_loss_error:.2g} (allowed {certificate.tolerances.loss:.0e})",
        "largest gradient error": f"{certificate.max_gradient_error:.2g} (allowed {certificate.tolerances.gradient:.0e})",
        "largest weight error": f"{certificate.max_weight_error:.2g} (allowed {certificate.tolerances.weight:.0e})",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    rich.console.Console().print(table)
