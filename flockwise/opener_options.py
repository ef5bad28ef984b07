"""The options by which an opener's command reaches a broker, and the configuration that they come to."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edge_client.config import EdgeConfig

__all__ = ["opener_config", "opener_link_options"]


def opener_link_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options: broker, TLS, login."""
    options = (
        click.option("--broker", required=True, help="mqtts://host:port, or mqtt://host:port on this machine."),
        click.option("--ca-file", default="", help="CA to trust for mqtts://."),
        click.option("--cert-file", default="", help="Our certificate, for a broker that asks for one."),
        click.option("--key-file", default="", help="The key of --cert-file."),
        click.option("--username", default="", help="Login at the broker; with --password-file."),
        click.option("--password-file", default="", help="File with the password."),
        click.option(
            "--coordinator-key",
            default="",
            help="The coordinator's public key (coordinator.pub): hear only what it signed.",
        ),
        click.option(
            "--allow-plaintext", is_flag=True, help="Allow mqtt:// to another machine: everybody between can read."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def opener_config(options: dict[str, Any]) -> "EdgeConfig":
    """The options as the configuration of something that speaks a device's channel; it has no examples.

    Raises:
        UsageError: Options that do not go together; says which.
    """
    from broker_link.errors import LinkError
    from edge_client.config import BrokerSection, DataSection, DeviceSection, EdgeConfig, PrivacySection
    from wire_protocol.errors import WireError

    home: Path = options["home"]
    try:
        return EdgeConfig(
            device=DeviceSection(
                id=options["opener_id"], population=options["population"], state_dir=str(home.absolute())
            ),
            broker=BrokerSection(
                url=options["broker"],
                ca_file=options["ca_file"],
                cert_file=options["cert_file"],
                key_file=options["key_file"],
                allow_plaintext=options["allow_plaintext"],
                username=options["username"],
                password_file=options["password_file"],
                coordinator_key=options["coordinator_key"],
            ),
            data=DataSection(path=str(home)),
            privacy=PrivacySection(authority=options.get("authority", "")),
        )
    except (ValueError, LinkError, WireError) as error:
        raise click.UsageError(str(error)) from error
