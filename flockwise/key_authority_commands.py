"""`flockwise key-authority`: the opener of encrypted sums, on a machine that is not the coordinator's."""

from pathlib import Path
from typing import Any

import click

from edge_client.errors import EdgeClientError
from flockwise.reporting import one_line_errors, print_json
from secure_sum.errors import SecureSumError
from wire_protocol.errors import WireError

__all__ = ["key_authority"]

_errors_in_one_line = one_line_errors(EdgeClientError, SecureSumError, WireError, OSError)
_json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and end.")
_home_option = click.option(
    "--state-dir", "home", type=click.Path(path_type=Path), required=True, help="Where its keys and its book are."
)
_population_option = click.option("--population", required=True, help="Name of the population.")
_id_option = click.option("--id", "authority_id", default="key-authority", show_default=True, help="Its name in it.")


@click.group("key-authority")
def key_authority() -> None:
    """Make, keep and use the keys of encrypted sums.

    Run this on a machine of its own: with the coordinator's ciphertexts these keys read every update. In this order:
    request, then the enrolment authority's 'directory add', then issue, then the coordinator's plan, then run.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage. Every verb knows --json.

    Example: flockwise key-authority request --population banks --state-dir ka
    """


@key_authority.command()
@_population_option
@_id_option
@_home_option
@_json_option
@_dry_run_option
@_errors_in_one_line
def request(*, population: str, authority_id: str, home: Path, as_json: bool, dry_run: bool) -> None:
    """Print this key authority's public identity and sealing key, for 'flockwise directory add'. Makes them if need be.

    Exit codes: 0 printed, 1 the keys cannot be made or used, 2 wrong usage.

    Example: flockwise key-authority request --population banks --state-dir ka
    """
    from edge_client.membership import request_membership
    from secure_sum.directory_entries import MemberRole, encode_request, fingerprint
    from wire_protocol.identifiers import checked_identifier

    checked_identifier(population, kind="population")
    checked_identifier(authority_id, kind="key authority")
    keys = request_membership(
        home, population=population, member_id=authority_id, role=MemberRole.KEY_AUTHORITY, only_look=dry_run
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


@key_authority.command()
@_id_option
@_home_option
@click.option("--directory", "directory_file", type=click.Path(path_type=Path), required=True, help="directory.fwkd.")
@click.option("--out", "out_file", type=click.Path(path_type=Path), required=True, help="File of the released keys.")
@click.option(
    "--authority", default="", help="Fingerprint of the enrolment authority. [default: the pinned one, or any]"
)
@click.option(
    "--new-keys", is_flag=True, help="Make new keys also if there are some: after eight wrong totals, or a removal."
)
@_json_option
@_dry_run_option
@_errors_in_one_line
def issue(**options: Any) -> None:
    """Make the encryption keys, if there are none, and release them to the devices of the key directory.

    The file holds the public key and, sealed for each device, the secret of the tags; it is signed and no secret. Hand it to
    the coordinator. A device that is entered later needs a new release, which makes a new plan.

    Exit codes: 0 written, 1 the directory or the keys cannot be used, 2 wrong usage.

    Example: flockwise key-authority issue --state-dir ka --directory directory.fwkd --out banks.fwkr
    """
    from edge_client.opener.key_release import issue_keys

    release = issue_keys(
        options["home"],
        authority_id=options["authority_id"],
        directory_file=options["directory_file"],
        authority_fingerprint=options["authority"],
        new_keys=options["new_keys"],
        out_file=None if options["dry_run"] else options["out_file"],
    )
    values = {"devices": list(release.device_ids), "out": str(options["out_file"]), "bytes": len(release.encode())}
    if options["as_json"]:
        print_json(values | {"written": not options["dry_run"]})
        return
    verb = "would release" if options["dry_run"] else "released"
    click.echo(f"{verb} keys for {len(release.device_ids)} devices: {', '.join(release.device_ids)}")
    click.echo(f"{values['out']} ({values['bytes']:,} bytes) goes to the coordinator, with the same directory")


@key_authority.command()
@click.option("--num-weights", type=click.IntRange(1), required=True, help="Numbers in an update (the plan's d).")
@click.option("--contributors", type=click.IntRange(2), default=5, show_default=True, help="Updates in a sum.")
@click.option("--max-update-mb", type=click.FloatRange(0, min_open=True), default=64.0, show_default=True)
@_json_option
@_errors_in_one_line
def forecast(*, num_weights: int, contributors: int, max_update_mb: float, as_json: bool) -> None:
    """Say what an encrypted round will cost, in bytes and CPU seconds; refuse one over the limit with what to do.

    Exit codes: 0 within the limits, 1 over one of them, 2 wrong usage.

    Example: flockwise key-authority forecast --num-weights 50000 --contributors 5
    """
    import dataclasses

    from secure_sum.encryption_forecast import EncryptionLimits, check_forecast, forecast_encryption

    told = forecast_encryption(num_weights, contributors)
    if as_json:
        print_json(dataclasses.asdict(told))
    else:
        click.echo(
            f"each device sends {told.update_bytes:,} bytes ({told.update_bytes / num_weights:.1f} a number; plain: 4) and "
            f"encrypts for {told.device_s:.2g} s, a Pi 4 for about {told.slow_device_s:.2g} s (estimated)"
        )
        click.echo(
            f"the coordinator adds for {told.coordinator_s:.2g} s; the key authority gets {told.authority_bytes:,} bytes "
            f"and decrypts for {told.authority_s:.2g} s"
        )
    check_forecast(told, EncryptionLimits(max_update_bytes=int(max_update_mb * 1024 * 1024)))
