"""In which LiteRT runtimes exported files have been run, and with what result: the record that `scripts/prove-runtimes` writes.

The record is a file of this package, the one source of what a certificate, a card and docs/reference/runtimes.md say.
"""

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Final

import msgspec

__all__ = ["RECORD_NAME", "RuntimeRecord", "RuntimeRun", "proved_runtimes", "runtimes_markdown", "runtimes_of"]

RECORD_NAME: Final = "proved_runtimes.json"
_NAMED: Final = 4


class RuntimeRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All files in one runtime."""

    runtime: str
    """Of ai-edge-litert."""
    python: str
    numpy: str
    problem: str = ""
    """Why nothing could be run."""
    wrong: tuple[str, ...] = ()
    """Zoo models, rows of the layer table and optimizers of which a file raises, or computes something else."""
    loss_difference: float = 0.0
    """Largest, of all other files, from the runtime that the exporter compares with Keras; relative to max(1, loss)."""
    weight_difference: float = 0.0
    """After a step or two; relative to max(1, largest weight of its tensor)."""
    output_difference: float = 0.0
    """Relative to max(1, largest output)."""

    @property
    def is_right(self) -> bool:
        """Whether all files compute what they should."""
        return not self.problem and not self.wrong


class RuntimeRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was run, and how that went."""

    lowest: str
    """The lowest runtime proved: in it, and in every later one that was run, all files compute what they should."""
    lowest_for_zoo: str
    """The same for the models of the zoo alone."""
    newest: str
    """The latest that was run, and the one that devices install."""
    zoo: dict[str, float]
    """Zoo model -> the largest error of its certificate."""
    num_layer_rows: int
    """Rows of the layer table that were run beside them."""
    num_optimizers: int
    trained_ops: dict[str, int]
    """Op -> highest version, of all trainable files that were run."""
    inference_ops: dict[str, int]
    """The same, of the float32 inference files."""
    runs: tuple[RuntimeRun, ...]
    """Oldest first."""


@functools.cache
def proved_runtimes() -> RuntimeRecord:
    """The record that comes with this version."""
    data = resources.files("model_export").joinpath(RECORD_NAME).read_bytes()
    return msgspec.json.decode(data, type=RuntimeRecord)


def runtimes_of(op_versions: Mapping[str, int], proved: Mapping[str, int]) -> tuple[str, ...]:
    """The lowest and the newest runtime in which a file of these ops is proved; empty: one of its ops was in no proof.

    Args:
        op_versions: Of the file.
        proved: ``trained_ops`` or ``inference_ops`` of the record.
    """
    record = proved_runtimes()
    is_proved = all(version <= proved.get(op, 0) for op, version in op_versions.items())
    return (record.lowest, record.newest) if is_proved else ()


def runtimes_markdown(record: RuntimeRecord) -> str:
    """The runs as a Markdown table, newest first."""
    head = "| ai-edge-litert | Python, numpy | losses | weights | outputs | |\n|---|---|---|---|---|---|\n"
    return head + "".join(map(_line, reversed(record.runs)))


def _line(run: RuntimeRun) -> str:
    differences = (run.loss_difference, run.weight_difference, run.output_difference)
    figures = ["-"] * 3 if run.problem else [f"{value:.0e}" if value else "0" for value in differences]
    more = f" and {len(run.wrong) - _NAMED} more" if len(run.wrong) > _NAMED else ""
    wrong = f"wrong: {', '.join(run.wrong[:_NAMED])}{more}" if run.wrong else ""
    cells = (run.runtime, f"{run.python}, {run.numpy}", *figures, run.problem or wrong or "proved")
    return f"| {' | '.join(cells)} |\n"
