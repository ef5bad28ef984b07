"""Virtual time: a heap of things to do and a clock that jumps to the next one.

Deterministic: things due at the same moment happen in the order they were scheduled.
"""

import heapq
import itertools
from collections.abc import Callable

__all__ = ["VirtualTime"]


class VirtualTime:
    """A clock in seconds that only moves when something happens."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_events = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Runs ``act`` ``delay_s`` seconds from now (at once, but not inside this call, if 0)."""
        self.at(self.now + delay_s, act)

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Runs ``act`` at a moment; at once if it has passed."""
        heapq.heappush(self._heap, (max(when, self.now), next(self._order), act))

    def run(self, *, until: Callable[[], bool], limit_s: float) -> bool:
        """Lets things happen until ``until`` is true.

        Args:
            until: Asked before every event.
            limit_s: Stop when the clock would pass this.

        Returns:
            Whether ``until`` became true; False if the limit was reached or nothing is left to happen.
        """
        while not until():
            if not self._heap or self._heap[0][0] > limit_s:
                return until()
            self.now, _, act = heapq.heappop(self._heap)
            self.num_events += 1
            act()
        return True
