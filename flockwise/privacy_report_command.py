"""`flockwise privacy report`: one page about a private task."""

import sys
from pathlib import Path

import click

from flockwise.reporting import one_line_errors, print_json

__all__ = ["report"]

_AUDIT_FAILED = 3


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out", "out_file", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True,
    help="The page.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON, and write no page.")
@click.option("--dry-run", is_flag=True, help="Say what would be written.")
def report(run_dir: Path, out_file: Path, *, as_json: bool, dry_run: bool) -> None:
    """Write a page about the private task in RUN_DIR, the coordinator's --state-dir.

    On it: parameters, rounds, epsilon by two accountants, a lower bound measured on the devices' own code, and what
    voids the claim. Needs the coordinator's installation. Takes some seconds, for the audit.

    Exit codes: 0 written, 1 no private task or a damaged record, 2 wrong usage, 3 the audit contradicts the claim.

    Example: flockwise privacy report state --out report.html
    """
    from coordinator.errors import CoordinatorError

    sys.exit(one_line_errors(CoordinatorError, OSError, ValueError)(_report)(run_dir, out_file, as_json, dry_run))


def _report(run_dir: Path, out_file: Path, as_json: bool, dry_run: bool) -> int:  # noqa: FBT001 - click's flags
    from simulators.privacy_report import as_html, make_report, task_directory

    if dry_run:
        click.echo(f"would write {out_file} about {task_directory(run_dir)}")
        return 0
    made = make_report(run_dir)
    if as_json:
        print_json(made.as_dict())
    else:
        out_file.write_text(as_html(made), encoding="utf-8")
        click.echo(f"wrote {out_file}: epsilon let through {made.epsilon_by_rdp:.4f} of {made.spec.target_epsilon:g}")
    return 0 if made.audit.holds else _AUDIT_FAILED
