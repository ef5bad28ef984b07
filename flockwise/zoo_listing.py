"""Prints the models that come with Flockwise."""

import click
import msgspec
import rich.console
import rich.table

from model_export.zoo_presets import ZOO_ENTRIES

__all__ = ["print_zoo"]


def print_zoo(*, as_json: bool) -> None:
    """Lists the zoo as one JSON object or as a table. Loads no TensorFlow."""
    if as_json:
        click.echo(msgspec.json.encode({"models": dict(ZOO_ENTRIES)}).decode())
        return
    table = rich.table.Table(title="models for zoo:NAME")
    for column in ("name", "example", "parameters", "plan"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it is")
    for name, entry in ZOO_ENTRIES.items():
        preset = entry.preset
        plan = f"{preset['optimizer']} {preset['learning_rate']:g}, batch {preset['batch_size']}"
        shape = "x".join(map(str, entry.input_shape))
        table.add_row(name, shape, f"{entry.num_parameters:,}", plan, entry.summary)
    rich.console.Console().print(table)
