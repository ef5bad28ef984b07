"""The systemd unit of the device: the packaged text, and the same text for another place, user or version.

`deploy/` in the source tree is the only place where the files are kept; the wheel carries copies of them as
``edge_client/service_files``, so that ``pip install`` on a device is enough.

An installed unit begins with a stamp, a hash of what follows: a unit that was installed and never edited may be
replaced by a newer one, any other may not.
"""

import hashlib
import re
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Final

from edge_client.errors import ConfigError

__all__ = [
    "CONFIG_TEMPLATE",
    "DEFAULT_PREFIX",
    "MAX_EXPOSURE",
    "UNIT_NAME",
    "is_untouched",
    "packaged_text",
    "render_unit",
    "stamped",
]

UNIT_NAME: Final = "flockwise-edge.service"
CONFIG_TEMPLATE: Final = "edge.toml"
DEFAULT_PREFIX: Final = PurePosixPath("/opt/flockwise")
MAX_EXPOSURE: Final = 2.0
"""Highest exposure level, as ``systemd-analyze security`` counts it, that counts as hardened. 10 is worst."""

_STAMP: Final = re.compile(r"# Installed by flockwise [^\n]*; sha256 ([0-9a-f]{64})\n")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_PREFIX: Final = re.compile(r"(/[A-Za-z0-9_.+-]+)+")
_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - refused, not used


def packaged_text(name: str) -> str:
    """A file that came with this package: `UNIT_NAME` or `CONFIG_TEMPLATE`."""
    packaged = resources.files("edge_client") / "service_files" / name
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    # Run from the source tree.
    return (Path(__file__).parent.parent / "deploy" / name).read_text(encoding="utf-8")


def render_unit(*, prefix: PurePosixPath = DEFAULT_PREFIX, user: str = "") -> str:
    """The unit for an installation.

    Args:
        prefix: The virtual environment that holds ``bin/flockwise``.
        user: Who the daemon runs as; if empty, a user that systemd makes up while it runs.

    Raises:
        ConfigError: A prefix that the hardened service could not see or systemd would misread, or no user name.
    """
    place = str(prefix)
    if not _PREFIX.fullmatch(place) or ".." in prefix.parts:
        raise ConfigError(f"prefix {place!r} must be an absolute path of letters, digits and _.+-")
    if any(place == hidden or place.startswith(f"{hidden}/") for hidden in _HIDDEN):
        raise ConfigError(f"prefix {place} is hidden from the hardened service; make the environment in /opt/flockwise")
    text = packaged_text(UNIT_NAME).replace(f"ExecStart={DEFAULT_PREFIX}/", f"ExecStart={place}/")
    if user:
        if not _USER.fullmatch(user):
            raise ConfigError(f"user {user!r} is not a user name; leave it out, and systemd makes up a user")
        text = text.replace("DynamicUser=yes\n", f"DynamicUser=no\nUser={user}\n")
    return text


def stamped(text: str, *, version: str) -> str:
    """A text with its stamp in front."""
    return f"# Installed by flockwise {version}; sha256 {_digest(text)}\n{text}"


def is_untouched(text: str) -> bool:
    """Whether a stamped text is still what was installed."""
    match = _STAMP.match(text)
    return match is not None and match.group(1) == _digest(text[match.end() :])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
