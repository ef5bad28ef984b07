"""What `flockwise coordinator serve` does for private tasks: the bundle, and what is said of each round."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flockwise.privacy_options import take_privacy_file

if TYPE_CHECKING:
    from coordinator.task_bundle import TaskBundle

__all__ = ["epsilon_text", "epsilon_values", "private_bundle", "round_recorder", "waiting_room"]

_MANY_BANDS = 4
"""From here on more wait than usual."""


def private_bundle(bundle: "TaskBundle", options: dict[str, Any]) -> "TaskBundle":
    """The bundle as the options want it; completes ``min_reports``, which a private round's noise rests on.

    Raises:
        InvalidConfig: The mechanism does not fit the task, or claims what no served fleet can support.
    """
    from coordinator.errors import InvalidConfig
    from coordinator.private_task import PrivacyWish, least_contributors, made_private
    from coordinator.secret_sampling import refuse_sampling_in_service

    take_privacy_file(options)
    refuse_sampling_in_service(options["sampling_rate"])
    if options["epsilon"] is None:
        if options["min_contributors"] or options["privacy_rounds"]:
            raise click.UsageError("--min-contributors and --privacy-rounds belong to --epsilon")
        if bundle.plan.privacy is not None:
            options["min_reports"] = options["min_reports"] or bundle.plan.privacy.min_contributors
        return bundle
    if options["clipping"] != "none" or not options["clipping_norm"]:
        raise click.UsageError("--epsilon needs --clipping-norm, the norm to which devices clip; leave --clipping out")
    if options["evaluate_every"]:
        raise InvalidConfig("devices refuse to evaluate a private task: leave --evaluate-every out")
    least = options["min_contributors"] or options["min_reports"] or least_contributors(options["report_goal"])
    options["min_reports"] = options["min_reports"] or least
    wish = PrivacyWish(
        epsilon=options["epsilon"],
        num_rounds=options["privacy_rounds"] or options["rounds"],
        clipping_norm=options["clipping_norm"],
        min_contributors=least,
        target_delta=options["delta"],
        mode=options["privacy_mode"],
        num_bands=options["privacy_bands"],
        adaptive_quantile=options["adaptive_clip"],
    )
    options["clipping_norm"] = None  # the devices', from here on; the aggregation clips nothing
    return made_private(bundle, wish)


def waiting_room(bundle: "TaskBundle") -> dict[str, float]:
    """What a round policy says of those who wait: with noise in b bands, b cohorts have to be there by turns."""
    spec = bundle.plan.privacy
    if spec is None or spec.num_bands < _MANY_BANDS:
        return {}
    return {"max_waiting_per_cohort": spec.num_bands + 1.0}


def round_recorder(state_dir: Path, bundle: "TaskBundle") -> Callable[[Any], None]:
    """What writes down each round of a private task for `flockwise privacy report`; nothing for any other."""
    from coordinator.privacy_record import PrivacyRecord

    if bundle.plan.privacy is None:
        return lambda _: None
    return PrivacyRecord(state_dir / bundle.task_id, bundle.plan).note


def epsilon_values(summary: Any, bundle: "TaskBundle") -> dict[str, Any]:
    """What a round's JSON says of privacy; nothing if the task is not private."""
    spec = bundle.plan.privacy
    if spec is None:
        return {}
    return {
        "epsilon_let_through": summary.epsilon,
        "epsilon_allowed": spec.target_epsilon,
        "target_delta": spec.target_delta,
    }


def epsilon_text(summary: Any, bundle: "TaskBundle") -> str:
    """The same for people: what the filter has let through so far; the guarantee is what it allows at most."""
    spec = bundle.plan.privacy
    if spec is None:
        return ""
    return f" epsilon let through {summary.epsilon:.4f} of {spec.target_epsilon:g} at delta {spec.target_delta:g}"
