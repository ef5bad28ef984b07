"""The options of `flockwise coordinator serve` that keep single updates from the coordinator, and what they come to."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from flockwise.serve_encryption import encrypted_way, encryption_options, forecast_values

if TYPE_CHECKING:
    from coordinator.task_bundle import TaskBundle

__all__ = ["confidential_bundle", "confidentiality_options", "confidentiality_values", "directory_bytes"]


def confidentiality_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options."""
    options = (
        click.option(
            "--confidentiality", type=click.Choice(["none", "helpers", "masks", "he"]), default="none", show_default=True,
            help="Who opens the sums, which this coordinator cannot take apart; needs --epsilon (or a private plan).",
        ),
        click.option(
            "--helper", "helpers", multiple=True, metavar="ID=OPERATOR", help="Three times: a helper, and who runs it."
        ),
        click.option(
            "--helpers-needed", type=click.Choice(["2", "3"]), default="2", show_default=True,
            help="2: one may be away. 3: none may, and a coordinator that lies learns nothing even with two on its side.",
        ),
        click.option(
            "--committee", multiple=True, metavar="ID", help="Of masks, three times or more: a device that opens sums."
        ),
        click.option(
            "--committee-threshold", type=click.IntRange(2, 255),
            help="Members that open. [default: the fewest that are safe if a third conspires: 3 of 4, 22 of 32]",
        ),
        click.option(
            "--mask-neighbours", type=click.IntRange(2, 2000), default=64, show_default=True,
            help="With how many a device shares masks in a round of more than 64 devices; even.",
        ),
        click.option(
            "--directory", "directory_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="The key directory (directory.fwkd) of devices and openers; the plan names it by its hash.",
        ),
        click.option(
            "--opening-timeout-s", type=click.FloatRange(60), default=3600.0, show_default=True,
            help="A sum that is not opened after this is given up, and its round with it.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return encryption_options(command)


def directory_bytes(options: dict[str, Any]) -> bytes | None:
    """The key directory's bytes, if the options name one."""
    path: Path | None = options["directory_file"]
    return None if path is None else path.read_bytes()


def confidential_bundle(bundle: "TaskBundle", options: dict[str, Any]) -> "TaskBundle":
    """The bundle as the options want it.

    Raises:
        InvalidConfig: The openers cannot be named, or the task is not private.
    """
    from coordinator.confidential_task import helper_sums, made_confidential, masked_sums, named_opener

    for name, way in (("helpers", "helpers"), ("committee", "masks")):
        if options[name] and options["confidentiality"] != way:
            raise click.UsageError(f"--{name.removesuffix('s')} belongs to --confidentiality {way}")
    if options["confidentiality"] == "none":
        return bundle
    directory = directory_bytes(options)
    if directory is None:
        raise click.UsageError("--confidentiality needs --directory, in which devices and openers stand")
    if options["confidentiality"] == "he":
        return made_confidential(bundle, encrypted_way(bundle, directory, options))
    if options["confidentiality"] == "masks":
        masks = masked_sums(
            directory,
            options["committee"],
            threshold=options["committee_threshold"],
            num_neighbours=options["mask_neighbours"],
        )
        return made_confidential(bundle, masks)
    needed: Literal[2, 3] = 3 if options["helpers_needed"] == "3" else 2
    named = [named_opener(text) for text in options["helpers"]]
    return made_confidential(bundle, helper_sums(directory, named, num_needed=needed))


def confidentiality_values(bundle: "TaskBundle", num_contributors: int) -> dict[str, Any]:
    """What the command says of it: who opens, and whether that is a promise only; nothing if nobody does."""
    from coordinator.confidential_task import who_must_be_believed
    from wire_protocol.confidentiality import EncryptedSums

    way = bundle.plan.confidentiality
    if way is msgspec.UNSET:
        return {}
    is_promise, text = who_must_be_believed(way)
    forecast = {"forecast": forecast_values(bundle, num_contributors)} if isinstance(way, EncryptedSums) else {}
    return forecast | {
        "confidentiality": type(way).__struct_config__.tag,
        "openers": [opener.device_id for opener in way.openers],
        "is_promise_of_one_operator": is_promise,
        "who_must_be_believed": text,
    }
