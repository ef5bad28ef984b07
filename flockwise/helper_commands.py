"""`flockwise helper`: one of three machines that open sums which the coordinator cannot take apart."""

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

__all__ = ["helper"]

_PROMISE = (
    "Any two helpers and the coordinator read every update: three helpers of one operator are a promise, not a proof."
)
_errors_in_one_line = one_line_errors(EdgeClientError, LinkError, SecureSumError, WireError, OSError)
_json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and end.")
_home_option = click.option(
    "--state-dir", "home", type=click.Path(path_type=Path), required=True, help="Where its keys and its book are."
)
_population_option = click.option("--population", required=True, help="Name of the population.")
_id_option = click.option("--id", "opener_id", required=True, help="Its name in the population.")


@click.group()
def helper() -> None:
    """Run a helper: one of three that take the masks off a sum, and see nothing else.

    Run each on a machine of another operator than the coordinator's and the other helpers'. In this order: request, then the
    enrolment authority's 'directory add', then enrol at the coordinator, then run.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage. Every verb knows --json.

    Example: flockwise helper request --population digits --id helper-1 --state-dir helper
    """


@helper.command()
@_population_option
@_id_option
@_home_option
@_json_option
@_dry_run_option
@_errors_in_one_line
def request(*, population: str, opener_id: str, home: Path, as_json: bool, dry_run: bool) -> None:
    """Print this helper's public keys, for 'flockwise directory add'. Makes them if need be; they hold no secret.

    Exit codes: 0 printed, 1 the keys cannot be made or used, 2 wrong usage.

    Example: flockwise helper request --population digits --id helper-1 --state-dir helper
    """
    from edge_client.membership import request_membership
    from secure_sum.directory_entries import MemberRole, encode_request, fingerprint
    from wire_protocol.identifiers import checked_identifier

    checked_identifier(population, kind="population")
    checked_identifier(opener_id, kind="helper")
    keys = request_membership(
        home, population=population, member_id=opener_id, role=MemberRole.HELPER, only_look=dry_run
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


@helper.command()
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
    """Join the population, so that the coordinator hears this helper: a token of 'coordinator enrol-token' lets it in.

    A token on the command line is seen by this machine's other users; FLOCKWISE_ENROL_TOKEN is not.

    Exit codes: 0 enrolled, 1 refused, or nobody answered, 2 wrong usage.

    Example: flockwise helper enrol --token fwt1.... --population digits --id helper-1 --state-dir helper
    --broker mqtts://broker.example
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


@helper.command()
@_population_option
@_id_option
@_home_option
@opener_link_options
@click.option(
    "--authority", default="", help="Fingerprint of the key directory's authority. [default: the pinned one, or any]"
)
@click.option(
    "--min-contributors", type=click.IntRange(2), default=10, show_default=True,
    help="The fewest updates whose sum it helps to open; devices may demand more.",
)  # fmt: skip
@_json_option
@_dry_run_option
@_errors_in_one_line
def run(**options: Any) -> None:
    """Answer the coordinator until stopped by SIGTERM or Ctrl-C. Its log goes to standard error.

    It answers for one set of contributors per round, of registered devices that have signed for that round, and writes the
    set down before it answers. Never put its state directory back from a backup: it would have forgotten sets.

    Exit codes: 0 stopped by a signal, 1 failed to start, 2 wrong usage.

    Example: flockwise helper run --population digits --id helper-1 --state-dir helper --broker mqtts://broker.example
    --authority 3f2a-... --min-contributors 20
    """
    from edge_client.device_log import log_to_stderr
    from edge_client.opener.helper_service import make_helper

    config = opener_config(options)
    values = {
        "id": options["opener_id"],
        "population": options["population"],
        "min_contributors": options["min_contributors"],
        "note": _PROMISE,
    }
    if options["dry_run"]:
        _say({"would_run": True} | values, options)
        return
    log_to_stderr("info", style="json" if options["as_json"] else "text")
    click.echo(f"helper {options['opener_id']}: {_PROMISE}", err=True)
    service = make_helper(config, min_contributors=options["min_contributors"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    service.serve()


@helper.command()
@_home_option
@_json_option
@_errors_in_one_line
def show(*, home: Path, as_json: bool) -> None:
    """Show how many rounds this helper has committed itself to, and which authority it has pinned. Changes nothing.

    Exit codes: 0 shown, 1 there is nothing that can be read, 2 wrong usage.

    Example: flockwise helper show --state-dir helper
    """
    from edge_client.opener.helper_service import look_at_helper

    values = look_at_helper(home)
    if as_json:
        print_json(values)
    else:
        click.echo("  ".join(f"{name} {value}" for name, value in values.items()))


def _say(values: dict[str, Any], options: dict[str, Any]) -> None:
    if options["as_json"]:
        print_json(values)
    else:
        click.echo("  ".join(f"{name} {value}" for name, value in values.items()))
