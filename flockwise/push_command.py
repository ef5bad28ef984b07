"""`flockwise push`: a model file becomes a signed release."""

import dataclasses
import importlib.metadata
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from flockwise.release_options import (
    channel_option,
    dry_run_option,
    errors_in_one_line,
    json_option,
    key_option,
    open_rollouts,
)
from flockwise.reporting import one_line_errors, print_json

__all__ = ["push"]

_CARD_FILE = "card.json"
_BASE_MEMORY_MB = 64
"""What an interpreter takes before any model."""
_SLOWER_DEVICES = 20.0
"""A device may be so many times slower than this machine."""
_LEAST_LATENCY_MS = 10.0
"""A small model's time is mostly the clock's jitter on a busy device."""
_NUM_DRAWN = 64


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--name", required=True, help="Name of the model, as devices list it in releases.models.")
@channel_option
@key_option
@click.option("--int8", "int8", is_flag=True, help="Of a directory that freeze wrote, the quantised file.")
@click.option(
    "--golden", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Your own examples, a .npy file [n, ...] in the model's input dtype, n up to 4096. [default: 64 drawn at random]",
)  # fmt: skip
@click.option("--max-abs-error", type=click.FloatRange(0, min_open=True), help="[default: 0.001; of int8 outputs 8]")
@click.option(
    "--min-agreement", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="The accuracy floor."
)
@click.option(
    "--max-latency-ms", type=click.FloatRange(0, min_open=True), help="[default: 20 times this machine's, at least 10]"
)
@click.option("--min-memory-mb", type=click.IntRange(1), help="[default: what the check took here, and 64]")
@click.option(
    "--min-runtime",
    help="Lowest LiteRT version that runs it. [default: the lowest proved, by the card; or the one here]",
)
@click.option("--device-class", "classes", multiple=True, help="Only for this hardware class or tag. May be repeated.")
@click.option(
    "--state-dir", type=click.Path(exists=True, path_type=Path),
    help="The coordinator's: epsilon and federated evaluation of the frozen checkpoint are taken from its registry.",
)  # fmt: skip
@click.option("--epsilon", type=click.FloatRange(0), help="What the training had cost each device, if it was private.")
@click.option(
    "--piece-kib", type=click.IntRange(1, 1024), default=120, show_default=True,
    help="Largest message that the broker and every device's connection take.",
)  # fmt: skip
@click.option("--note", default="", help="For people, in the model card.")
@json_option
@dry_run_option
@one_line_errors(ValueError)
@errors_in_one_line
def push(**options: Any) -> None:
    """Sign MODEL as the next release of a model: a .tflite file with an infer signature, or what freeze wrote.

    The model is tried here first, in a process of its own, exactly as devices will: one that crashes, hangs or answers
    with NaN is not signed. Nothing reaches a device before `flockwise rollout start`. Needs the targets key.

    Exit codes: 0 signed, 1 refused: the model fails its own check, a key is missing, or the channel cannot be used, 2
    wrong usage.

    Example: flockwise push app --name digits --channel releases --key keys/targets.pem --golden examples.npy
    """
    data, card = _read_model(options["model"], int8=options["int8"])
    repository, book, _ = open_rollouts(options["channel"], options["keys"])
    book.close()
    number = repository.next_number(options["name"])
    draft = _draft(data, card, options, repository, number)
    check = _try_here(draft, data, options)
    draft = _with_measured(draft, check, options)
    if not options["dry_run"]:
        repository.add_release(draft.manifest, draft.blobs)
    packed = min((item.blob.num_bytes for item in draft.manifest.packed), default=len(data))
    shown = {
        "name": options["name"], "number": number, "signed": not options["dry_run"], "bytes": len(data),
        "smallest_transfer_bytes": min(packed, len(data)), "check": msgspec.to_builtins(check),
    }  # fmt: skip
    if options["as_json"]:
        print_json(shown)
        return
    what = "would sign" if options["dry_run"] else "signed"
    click.echo(
        f"{what} {options['name']} {number}: {len(data)} bytes, at least {shown['smallest_transfer_bytes']} to fetch"
    )
    click.echo(f"next: flockwise rollout start {options['name']} {number} --channel {options['channel']}")


def _read_model(path: Path, *, int8: bool) -> tuple[bytes, Any]:
    """The file's bytes, and the card beside it, if there is one."""
    from model_export.inference_card import InferenceCard

    if path.is_file():
        if int8:
            raise click.UsageError("--int8 is for a directory that freeze wrote")
        return path.read_bytes(), None
    try:
        card = msgspec.json.decode((path / _CARD_FILE).read_bytes(), type=InferenceCard)
    except (OSError, msgspec.MsgspecError) as error:
        raise click.UsageError(f"{path} holds no {_CARD_FILE} of flockwise freeze: {error}") from error
    if int8 and card.int8 is None:
        raise click.UsageError(f"{path} holds no int8 file: freeze it with --int8")
    file = card.int8.file if int8 and card.int8 is not None else card.float32
    return (path / Path(file.name).name).read_bytes(), (card, file)


def _draft(data: bytes, found: Any, options: dict[str, Any], repository: Any, number: int) -> Any:
    from coordinator.releases.drafting import GoldenRules, draft_release
    from edge_client.releases.golden import GoldenExamples, encode_golden
    from model_export.errors import ExportError
    from model_export.golden_outputs import draw_inputs, golden_outputs
    from wire_protocol.release import ReleaseLineage, ReleaseNeeds

    try:
        inputs = draw_inputs(data, _NUM_DRAWN) if options["golden"] is None else np.load(options["golden"])
        outputs = golden_outputs(data, inputs)
    except (ExportError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"the model cannot be released: {error}") from error
    order = repository.orders().get(options["name"])
    baseline = 0 if order is None else order.baseline
    bases = [repository.blob(repository.manifest(options["name"], baseline).model.sha256)] if baseline else []
    lineage = ReleaseLineage(parent=baseline, epsilon=options["epsilon"])
    operators: tuple[str, ...] = ()
    lowest = importlib.metadata.version("ai-edge-litert")
    lowest_runtime = importlib.metadata.version("ai-edge-litert")
    if found is not None:
        card, file = found
        origin = card.origin
        lineage = msgspec.structs.replace(
            lineage, task_id=origin.task_id, round_id=origin.num_commits or 0, plan_sha256=origin.plan_sha256,
            checkpoint_sha256=origin.checkpoint_sha256,
        )  # fmt: skip
        if options["state_dir"] is not None:
            lineage = _with_registered(lineage, options["state_dir"])
        operators = tuple(sorted(file.op_counts))
        # Proved by `scripts/prove-runtimes`, not by the check on this machine.
        lowest = file.proved_runtimes[0] if file.proved_runtimes else lowest
        lowest_runtime = (*file.proved_runtimes, lowest_runtime)[0]
    is_int8 = outputs.dtype == np.int8
    return draft_release(
        name=options["name"],
        number=number,
        model=data,
        tensors=(_tensor(inputs), _tensor(outputs)),
        golden=GoldenRules(
            data=encode_golden(GoldenExamples(inputs=inputs, outputs=outputs)),
            num_examples=len(inputs),
            max_abs_error=options["max_abs_error"] or (8.0 if is_int8 else 1e-3),
            min_agreement=options["min_agreement"],
            max_latency_ms=options["max_latency_ms"] or 1e6,
        ),
        needs=ReleaseNeeds(
            min_runtime=options["min_runtime"] or lowest_runtime,
            min_memory_mb=options["min_memory_mb"] or _BASE_MEMORY_MB,
            operators=operators,
            device_classes=options["classes"],
        ),
        lineage=lineage,
        note=options["note"],
        bases=bases,
        piece_bytes=options["piece_kib"] * 1024,
    )


def _with_registered(lineage: Any, state_dir: Path) -> Any:
    """What the coordinator's registry knows of the checkpoint: its round, epsilon, and what devices measured."""
    from coordinator.commit_recorder import REGISTRY_DIRECTORY
    from coordinator.model_registry import read_registry
    from wire_protocol.release import EvaluationFigures

    entries, _ = read_registry(state_dir / REGISTRY_DIRECTORY)
    about = [entry for entry in entries if entry.checkpoint_sha256 == lineage.checkpoint_sha256]
    for entry in about:
        if entry.kind == "committed":
            epsilon = entry.epsilon if lineage.epsilon is None else lineage.epsilon
            lineage = msgspec.structs.replace(lineage, round_id=entry.round_id, epsilon=epsilon)
        elif {"accuracy", "loss", "weight_sum"} <= entry.metrics.keys():
            figures = EvaluationFigures(
                accuracy=entry.metrics["accuracy"], loss=entry.metrics["loss"], num_examples=entry.metrics["weight_sum"]
            )
            lineage = msgspec.structs.replace(lineage, evaluation=figures)
    if not about:
        raise ValueError(f"the registry in {state_dir} knows no checkpoint {lineage.checkpoint_sha256}")
    return lineage


def _tensor(values: np.ndarray[Any, Any]) -> Any:
    from wire_protocol.release import ModelTensor

    return msgspec.convert({"shape": values.shape[1:], "dtype": values.dtype.name}, ModelTensor)


def _try_here(draft: Any, data: bytes, options: dict[str, Any]) -> Any:
    """The check that devices will make, on this machine.

    Raises:
        ValueError: It fails.
    """
    from edge_client.releases.health_check import HealthCheck
    from edge_client.releases.slots import ModelSlots
    from edge_client.state_writer import StateWriter

    with tempfile.TemporaryDirectory() as scratch:
        slots = ModelSlots(Path(scratch) / options["name"], writer=StateWriter())
        slots.put(draft.manifest, model=data, golden=draft.blobs[1])
        checks = HealthCheck()
        checks.start(slots.path(draft.manifest.number))
        while (verdict := checks.poll()) is None:
            time.sleep(0.05)
    if verdict.failure is not None or verdict.check is None:
        failure = "no verdict" if verdict.failure is None else verdict.failure.value
        raise ValueError(f"the model fails the check that devices make: {failure} {verdict.detail}")
    return verdict.check


def _with_measured(draft: Any, check: Any, options: dict[str, Any]) -> Any:
    """The draft with bounds from what was measured here, where none were given."""
    golden = draft.manifest.golden
    if options["max_latency_ms"] is None:
        golden = msgspec.structs.replace(
            golden, max_latency_ms=max(_LEAST_LATENCY_MS, _SLOWER_DEVICES * check.latency_ms)
        )
    needs = draft.manifest.needs
    if options["min_memory_mb"] is None:
        needs = msgspec.structs.replace(needs, min_memory_mb=_BASE_MEMORY_MB + round(check.peak_memory_mb))
    return dataclasses.replace(draft, manifest=msgspec.structs.replace(draft.manifest, golden=golden, needs=needs))
