"""Reads the configuration file and the environment; every complaint names section, key, value and what is allowed."""

import contextlib
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from broker_link.errors import InvalidBrokerUrl
from edge_client.config import (
    BrokerSection,
    CommitteeSection,
    DataSection,
    DeviceSection,
    EdgeConfig,
    EligibilitySection,
    PrivacySection,
    ReleasesSection,
    TrainingSection,
)
from edge_client.errors import ConfigError
from wire_protocol.errors import InvalidIdentifier

__all__ = ["ENV_PREFIX", "KEY_CREDENTIAL", "PASSWORD_CREDENTIAL", "default_config_path", "load_config"]

ENV_PREFIX: Final = "FLOCKWISE__"
PASSWORD_CREDENTIAL: Final = "broker-password"  # noqa: S105 - the name of a file
"""Name of the broker's password among the service's credentials."""
KEY_CREDENTIAL: Final = "device.key"
"""Name of the device's private key among them."""
_CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"
_PAIRS: Final = (
    ("username", "password_file", PASSWORD_CREDENTIAL),
    ("cert_file", "key_file", KEY_CREDENTIAL),
)
_SECTIONS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "device": DeviceSection,
    "broker": BrokerSection,
    "data": DataSection,
    "training": TrainingSection,
    "eligibility": EligibilitySection,
    "privacy": PrivacySection,
    "releases": ReleasesSection,
    "committee": CommitteeSection,
}
_PATHS: Final = (
    ("device", "state_dir"),
    ("broker", "ca_file"),
    ("broker", "cert_file"),
    ("broker", "key_file"),
    ("broker", "password_file"),
    ("data", "path"),
    ("releases", "root_file"),
)
_VARIABLE: Final = re.compile(ENV_PREFIX + r"([A-Za-z0-9]+)__([A-Za-z0-9_]+)")
_LOGIN: Final = re.compile(r"//[^@]*@")
_SECRETS: Final = {"url"}

_Values = dict[str, dict[str, Any]]


def default_config_path(environ: Mapping[str, str]) -> Path | None:
    """``$FLOCKWISE_CONFIG``, the user's, or the machine's file; None if there is none of them."""
    if environ.get("FLOCKWISE_CONFIG"):
        return Path(environ["FLOCKWISE_CONFIG"])
    home = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = (home / "flockwise" / "edge.toml", Path("/etc/flockwise/edge.toml"))
    return next((place for place in places if place.is_file()), None)


def load_config(path: Path | None, environ: Mapping[str, str]) -> EdgeConfig:
    """Loads and checks the configuration.

    Args:
        path: The TOML file; None if everything comes from the environment.
        environ: Environment variables; those that begin with ``FLOCKWISE__`` override the file.

    Raises:
        ConfigError: A file that cannot be read, an unknown key, a missing or forbidden value.
    """
    values = _read_toml(path) if path is not None else {}
    _refuse_unknown(values)
    _override(values, environ)
    base = path.parent if path is not None else Path()
    values.setdefault("device", {}).setdefault("state_dir", str(_default_state_dir(environ)))
    _default_credentials(values, base, environ)
    for section, key in _PATHS:
        if values.get(section, {}).get(key):
            text = values[section][key]
            values[section][key] = _resolved(f"{section}.{key}", text, base) if isinstance(text, str) else text
    sections = {name: _convert_section(name, kind, values.get(name, {})) for name, kind in _SECTIONS.items()}
    return EdgeConfig(**sections)


def _resolved(key: str, text: str, base: Path) -> str:
    """A path as it is meant: relative to the file, ``~`` a home."""
    try:
        return str(base / Path(text).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{key} = {text!r} is not allowed: there is no such home directory; write it out") from error


def _read_toml(path: Path) -> _Values:
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    for section, entries in values.items():
        if section not in _SECTIONS:
            raise ConfigError(f"there is no section [{section}]; {_nearest(section, _SECTIONS)}")
        if not isinstance(entries, dict):
            raise ConfigError(f"{section} = {entries!r} is not allowed: [{section}] is a section")
        for key in entries:
            _refuse_unknown_key(section, key, f"{section}.{key}")


def _refuse_unknown_key(section: str, key: str, shown: str) -> None:
    known = _SECTIONS[section].__struct_fields__
    if key not in known:
        raise ConfigError(f"{shown}: there is no such key in [{section}]; {_nearest(key, known)}")


def _override(values: _Values, environ: Mapping[str, str]) -> None:
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        match = _VARIABLE.fullmatch(variable)
        if match is None:
            raise ConfigError(f"{variable}: write {ENV_PREFIX}SECTION__KEY")
        section, key = match.group(1).lower(), match.group(2).lower()
        if section not in _SECTIONS:
            raise ConfigError(f"{variable}: there is no section [{section}]; {_nearest(section, _SECTIONS)}")
        _refuse_unknown_key(section, key, variable)
        kind = {field.name: field.type for field in msgspec.structs.fields(_SECTIONS[section])}[key]
        try:
            # Not strict: the environment knows only text, and "2" must become a number.
            values.setdefault(section, {})[key] = msgspec.convert(text, kind, strict=False)
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigError(f"{variable}: {section}.{key} = {text!r} is not allowed: {error}") from error


def _convert_section(section: str, kind: type[msgspec.Struct], entries: Mapping[str, Any]) -> Any:
    try:
        return msgspec.convert(entries, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(section, entries, error)) from error
    except InvalidBrokerUrl as error:
        # The complaint repeats the address, and an address may hold a password; so does the chained error.
        raise ConfigError(f"broker.url: {_LOGIN.sub('//...@', str(error))}") from None
    except InvalidIdentifier as error:
        raise ConfigError(f"[{section}]: {error}") from error


def _explain(section: str, entries: Mapping[str, Any], error: msgspec.ValidationError) -> str:
    text = str(error)
    missing = re.search(r"missing required field `(\w+)`", text)
    if missing:
        variable = f"{ENV_PREFIX}{section.upper()}__{missing.group(1).upper()}"
        return f"{section}.{missing.group(1)} is missing: put it under [{section}], or set {variable}"
    at = re.search(r"^(.*) - at `\$\.(\w+)`$", text)
    if at:
        key = at.group(2)
        value = "..." if key in _SECRETS else repr(entries.get(key))
        return f"{section}.{key} = {value} is not allowed: {at.group(1)}"
    return f"[{section}]: {text}"


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"


def _default_credentials(values: _Values, base: Path, environ: Mapping[str, str]) -> None:
    """A user without a password file, and a certificate without a key file, have those that the service installs."""
    broker = values.get("broker", {})
    given = environ.get(_CREDENTIALS)
    places = [*([Path(given)] if given else []), base / "credentials"]
    for has, lacks, name in _PAIRS:
        if not broker.get(has) or broker.get(lacks):
            continue
        for path in (place / name for place in places):
            with contextlib.suppress(OSError):
                # One byte, a newline, is what the unit gives where there is no file.
                if path.is_file() and path.stat().st_size > 1:
                    broker[lacks] = str(path.absolute())
                    break


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    """What systemd gives a service, or else the user's state directory."""
    if environ.get("STATE_DIRECTORY"):
        return Path(environ["STATE_DIRECTORY"].split(":")[0])
    return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "flockwise"
