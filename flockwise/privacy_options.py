"""The options that make a task private, on the command line or in a file; the same for `serve` and `simulate`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

__all__ = ["AS_SERVED", "privacy_file_option", "privacy_options", "take_privacy_file"]

AS_SERVED: Final[Mapping[str, str]] = {
    "epsilon": "epsilon",
    "clipping_norm": "clipping_norm",
    "mode": "privacy_mode",
    "delta": "delta",
    "rounds": "privacy_rounds",
    "min_contributors": "min_contributors",
    "bands": "privacy_bands",
    "adaptive_clip": "adaptive_clip",
    "sampling_rate": "sampling_rate",
}
"""The words of a privacy file, and the options of `serve` and `simulate` that say the same."""

privacy_file_option = click.option(
    "--privacy", "privacy_file", type=click.Path(path_type=Path), metavar="FILE",
    help="All of this in a TOML or JSON file: epsilon, clipping_norm, mode, delta, rounds, min_contributors, bands, "
    "adaptive_clip, sampling_rate.",
)  # fmt: skip


def privacy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; ``--clipping-norm`` is the command's own."""
    options = (
        privacy_file_option,
        click.option(
            "--epsilon", type=click.FloatRange(0, min_open=True),
            help="Device-level differential privacy of all rounds together; needs --clipping-norm.",
        ),
        click.option("--delta", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=1e-5, show_default=True),
        click.option("--privacy-rounds", type=click.IntRange(1), help="Rounds the budget is for. [default: --rounds]"),
        click.option(
            "--privacy-mode", type=click.Choice(["distributed", "local", "central"]), default="distributed", show_default=True,
            help="Who adds the noise; central is this coordinator, and devices take part if their owners trust it.",
        ),
        click.option(
            "--privacy-bands", type=click.IntRange(1, 12), default=1, show_default=True,
            help="Central mode: noise correlated over so many rounds; a device is in every so many-th at most.",
        ),
        click.option(
            "--adaptive-clip", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="QUANTILE",
            help="Central mode: --clipping-norm is the first clip, which then follows this quantile of the updates' norms.",
        ),
        click.option(
            "--min-contributors", type=click.IntRange(1),
            help="A private round with fewer is abandoned. [default: --min-reports, or nine tenths of the goal]",
        ),
        click.option(
            "--sampling-rate", type=click.FloatRange(0, 1, min_open=True), metavar="Q",
            help="Central mode, simulated alone: secret Poisson cohorts, priced as such. Refused where devices are served.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def take_privacy_file(options: dict[str, Any], words: Mapping[str, str] = AS_SERVED) -> None:
    """Puts what ``--privacy`` names in the options' places; does nothing without it.

    Args:
        options: Of the command under way.
        words: Which option says what a word of the file says.

    Raises:
        InvalidConfig: The file cannot be read, or is none.
        click.UsageError: An option says again what the file says.
    """
    path = options.pop("privacy_file")
    if path is None:
        return
    from coordinator.privacy_file import privacy_file_at

    context = click.get_current_context()
    twice = [name for name in words.values() if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if twice:
        raise click.UsageError(
            f"--{twice[0].replace('_', '-')} is said in {path}, or not at all: leave one of the two out"
        )
    found = privacy_file_at(path)
    for word, option in words.items():
        options[option] = getattr(found, word)
