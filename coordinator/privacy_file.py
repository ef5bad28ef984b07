"""A task's privacy in a file: the same words as the options of `serve`, `simulate` and `privacy explain`.

    mode = "central"            # or "distributed" (as if left out), "local"
    epsilon = 4.0
    delta = 1e-5
    clipping_norm = 0.5
    rounds = 30                 # that the budget is for
    min_contributors = 90
    bands = 1                   # central: noise correlated over so many rounds
    adaptive_clip = 0.5         # central: the clip follows this quantile of the updates' norms
    sampling_rate = 0.05        # central, simulated alone: secret Poisson cohorts

TOML, or JSON if the file's name ends so. What is not listed here is refused.
"""

import math
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from coordinator.errors import InvalidConfig

__all__ = ["PrivacyFile", "parse_privacy_file", "privacy_file_at"]

_Fraction = Annotated[float, msgspec.Meta(gt=0, lt=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_MOST_BYTES = 64 * 1024


class PrivacyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is in it."""

    epsilon: _Positive
    clipping_norm: _Positive
    mode: Literal["distributed", "local", "central"] = "distributed"
    delta: _Fraction = 1e-5
    rounds: _Count | None = None
    min_contributors: _Count | None = None
    bands: Annotated[int, msgspec.Meta(ge=1, le=12)] = 1
    adaptive_clip: _Fraction | None = None
    sampling_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and math.isfinite(self.clipping_norm)):
            raise ValueError("epsilon and clipping_norm must be finite")


def privacy_file_at(path: Path) -> PrivacyFile:
    """Reads one.

    Raises:
        InvalidConfig: It cannot be read, or is not what this module says; names the field.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidConfig(f"cannot read {path}: {error.strerror}") from error
    try:
        return parse_privacy_file(raw, kind="json" if path.suffix == ".json" else "toml")
    except InvalidConfig as error:
        raise InvalidConfig(f"{path} is not a privacy file: {error}") from error


def parse_privacy_file(raw: bytes, *, kind: Literal["toml", "json"]) -> PrivacyFile:
    """Makes sense of a file's bytes.

    Raises:
        InvalidConfig: They are not what this module says; names the field.
    """
    if len(raw) > _MOST_BYTES:
        raise InvalidConfig(f"{len(raw)} bytes; it has at most {_MOST_BYTES}")
    try:
        if kind == "json":
            return msgspec.json.decode(raw, type=PrivacyFile)
        return msgspec.convert(tomllib.loads(raw.decode()), type=PrivacyFile)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(str(error)) from error
