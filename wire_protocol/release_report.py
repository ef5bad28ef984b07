"""What a device says about a release: how far it is with it, and how it did. A message like those of `messages`."""

import enum
import math
from typing import Annotated

import msgspec

from wire_protocol.message_base import Identifier, Message

__all__ = ["MAX_DETAIL_CHARS", "ReleaseCheck", "ReleaseFailure", "ReleaseReport", "ReleaseState"]

MAX_DETAIL_CHARS = 200

_Number = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ReleaseState(enum.Enum):
    """How far a device is with a release."""

    FETCHING = "fetching"
    TRIAL = "trial"
    """In use, and watched."""
    SETTLED = "settled"
    """In use; its trial is over."""
    FAILED = "failed"
    """It does not work here; the device runs what it ran before."""


class ReleaseFailure(enum.Enum):
    """Why a release does not work on a device."""

    INCOMPATIBLE = "incompatible"
    """Runtime, memory, hardware class or tensors do not fit; nothing was fetched."""
    DAMAGED = "damaged"
    """The signed bytes are no model, or do not hold the signature that the manifest says."""
    CRASHED = "crashed"
    """The interpreter died, or an app that used it did, again and again."""
    TIMED_OUT = "timed_out"
    WRONG_SHAPE = "wrong_shape"
    NON_FINITE = "non_finite"
    DEVIATES = "deviates"
    """An output is further from the golden one than allowed."""
    INACCURATE = "inaccurate"
    """Too few of the golden answers."""
    SLOW = "slow"
    TOO_LARGE = "too_large"
    """It takes more memory than there is, or than the manifest says."""


class ReleaseCheck(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device measured on the golden batch."""

    latency_ms: _NotNegative
    """Median time of one example."""
    max_abs_error: _NotNegative
    agreement: _Fraction
    peak_memory_mb: _NotNegative

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.latency_ms, self.max_abs_error, self.peak_memory_mb))):
            raise ValueError("what was measured must be finite")


class ReleaseReport(Message, frozen=True, kw_only=True, tag_field="type", tag="release-report"):
    """Device to coordinator: sent at every change, and again after every connection. Not answered."""

    name: Identifier
    """The model."""
    serial: _Number
    """Of the order that it follows."""
    number: _Number
    """The release it is about."""
    state: ReleaseState
    current: _Number
    """The release in use; 0 for none."""
    failure: ReleaseFailure | None = None
    """Set exactly when the state is FAILED."""
    detail: Annotated[str, msgspec.Meta(max_length=MAX_DETAIL_CHARS)] = ""
    check: ReleaseCheck | None = None

    def __post_init__(self) -> None:
        if (self.state is ReleaseState.FAILED) != (self.failure is not None):
            raise ValueError("a failure goes with the state FAILED, and with no other")
