"""``flockwise freeze``: a trained task becomes inference files for apps.

A verb of its own, not an option of ``export``: it starts from a bundle and a checkpoint, not from a Keras model.
"""

import hashlib
import os
import pathlib
from typing import Any, NoReturn

import click
import msgspec
import rich.console
import rich.table

__all__ = ["freeze"]

_EXIT_USAGE = 2
_EXIT_REFUSED = 4


@click.command(
    epilog="\b\nExample:\n  flockwise freeze --task bundle --checkpoint state --out app --int8 whole --calibration data"
)
@click.option("--task", "task_dir", type=click.Path(path_type=pathlib.Path), required=True, help="Bundle of the task.")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, path_type=pathlib.Path),
    required=True,
    help="A .safetensors file, or the coordinator's --state-dir or a task's directory in it (its latest committed weights).",
)
@click.option("--out", type=click.Path(path_type=pathlib.Path), help="Directory to write to.")
@click.option("--batch-size", type=click.IntRange(1, 65536), default=1, show_default=True, help="Examples per call.")
@click.option(
    "--int8",
    "int8_kind",
    type=click.Choice(["whole", "weights"]),
    help="Also a quantised file: as a whole (input, output, values), or its weights alone; needs --calibration.",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, path_type=pathlib.Path),
    help="Your own typical examples, at least 100: a directory of edge import-data, or a .csv file.",
)
@click.option(
    "--max-accuracy-loss",
    type=click.FloatRange(0.0, 1.0),
    default=0.02,
    show_default=True,
    help="Share of right answers that int8 may cost.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the card as one JSON object.")
@click.option("--dry-run", is_flag=True, help="Make, compare and measure, but write nothing; --out is then optional.")
def freeze(
    *,
    task_dir: pathlib.Path,
    checkpoint: pathlib.Path,
    out: pathlib.Path | None,
    batch_size: int,
    int8_kind: str | None,
    calibration: pathlib.Path | None,
    max_accuracy_loss: float,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Freeze a trained task as .tflite files for inference in apps.

    Written are model_float32.tflite (weights inside, builtin ops only, one signature: infer), with --int8 also
    model_int8.tflite, and card.json, which says what they were made from and how far they are from what devices
    trained. Up to 256 of the examples (half at most) set the ranges of a file that is int8 as a whole; accuracy is
    measured on the others. Nothing is read from devices. Models that normalise (layer or group normalisation) lose
    much of their accuracy as int8 as a whole: use --int8 weights.

    \b
    Exit codes:
      0  written (or, with --dry-run, would be)
      2  wrong usage: no such bundle or examples, a checkpoint of another task, --out holds other files
      4  the float32 file leaves the trainable one by more than 1e-5, the model cannot be quantised, or int8 costs more
         accuracy than --max-accuracy-loss
    """  # noqa: D301 - \b is click's mark for a paragraph to leave alone
    if out is None and not dry_run:
        raise click.UsageError("name a directory with --out, or use --dry-run")
    if (int8_kind is None) != (calibration is None):
        raise click.UsageError("--int8 and --calibration belong together")
    settings = {"batch_size": batch_size, "calibration": calibration,
                "int8": {"kind": int8_kind, "max_accuracy_loss": max_accuracy_loss}}  # fmt: skip
    made = _freeze(task_dir, checkpoint, None if dry_run else out, settings, quiet=as_json)
    if as_json:
        click.echo(msgspec.json.encode(made.card).decode())
    else:
        _print_card(made.card, None if dry_run else out)


def _freeze(
    task_dir: pathlib.Path,
    checkpoint: pathlib.Path,
    out: pathlib.Path | None,
    settings: dict[str, Any],
    *,
    quiet: bool,
) -> Any:
    """Freezes and writes; errors become exit codes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from coordinator.errors import CoordinatorError
    from edge_client.errors import DataError
    from model_export.errors import ExportError, NotABundle, UnreadableGraph, UnusableExamples
    from model_export.whole_directory import refuse_strange_files, write_directory

    console = rich.console.Console(stderr=True, quiet=quiet)
    with console.status("reading the task") as status:
        try:
            task = _read_task(task_dir, checkpoint)
            examples = _read_examples(settings, task["plan"])
            status.update("loading TensorFlow")
            from model_export import freezing

            if out is not None:
                refuse_strange_files(out, known=freezing.FILE_NAMES)
            made = freezing.freeze(
                freezing.TrainedTask(**task),
                batch_size=settings["batch_size"],
                examples=None if examples is None else freezing.Examples(**examples),
                on_stage=status.update,
            )
            if out is not None:
                write_directory(made.files, out, known=freezing.FILE_NAMES)
        except (CoordinatorError, DataError, NotABundle, UnreadableGraph, UnusableExamples) as error:
            _fail(error, _EXIT_USAGE)
        except ExportError as error:
            _fail(error, _EXIT_REFUSED)
    return made


def _read_task(task_dir: pathlib.Path, checkpoint: pathlib.Path) -> dict[str, Any]:
    from coordinator.committed_weights import read_weights
    from coordinator.task_bundle import read_task_bundle
    from model_export.errors import UnreadableGraph
    from model_export.inference_card import Origin
    from wire_protocol.model_contract import BUNDLE_GRAPH
    from wire_protocol.tensors import encode_tensors

    bundle = read_task_bundle(task_dir)
    try:
        graph = (task_dir / BUNDLE_GRAPH).read_bytes()
    except OSError as error:
        raise UnreadableGraph(
            f"{task_dir} has no {BUNDLE_GRAPH}: it was exported by an earlier version; export the same model with the "
            "same options into another directory and add that file here"
        ) from error
    found = read_weights(checkpoint, bundle)
    sha256 = {
        "plan_sha256": bundle.plan_bytes,
        "model_sha256": bundle.model_bytes,
        "graph_sha256": graph,
        "checkpoint_sha256": encode_tensors(found.weights),
    }
    origin = Origin(
        task_id=found.task_id,
        num_commits=found.num_commits,
        **{name: hashlib.sha256(data).hexdigest() for name, data in sha256.items()},
    )
    return {
        "plan": bundle.plan,
        "model": bundle.model_bytes,
        "graph": graph,
        "weights": found.weights,
        "origin": origin,
    }


def _read_examples(settings: dict[str, Any], plan: Any) -> dict[str, Any] | None:
    """Reads and checks examples as a device does."""
    import numpy as np

    from edge_client.example_store import open_examples, verify_examples
    from edge_client.labels import labels_for
    from edge_client.training import check_examples

    if (path := settings["calibration"]) is None:
        return None
    verify_examples(path)
    examples = open_examples(path)
    check_examples(plan, examples)
    x = examples.inputs(np.arange(examples.num_examples, dtype=np.int64))
    return {
        "x": x.reshape(-1, *plan.input_shape),
        "y": labels_for(plan, examples.labels),
        **settings["int8"],
    }


def _fail(error: Exception, exit_code: int) -> NoReturn:
    click.echo(f"Error: {error}", err=True)
    raise SystemExit(exit_code) from error


def _print_card(card: Any, out: pathlib.Path | None) -> None:
    table = rich.table.Table(title="not written (dry run)" if out is None else f"files in {out}", show_header=False)
    commits = card.origin.num_commits
    rows = {
        "task": card.origin.task_id,
        "weights": "from a file" if commits is None else f"after {commits} committed rounds",
        "one call": f"{card.batch_size} x {list(card.input_shape)} -> {card.num_outputs} {card.output}",
        card.float32.name: f"{card.float32.num_bytes:,} bytes, off by {card.float_error:.1e} from the trainable file",
    }
    rows["float32 is proved in LiteRT"] = " to ".join(card.float32.proved_runtimes) or "(none: an op was in no proof)"
    if card.int8 is not None:
        rows[card.int8.file.name] = f"{card.int8.file.num_bytes:,} bytes, int8 {card.int8.kind}"
        rows["outputs of int8 off by"] = (
            f"{card.int8.mean_output_error:.2g} (mean), {card.int8.max_output_error:.2g} (most)"
        )
        if card.int8.agreement is not None:
            rows[f"accuracy on {card.int8.num_held_out} held out"] = (
                f"float32 {card.int8.float_accuracy:.1%}, int8 {card.int8.int8_accuracy:.1%}, "
                f"same answer {card.int8.agreement:.1%}"
            )
    for name, value in rows.items():
        table.add_row(name, value)
    rich.console.Console().print(table)
