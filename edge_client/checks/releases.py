"""Checks of pushed models: the keys that this device trusts, and what became of the releases that came."""

from pathlib import Path
from typing import Final

from edge_client.checks.state import state_path
from edge_client.doctor import Check, Finding, Subject, fail, ok, skip, warn
from edge_client.errors import CorruptState, ReleaseRefused
from edge_client.releases.slots import MODEL_FILE, RECORD_FILE, decode_slot_record
from edge_client.releases.trusted import check_root
from edge_client.state_dir import models_path

__all__ = ["RELEASE_CHECKS"]

_NONE: Final = "no model is pushed to this device (releases.models)"
_MAX_READ: Final = 64 * 1024


def check_release_root(subject: Subject) -> Finding:
    """Whether the root file, where all trust in releases begins, can be read and holds a root that signed itself."""
    section = subject.config.releases
    if not section.models:
        return skip(_NONE)
    path = Path(section.root_file)
    remedy = f"copy the channel's root.json (flockwise keys init made it) to {path}, readable for the daemon"
    try:
        with path.open("rb") as stream:
            version = check_root(stream.read(_MAX_READ))
    except OSError as error:
        return fail(f"{path} cannot be read: {error.strerror}", remedy)
    except ReleaseRefused as error:
        return fail(f"{path}: {error}", remedy)
    return ok(f"{path} is root version {version}")


def check_released_models(subject: Subject) -> Finding:
    """Which release of each pushed model is in use, and which are refused, with the reason."""
    names = subject.config.releases.models
    if not names:
        return skip(_NONE)
    told, wrong = [], False
    for name in names:
        directory = models_path(state_path(subject)) / name
        try:
            record = decode_slot_record((directory / RECORD_FILE).read_bytes())
        except FileNotFoundError:
            told.append(f"{name}: nothing has come yet")
            continue
        except (OSError, CorruptState) as error:
            told.append(f"{name}: {error}")
            wrong = True
            continue
        told.append(f"{name}: release {record.current or 'none'} in use{' (on trial)' if record.on_trial else ''}")
        told += [f"release {number} refused ({reason})" for number, reason in record.refused.items()]
        is_there = not record.current or (directory / "current" / MODEL_FILE).is_file()
        wrong = wrong or not is_there or str(record.current) in record.refused
        told += [] if is_there else [f"its {MODEL_FILE} is not there"]
    detail = ", ".join(told)
    if wrong:
        return warn(detail, "restart the daemon, which fetches what is damaged; push a release that works here")
    return ok(detail)


RELEASE_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("release_root", check_release_root),
    ("released_models", check_released_models),
)
"""Name and function of each check, in the order in which they are made."""
