"""What each model of the zoo weighs and costs: exported with its preset, checked against Keras, and run in LiteRT.

``scripts/bench zoo --write`` puts the rows into docs/reference/zoo.md.
"""

import dataclasses
import gzip
import time
from collections.abc import Sequence
from typing import Final

from model_export.certificate import StepCost
from model_export.exporter import build_export
from model_export.step_cost import measure_step_cost
from model_export.zoo import ZOO
from model_export.zoo_presets import ZOO_ENTRIES, ZOO_PREFIX, fields_for

__all__ = ["ZOO_ROWS", "ZooRow", "markdown", "measure_zoo_model"]

ZOO_ROWS: Final = ("mlp", "cnn", "mobile", "har", "head", "private-head", "gru")
"""The models of the table: those with presets of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ZooRow:
    """One model."""

    name: str
    num_parameters: int
    model_bytes: int
    model_gzip_bytes: int
    checkpoint_gzip_bytes: int
    """The initial weights as they travel, compressed; float32 noise hardly compresses."""
    num_ops: int
    step_cost: StepCost
    export_s: float
    """Wall time of reading, converting and comparing with Keras, without the import of TensorFlow."""
    export_cpu_s: float
    """The same in CPU time: what the wall time would be near on an idle machine."""
    max_gradient_error: float


def measure_zoo_model(name: str, *, num_steps: int = 200) -> ZooRow:
    """Exports and measures one model.

    Args:
        name: Of the zoo.
        num_steps: See ``measure_step_cost``.
    """
    began, cpu_began = time.perf_counter(), time.process_time()
    result = build_export(ZOO[name](0), **fields_for(f"{ZOO_PREFIX}{name}", {}))
    export_s, export_cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    certificate = result.certificate
    return ZooRow(
        name=name,
        num_parameters=certificate.num_parameters,
        model_bytes=certificate.model_bytes,
        model_gzip_bytes=certificate.model_gzip_bytes,
        checkpoint_gzip_bytes=len(gzip.compress(result.bundle.checkpoint, mtime=0)),
        num_ops=sum(certificate.op_counts.values()),
        step_cost=measure_step_cost(result.bundle.model, num_steps=num_steps),
        export_s=export_s,
        export_cpu_s=export_cpu_s,
        max_gradient_error=certificate.max_gradient_error,
    )


def markdown(rows: Sequence[ZooRow]) -> str:
    """The rows as a Markdown table."""
    head = (
        "| model | preset | parameters | step, ms (least) | peak RSS, MB | model file, kB (gzipped) "
        "| checkpoint gzipped, kB | export, s (CPU) | largest gradient error |\n"
    )
    return head + "|---|---|---|---|---|---|---|---|---|\n" + "".join(_line(row) for row in rows)


def _line(row: ZooRow) -> str:
    preset, cost = ZOO_ENTRIES[row.name].preset, row.step_cost
    cells = (
        f"`{row.name}`",
        f"{preset.get('optimizer')} {preset['learning_rate']:g}, batch {preset['batch_size']}",
        f"{row.num_parameters:,}",
        f"{cost.median_ms:.2f} ({cost.min_ms:.2f})",
        f"{cost.peak_rss_mb:.0f}",
        f"{row.model_bytes / 1e3:.0f} ({row.model_gzip_bytes / 1e3:.0f})",
        f"{row.checkpoint_gzip_bytes / 1e3:.0f}",
        f"{row.export_s:.1f} ({row.export_cpu_s:.1f})",
        f"{row.max_gradient_error:.0e}",
    )
    return f"| {' | '.join(cells)} |\n"
