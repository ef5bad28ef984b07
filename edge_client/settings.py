"""The device's patience: every waiting time and window of the session, as values."""

import dataclasses

__all__ = ["AgentSettings", "FetchSettings", "UploadSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FetchSettings:
    """How a device asks for blobs."""

    window: int = 8
    """Most pieces asked for and not yet here: bounds what the broker must hold for this device."""
    timeout_s: float = 20.0
    """What was asked for is asked for again when nothing has come for this long (plus back-off)."""
    backoff_cap_s: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.window <= 64:  # noqa: PLR2004 - the protocol's limit on indices in one PieceRequest
            raise ValueError(f"window must be 1 to 64, not {self.window}")
        if not 0 < self.timeout_s <= self.backoff_cap_s:
            raise ValueError("need 0 < timeout_s <= backoff_cap_s")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class UploadSettings:
    """How a device sends its report."""

    pieces_per_burst: int = 16
    """Most pieces handed to the link at once."""
    burst_interval_s: float = 0.25
    """Time between bursts."""
    retry_s: float = 10.0
    """An unanswered report is repeated after this (plus back-off)."""
    backoff_cap_s: float = 120.0
    max_resumed_attempts: int = 500
    """A report from before a restart, whose deadline nobody knows, is sent this often (some ten hours) at most."""

    def __post_init__(self) -> None:
        if self.max_resumed_attempts < 1:
            raise ValueError("max_resumed_attempts must be positive")
        if self.pieces_per_burst < 1 or self.burst_interval_s <= 0:
            raise ValueError("pieces_per_burst and burst_interval_s must be positive")
        if not 0 < self.retry_s <= self.backoff_cap_s:
            raise ValueError("need 0 < retry_s <= backoff_cap_s")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AgentSettings:
    """How a device paces itself."""

    answer_timeout_s: float = 15.0
    """A check-in is repeated after this (plus back-off) if nobody answers; a queue at the coordinator is normal."""
    answer_backoff_s: float = 5.0
    answer_backoff_cap_s: float = 120.0
    rejoin_window_s: tuple[float, float] = (0.0, 0.5)
    """After a round, a device checks in again after a random wait in this window (plus what its receipt asks)."""
    failure_backoff_s: float = 10.0
    """Base of the back-off after rounds that this device could not finish or whose report was rejected."""
    failure_backoff_cap_s: float = 3600.0
    min_refused_wait_s: float = 1.0
    """A refused device waits at least this long, whatever window the coordinator names."""
    max_wait_s: float = 86400.0
    """No coordinator can send a device away for longer."""
    fetch: FetchSettings = FetchSettings()
    upload: UploadSettings = UploadSettings()

    def __post_init__(self) -> None:
        if not 0 <= self.rejoin_window_s[0] <= self.rejoin_window_s[1]:
            raise ValueError("rejoin_window_s must be (min, max) with 0 <= min <= max")
        if min(self.answer_timeout_s, self.min_refused_wait_s) <= 0 or self.max_wait_s < self.min_refused_wait_s:
            raise ValueError("need answer_timeout_s > 0 and 0 < min_refused_wait_s <= max_wait_s")
