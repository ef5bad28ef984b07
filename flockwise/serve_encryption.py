"""What `flockwise coordinator serve` needs to know of encrypted sums: the key authority, its keys, and what a round may cost."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from coordinator.task_bundle import TaskBundle
    from wire_protocol.confidentiality import EncryptedSums

__all__ = ["encrypted_way", "encryption_key_bytes", "encryption_options", "forecast_text", "forecast_values"]

_MEBIBYTE = 1024 * 1024


def encryption_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options."""
    options = (
        click.option(
            "--key-authority", metavar="ID", help="Of encryption: who decrypts the sums, as the key directory names it."
        ),
        click.option(
            "--encryption-keys", "keys_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="What it released: the file of 'flockwise key-authority issue'.",
        ),
        click.option(
            "--max-encrypted-mb", type=click.FloatRange(0, min_open=True), default=64.0, show_default=True,
            help="Largest encrypted update; a task whose updates would be larger is refused with what to do.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def encryption_key_bytes(options: dict[str, Any]) -> bytes | None:
    """The released keys' bytes, if the options name them."""
    path: Path | None = options["keys_file"]
    return None if path is None else path.read_bytes()


def encrypted_way(bundle: "TaskBundle", directory: bytes, options: dict[str, Any]) -> "EncryptedSums":
    """The key authority as a plan names it, if a round is not too large.

    Raises:
        InvalidConfig: The keys are not the key authority's, or not for all devices; or a round would cost too much.
        UsageError: An option is missing.
    """
    from coordinator.confidential_task import encrypted_sums
    from coordinator.errors import InvalidConfig
    from secure_sum.encryption_forecast import EncryptionLimits, check_forecast, forecast_encryption
    from secure_sum.errors import ForecastExceeded

    keys = encryption_key_bytes(options)
    if keys is None or not options["key_authority"]:
        raise click.UsageError("--confidentiality he needs --key-authority and --encryption-keys")
    forecast = forecast_encryption(bundle.plan.num_parameters, options["report_goal"])
    try:
        check_forecast(forecast, EncryptionLimits(max_update_bytes=int(options["max_encrypted_mb"] * _MEBIBYTE)))
    except ForecastExceeded as error:
        raise InvalidConfig(f"{error} (--max-encrypted-mb)") from error
    return encrypted_sums(directory, options["key_authority"], keys)


def forecast_values(bundle: "TaskBundle", num_contributors: int) -> dict[str, Any]:
    """What an encrypted round will cost."""
    import dataclasses

    from secure_sum.encryption_forecast import forecast_encryption

    return dataclasses.asdict(forecast_encryption(bundle.plan.num_update_numbers, num_contributors))


def forecast_text(forecast: dict[str, Any]) -> str:
    """The same for people."""
    return (
        f"each device sends {forecast['update_bytes']:,} bytes a round and encrypts for {forecast['device_s']:.2g} s (a Pi 4: "
        f"about {forecast['slow_device_s']:.2g} s, estimated); adding {forecast['num_contributors']} takes "
        f"{forecast['coordinator_s']:.2g} s, decrypting {forecast['authority_s']:.2g} s"
    )
