"""An aggregator that is still being made: importing TensorFlow and compiling takes half a minute on a small machine.

Nothing that a device must be told needs it. So it is made in a thread of its own, and `round_sums` looks whether it is
there.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Self

from coordinator.aggregation import Aggregator

__all__ = ["LateAggregator"]

_LOG = logging.getLogger(__name__)


class LateAggregator:
    """One aggregator, now or later.

    Args:
        make: Makes it; called once.
    """

    def __init__(self, make: Callable[[], Aggregator]) -> None:
        self._make = make
        self._made: Future[Aggregator] = Future()
        self._is_started = False

    @classmethod
    def ready(cls, aggregator: Aggregator) -> Self:
        """One that is there from the beginning."""
        late = cls(lambda: aggregator)
        late.make_now()
        return late

    def start(self) -> None:
        """Makes it in a thread of its own, unless that has begun. The process may end before the thread does."""
        if not self._is_started:
            threading.Thread(target=self.make_now, name="late-aggregator", daemon=True).start()
            self._is_started = True

    def make_now(self) -> None:
        """Makes it in this thread; what goes wrong is raised by `get`."""
        self._is_started = True
        began = time.monotonic()
        try:
            aggregator = self._make()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asks
            self._made.set_exception(error)
        else:
            _LOG.info("aggregator_ready after_s=%.1f", time.monotonic() - began)
            self._made.set_result(aggregator)

    def get(self) -> Aggregator | None:
        """The aggregator; None while it is being made.

        Raises:
            Exception: Whatever making it raised.
        """
        return self._made.result() if self._made.done() else None
