"""What grows: a line through samples of a process, with the warm-up left out. Pure."""

import dataclasses
from collections.abc import Sequence

import numpy as np

__all__ = ["Growth", "Sample", "growth_of", "slope_per_hour"]

_HOUR_S = 3600.0
_MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One process, or a process and its children, at one moment."""

    at_s: float
    """Seconds since the run began."""
    rss_bytes: int
    num_fds: int
    num_threads: int
    written_bytes: int
    """Handed to the disk since the run began (``write_bytes`` of /proc/PID/io), by children that ended too."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """What became of one process after its warm-up."""

    num_samples: int
    rss_first_mb: float
    rss_last_mb: float
    rss_slope_mb_per_hour: float
    """Least squares."""
    fds_drift: int
    """Most open files in the last third of the time, less the most in the first third: 0 or less is no leak."""
    threads_drift: int
    """The same for threads."""
    written_mb_per_hour: float


def slope_per_hour(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line, per hour.

    Args:
        times_s: At least two different moments, in seconds.
        values: What was measured then.

    Raises:
        ValueError: Fewer than two different moments.
    """
    times = np.asarray(times_s, np.float64)
    spread = times - times.mean() if len(times) else times
    if not np.any(spread):
        raise ValueError("a slope needs samples at two different moments")
    centred = np.asarray(values, np.float64) - np.mean(values)
    return float(spread @ centred / (spread @ spread)) * _HOUR_S


def growth_of(samples: Sequence[Sample], *, warm_up_s: float) -> Growth:
    """Looks at the samples after the warm-up.

    Raises:
        ValueError: Fewer than two of them.
    """
    steady = [sample for sample in samples if sample.at_s >= warm_up_s]
    times = [sample.at_s for sample in steady]
    slope = slope_per_hour(times, [sample.rss_bytes for sample in steady])
    third = max(1, len(steady) // 3)
    written = steady[-1].written_bytes - steady[0].written_bytes
    return Growth(
        num_samples=len(steady),
        rss_first_mb=round(steady[0].rss_bytes / _MEGABYTE, 2),
        rss_last_mb=round(steady[-1].rss_bytes / _MEGABYTE, 2),
        rss_slope_mb_per_hour=round(slope / _MEGABYTE, 3),
        fds_drift=_drift([sample.num_fds for sample in steady], third),
        threads_drift=_drift([sample.num_threads for sample in steady], third),
        written_mb_per_hour=round(written / _MEGABYTE / (times[-1] - times[0]) * _HOUR_S, 3),
    )


def _drift(values: Sequence[int], third: int) -> int:
    return max(values[-third:]) - max(values[:third])
