"""Exponential backoff with full jitter.

After attempt ``n`` the wait is uniform in ``[0, min(cap, base * 2**n)]`` ("full jitter" of Brooker, "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015), so that ten thousand devices do not come back in step.
"""

from collections.abc import Callable

__all__ = ["FullJitterBackoff"]

_MAX_EXPONENT = 32


class FullJitterBackoff:
    """Draws waiting times; ``reset`` after success."""

    def __init__(self, *, base_s: float, cap_s: float, uniform: Callable[[float, float], float]) -> None:
        if not 0 < base_s <= cap_s:
            raise ValueError(f"need 0 < base_s <= cap_s, not {base_s} and {cap_s}")
        self._base_s = base_s
        self._cap_s = cap_s
        self._uniform = uniform
        self._attempts = 0

    @property
    def attempts(self) -> int:
        """Failures in a row so far."""
        return self._attempts

    def next_wait_s(self) -> float:
        """Counts a failure and returns how long to wait before the next attempt, in seconds."""
        ceiling_s = min(self._cap_s, self._base_s * 2 ** min(self._attempts, _MAX_EXPONENT))
        self._attempts += 1
        return self._uniform(0.0, ceiling_s)

    def reset(self) -> None:
        """Forgets past failures."""
        self._attempts = 0
