"""The coordinator's wait for events ends, whatever signals do to it."""

import signal
import threading
import time

from coordinator import server
from coordinator.device_guard import OpenGuard


class Waiting:
    """A loop with nothing to do."""

    num_ticks = 0

    def next_wakeup(self):
        return None

    def tick(self, *, now):
        self.num_ticks += 1


def test_a_signal_whose_handler_returns_after_the_time_out_does_not_make_the_wait_endless(monkeypatch):
    monkeypatch.setattr(server, "_MAX_WAIT_S", 0.3)
    events, loop = server._EventQueue(), Waiting()
    was_rescued = threading.Event()

    def rescue():
        was_rescued.set()
        events.put(None)

    timer = threading.Timer(20.0, rescue)
    timer.start()
    before = signal.signal(signal.SIGALRM, lambda *_: time.sleep(0.5))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        server._step(loop, events, OpenGuard())
    finally:
        signal.signal(signal.SIGALRM, before)
        timer.cancel()
    assert loop.num_ticks == 1
    assert not was_rescued.is_set()
