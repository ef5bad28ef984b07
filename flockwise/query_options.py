"""The options by which a question is asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flockwise.fleet_options import fleet_options
from flockwise.serve_confidentiality import confidentiality_options

__all__ = ["bounds_options", "question_options"]


def question_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every question."""
    options = (
        click.option("--name", required=True, help="The question's name: a device answers it once per period."),
        click.option("--period", required=True, help="What the answer is for, such as 2026-11; part of its name."),
        click.option(
            "--of", "of", default="num_examples", show_default=True,
            type=click.Choice(["num_examples", "input_mean", "label_mean", "class_share"]),
            help="The device's one value: how many examples it has; their mean input or label; the share of a class.",
        ),
        click.option(
            "--column", type=click.IntRange(0), default=0, show_default=True, help="Of inputs or labels; or the class."
        ),
        click.option(
            "--mode", type=click.Choice(["distributed", "local"]), default="distributed", show_default=True,
            help="distributed: the sum has the noise, the coordinator is trusted; local: each answer has all of it.",
        ),
        click.option("--epsilon", type=float, required=True, help="What the answer costs each device."),
        click.option(
            "--min-contributors", type=int, required=True, help="With fewer answers there is none. At least 2."
        ),
        click.option(
            "--max-devices", type=click.IntRange(1), default=10_000, show_default=True, help="Ask no more than these."
        ),
        click.option(
            "--selection-timeout-s", type=float, default=60.0, show_default=True,
            help="How long devices may take to come, unless --max-devices are there sooner.",
        ),
        click.option("--report-timeout-s", type=float, default=600.0, show_default=True),
        click.option(
            "--rehearse", type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="Ask virtual devices that hold the numbers of this file, one per line; no real one is asked or charged.",
        ),
        click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output."),
        click.option("--dry-run", is_flag=True, help="Check the question, say what it costs, and ask nobody."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return fleet_options(confidentiality_options(command))


def bounds_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The bounds of a value."""
    command = click.option("--high", type=float, required=True, help="Largest value that counts.")(command)
    return click.option("--low", type=float, required=True, help="Smallest value that counts.")(command)
