"""A question put to virtual devices first: values that are no secret, the devices' own noise, and nobody is charged."""

from pathlib import Path
from typing import Final

import click

from wire_protocol.query import Query
from wire_protocol.query_answer import QueryAnswer

__all__ = ["read_values", "rehearse"]

_MAX_DEVICES: Final = 100_000
_MAX_BYTES: Final = 4 << 20


def read_values(path: Path) -> list[float | None]:
    """One device's value per line; an empty line is a device without one.

    Raises:
        UsageError: A line is no number, or there are too few or too many; says which.
        OSError: The file cannot be read.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise click.UsageError(f"--rehearse {path} is larger than {_MAX_BYTES} bytes: give one number per line")
    values: list[float | None] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            values.append(float(line) if line.strip() else None)
        except ValueError as error:
            raise click.UsageError(
                f"--rehearse {path}, line {number}: {line.strip()[:40]!r} is no number; give one per line"
            ) from error
    if not 0 < len(values) <= _MAX_DEVICES:
        raise click.UsageError(f"--rehearse {path} has {len(values)} lines: give 1 to {_MAX_DEVICES} devices")
    return values


def rehearse(question: Query, values: list[float | None]) -> QueryAnswer | None:
    """What the fleet would have answered if it held these values; None if it is too small."""
    from simulators.virtual_query import rehearse_query

    return rehearse_query(question, values)
