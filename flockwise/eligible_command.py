"""`flockwise edge eligible`: may this device train now, and why not?"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edge_client.errors import EdgeClientError
from flockwise.reporting import one_line_errors, print_json

if TYPE_CHECKING:
    from edge_client.eligibility.report import EligibilityReport

__all__ = ["eligible"]

_NOT_ELIGIBLE: Final = 3
_COLOURS: Final = {"met": "green", "broken": "red", "unknown": "yellow"}


@click.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), envvar="FLOCKWISE_CONFIG",
    help="TOML file. [default: ~/.config/flockwise/edge.toml or /etc/flockwise/edge.toml, if there is one]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@one_line_errors(EdgeClientError)
def eligible(config_path: Path | None, *, as_json: bool) -> None:
    """Show every reading, what the owner asks of it, and whether the device may train now.

    A reading that is unknown breaks a demand, and is not heeded where there is only a precaution.

    Exit codes: 0 eligible, 1 the settings are not valid, 2 wrong usage, 3 not eligible.

    Example: flockwise edge eligible --config client.toml --json
    """
    from edge_client.config_loader import default_config_path, load_config
    from edge_client.eligibility.report import examine
    from edge_client.eligibility.verdict import Ineligible

    report = examine(load_config(config_path or default_config_path(os.environ), os.environ))
    values = _values(report)
    if as_json:
        print_json(values)
    else:
        for row in values["conditions"]:
            mark = click.style(f"{row['outcome']:8}", fg=_COLOURS[row["outcome"]])
            rule = f"{row['stance']}: {row['rule']}" if row["rule"] else "nothing asked"
            click.echo(f"{mark} {row['condition']:17} {row['reading']}  ({rule})")
        click.echo(f"not eligible: {values['reason']}: {values['detail']}" if values["reason"] else "eligible")
    sys.exit(_NOT_ELIGIBLE if isinstance(report.verdict, Ineligible) else 0)


def _values(report: "EligibilityReport") -> dict[str, Any]:
    from edge_client.eligibility.verdict import Ineligible

    verdict = report.verdict
    is_barred = isinstance(verdict, Ineligible)
    return {
        "eligible": not is_barred,
        "reason": verdict.reason.value if isinstance(verdict, Ineligible) else None,
        "detail": verdict.detail if isinstance(verdict, Ineligible) else None,
        "conditions": [
            {
                "condition": each.condition.value,
                "reading": each.reading,
                "outcome": each.outcome.value,
                "stance": each.stance.value,
                "rule": each.rule,
                "is_barrier": each.is_barrier,
            }
            for each in report.assessments
        ],
    }
