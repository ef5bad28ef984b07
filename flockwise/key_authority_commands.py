"""`flockwise key-authority`: the opener of encrypted sums, on a machine that is not the coordinator's."""

import signal
from pathlib import Path
from typing import Any

import click

from broker_link.errors import LinkError
from edge_client.errors import EdgeClientError
from flockwise.opener_options import opener_config, opener_link_options
from flockwise.reporting import one_line_errors, print_json
from secure_sum.errors import SecureSumError
from wire_protocol.errors import WireError

__all__ = ["key_authority"]

_errors_in_one_line = one_line_errors(EdgeClientError, LinkError, SecureSumError, WireError, OSError)
_json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and end.")
_home_option = click.option(
    "--state-dir", "home", type=click.Path(path_type=Path), required=True, help="Where its keys and its book are."
)
_population_option = click.option("--population", required=True, help="Name of the population.")
_id_option = click.option("--id", "opener_id", default="key-authority", show_default=True, help="Its name in it.")


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
def request(*, population: str, opener_id: str, home: Path, as_json: bool, dry_run: bool) -> None:
    """Print this key authority's public identity and sealing key, for 'flockwise directory add'. Makes them if need be.

    Exit codes: 0 printed, 1 the keys cannot be made or used, 2 wrong usage.

    Example: flockwise key-authority request --population banks --state-dir ka
    """
    from edge_client.membership import request_membership
    from secure_sum.directory_entries import MemberRole, encode_request, fingerprint
    from wire_protocol.identifiers import checked_identifier

    checked_identifier(population, kind="population")
    checked_identifier(opener_id, kind="key authority")
    keys = request_membership(
        home, population=population, member_id=opener_id, role=MemberRole.KEY_AUTHORITY, only_look=dry_run
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
        authority_id=options["opener_id"],
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
@click.option("--token", "token_text", envvar="FLOCKWISE_ENROL_TOKEN", help="Of flockwise coordinator enrol-token.")
@_population_option
@_id_option
@_home_option
@opener_link_options
@click.option("--timeout-s", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True)
@_json_option
@_dry_run_option
@_errors_in_one_line
def enrol(**options: Any) -> None:
    """Join the population, so that the coordinator hears this key authority: a token of 'coordinator enrol-token' lets it in.

    A token on the command line is seen by this machine's other users; FLOCKWISE_ENROL_TOKEN is not.

    Exit codes: 0 enrolled, 1 refused, or nobody answered, 2 wrong usage.

    Example: flockwise key-authority enrol --token fwt1.... --population banks --state-dir ka --broker mqtts://broker.example
    """
    from edge_client.enrolment import enrol as enrol_device
    from wire_protocol.enrolment import EnrolmentToken

    if not options["token_text"]:
        raise click.UsageError("a token is needed: --token, or the variable FLOCKWISE_ENROL_TOKEN")
    config, token = opener_config(options), EnrolmentToken.parse(options["token_text"])
    if options["dry_run"]:
        _say({"would_enrol": True, "id": options["opener_id"], "token_id": token.token_id}, options)
        return
    enrolled = enrol_device(config, token, timeout_s=options["timeout_s"])
    _say({"enrolled": True, "id": enrolled, "population": options["population"]}, options)


@key_authority.command()
@_population_option
@_id_option
@_home_option
@opener_link_options
@click.option("--authority", default="", help="Fingerprint of the enrolment authority. [default: the pinned one]")
@click.option(
    "--min-contributors", type=click.IntRange(2), default=2, show_default=True,
    help="The fewest updates whose sum it decrypts; devices may demand more.",
)  # fmt: skip
@_json_option
@_dry_run_option
@_errors_in_one_line
def run(**options: Any) -> None:
    """Answer the coordinator until stopped by SIGTERM or Ctrl-C. Its log goes to standard error.

    It decrypts one total per round, of devices that its keys were issued to and that have signed for that round, and writes
    the total down before it decrypts. Back its state directory up never: an old copy would have forgotten totals.

    Exit codes: 0 stopped by a signal, 1 failed to start, 2 wrong usage.

    Example: flockwise key-authority run --population banks --state-dir ka --broker mqtts://broker.example
    --min-contributors 4
    """
    from edge_client.device_log import log_to_stderr
    from edge_client.opener.key_service import make_key_authority

    config = opener_config(options)
    values = {name: options[name] for name in ("opener_id", "population", "min_contributors")}
    if options["dry_run"]:
        _say({"would_run": True} | values, options)
        return
    log_to_stderr("info", style="json" if options["as_json"] else "text")
    service = make_key_authority(config, min_contributors=options["min_contributors"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.serve()


@key_authority.command()
@_home_option
@_json_option
@_errors_in_one_line
def show(*, home: Path, as_json: bool) -> None:
    """Show for which devices keys were issued, how many rounds were decrypted, and how many totals were wrong.

    Exit codes: 0 shown, 1 there is nothing that can be read, 2 wrong usage.

    Example: flockwise key-authority show --state-dir ka
    """
    from edge_client.opener.key_service import look_at_key_authority

    values = look_at_key_authority(home)
    if as_json:
        print_json(values)
    else:
        click.echo("  ".join(f"{name} {value}" for name, value in values.items()))


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

    from flockwise.serve_encryption import forecast_text
    from secure_sum.encryption_forecast import EncryptionLimits, check_forecast, forecast_encryption

    told = forecast_encryption(num_weights, contributors)
    if as_json:
        print_json(dataclasses.asdict(told))
    else:
        click.echo(forecast_text(dataclasses.asdict(told)))
    check_forecast(told, EncryptionLimits(max_update_bytes=int(max_update_mb * 1024 * 1024)))


def _say(values: dict[str, Any], options: dict[str, Any]) -> None:
    if options["as_json"]:
        print_json(values)
    else:
        click.echo("  ".join(f"{name} {value}" for name, value in values.items()))
