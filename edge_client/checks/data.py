"""What `doctor` checks about the settings' meaning and the local examples."""

from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from edge_client.cached_task import find_cached_task
from edge_client.checks.state import state_path
from edge_client.doctor import Check, Finding, Subject, fail, ok, skip, warn
from edge_client.errors import DataError, ExampleMismatch
from edge_client.example_store import open_examples, verify_examples
from edge_client.labels import check_labels
from edge_client.service_install import UNIT_PATH
from wire_protocol.plan import CLASS_LOSSES

__all__ = ["CONFIG_CHECKS", "DATA_CHECKS"]

_PLACEHOLDER: Final = "CHANGE-ME"
_FEW_EXAMPLES: Final = 10
_IMPORT: Final = "flockwise edge import-data FILE --out DIR, then set data.path to DIR"
_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - told about, not used


def check_population(subject: Subject) -> Finding:
    """Whether the population was filled in."""
    population = subject.config.device.population
    if population == _PLACEHOLDER:
        return fail(f"device.population is still {_PLACEHOLDER}", "ask the fleet's operator for its name, and set it")
    return ok(f"population {population}")


def check_visible(subject: Subject) -> Finding:
    """Whether the installed service can see the configured places: homes and /tmp are hidden from it."""
    if not (subject.machine.root / UNIT_PATH.relative_to("/")).exists():
        return skip("the service is not installed")
    config = subject.config
    places = {
        "data.path": config.data.path,
        "device.state_dir": config.device.state_dir,
        "broker.ca_file": config.broker.ca_file,
    }
    hidden = [key for key, place in places.items() if place and _is_hidden(Path(place))]
    if hidden:
        remedy = "move it below /var/lib/flockwise or /etc/flockwise, or open it: BindReadOnlyPaths= in a drop-in"
        return fail(f"{', '.join(hidden)} is hidden from the hardened service", remedy)
    return ok("the service can see everything that is configured")


def _is_hidden(path: Path) -> bool:
    return any(PurePosixPath(path.absolute()).is_relative_to(place) for place in _HIDDEN)


def check_data(subject: Subject) -> Finding:
    """Whether the examples can be read, whole, and what they are."""
    path = Path(subject.config.data.path)
    try:
        verify_examples(path)
        examples = open_examples(path)
    except (DataError, OSError) as error:
        return fail(str(error), _IMPORT)
    kind = f"{len(np.unique(examples.labels))} classes"
    if examples.labels.ndim > 1:
        kind = f"{examples.labels.shape[1]} numbers to predict"
    detail = f"{examples.num_examples} examples of shape {examples.input_shape}, {kind}"
    if examples.num_examples >= _FEW_EXAMPLES:
        return ok(detail)
    return warn(detail, "collect more: a plan may ask for more examples, and this device then declines")


def check_data_fits(subject: Subject) -> Finding:
    """Whether the examples are what the plan of the last round asks for."""
    task = find_cached_task(state_path(subject) / "blobs")
    if task is None:
        return skip("no plan has been fetched yet")
    try:
        examples = open_examples(Path(subject.config.data.path))
    except (DataError, OSError):
        return skip("the examples cannot be read")
    plan = task.plan
    if tuple(examples.input_shape) != tuple(plan.input_shape):
        detail = f"examples have shape {examples.input_shape}, the plan asks for {tuple(plan.input_shape)}"
        return fail(detail, "import them again with --shape, or ask whether this is the right population")
    try:
        check_labels(plan, examples.labels)
    except ExampleMismatch as error:
        return fail(str(error), "correct the labels and import again, or ask whether this is the right population")
    what_is_predicted = "classes" if plan.loss in CLASS_LOSSES else "outputs"
    if examples.num_examples < plan.min_examples:
        detail = f"{examples.num_examples} examples, the plan asks for {plan.min_examples}"
        return warn(detail, "collect more: until then this device declines")
    return ok(f"they fit the plan of the last round: {tuple(plan.input_shape)}, {plan.num_classes} {what_is_predicted}")


CONFIG_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("population", check_population),
    ("visible", check_visible),
)
"""Name and function of each check of the settings."""

DATA_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("data", check_data),
    ("data_fits", check_data_fits),
)
"""Name and function of each check of the examples."""
