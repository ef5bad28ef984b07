"""`flockwise edge budget`: what a device has spent of its owner's privacy budget, and on what."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_client.errors import EdgeClientError
from flockwise.reporting import one_line_errors, print_json

if TYPE_CHECKING:
    from edge_client.privacy.ledger import PrivacyLedger

__all__ = ["budget"]


@click.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), envvar="FLOCKWISE_CONFIG", help="As for 'edge run'."
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@one_line_errors(EdgeClientError)
def budget(config_path: Path | None, *, as_json: bool) -> None:
    """Show what this device has spent of its privacy budget, and what each round or query added. Changes nothing.

    "Spent" is what the ledger has let through; the guarantee is the budget, beyond which nothing is let through.

    Exit codes: 0 shown, 1 the settings are not valid or the ledger is damaged, 2 wrong usage.

    Example: flockwise edge budget --config client.toml
    """
    values = _read(config_path)
    if as_json:
        print_json(values)
        return
    click.echo(
        f"spent epsilon {values['spent_epsilon']:.4f} of {values['allowed_epsilon']:g} "
        f"(left {values['left_epsilon']:.4f}) at delta {values['target_delta']:g}"
    )
    for release in values["releases"]:
        click.echo(
            f"  {release['release_id']:40} cost {release['epsilon_added']:.4f}, so far {release['epsilon_after']:.4f}  "
            f"{release['mechanism']}"
        )


def _read(config_path: Path | None) -> dict[str, Any]:
    import os

    from edge_client.config_loader import default_config_path, load_config
    from edge_client.privacy.ledger import PrivacyLedger
    from edge_client.state_dir import ledger_path

    config = load_config(config_path or default_config_path(os.environ), os.environ)
    path = ledger_path(Path(config.device.state_dir))
    wanted = config.privacy.rules.budget
    if not path.exists() and not PrivacyLedger.had_one(path):
        return _values(0.0, wanted.epsilon, wanted.target_delta, [])
    with PrivacyLedger(path, budget=None) as ledger:
        # A lower budget in the settings is written down when the daemon next needs the ledger.
        allowed = min(ledger.budget.epsilon, wanted.epsilon)
        delta = min(ledger.budget.target_delta, wanted.target_delta)
        return _values(ledger.spent_epsilon, allowed, delta, _releases(ledger))


def _releases(ledger: "PrivacyLedger") -> list[dict[str, Any]]:
    """What each release added; the first is the dearest, and together they are what is spent."""
    before = (0.0, *(entry.epsilon_after for entry in ledger.entries))
    return [
        {
            "release_id": entry.release_id,
            "epsilon_added": entry.epsilon_after - spent,
            "epsilon_after": entry.epsilon_after,
            "mechanism": f"{type(entry.event).__name__} {dataclasses.asdict(entry.event)}",
        }
        for spent, entry in zip(before, ledger.entries, strict=False)
    ]


def _values(spent: float, allowed: float, delta: float, releases: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "spent_epsilon": spent,
        "allowed_epsilon": allowed,
        "left_epsilon": max(0.0, allowed - spent),
        "target_delta": delta,
        "releases": releases,
    }
