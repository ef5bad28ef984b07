"""`flockwise edge directory-request`: what a device hands to the key directory's authority."""

from pathlib import Path

import click

from edge_client.errors import EdgeClientError
from flockwise.edge_settings import config_option, load
from flockwise.reporting import one_line_errors, print_json

__all__ = ["directory_request"]


@click.command("directory-request")
@config_option
@click.option(
    "--role", type=click.Choice(["device", "helper", "key-authority"]), default="device", show_default=True,
    help="What it will be there for.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.option("--dry-run", is_flag=True, help="Make no key: fail if there is none.")
@one_line_errors(EdgeClientError)
def directory_request(config_path: Path | None, *, role: str, as_json: bool, dry_run: bool) -> None:
    """Print this device's public keys, bound together by its signature, for 'flockwise directory add'. Holds no secret.

    Makes the identity and the sealing key if there are none. Stop the daemon first, or use the one that never ran.

    Exit codes: 0 printed, 1 the keys cannot be made or used, or a daemon is running, 2 wrong usage.

    Example: flockwise edge directory-request --config client.toml
    """
    from edge_client.membership import request_membership
    from secure_sum.directory_entries import MemberRole, encode_request, fingerprint

    config = load(config_path)
    keys = request_membership(
        Path(config.device.state_dir),
        population=config.device.population,
        member_id=config.device.id,
        role=MemberRole(role),
        only_look=dry_run,
    )
    values = {
        "request": encode_request(keys),
        "member_id": keys.member_id,
        "identity": fingerprint(keys.identity_key),
        "sealing": fingerprint(keys.sealing_key),
    }
    if as_json:
        print_json(values)
        return
    click.echo(values["request"])
    click.echo(f"{keys.member_id}  identity {values['identity']}  sealing {values['sealing']}", err=True)
