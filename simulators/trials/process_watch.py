"""Samples of running processes from /proc: memory, open files, threads, bytes written."""

import contextlib
from collections.abc import Callable, Sequence

import psutil

from simulators.trials.growth import Sample

__all__ = ["ProcessWatch"]


class ProcessWatch:
    """Watches a changing group of processes as one: a trainer child that is replaced goes on being counted.

    Args:
        find: Lists the processes of the group that are alive.
    """

    def __init__(self, find: Callable[[], Sequence[psutil.Process]]) -> None:
        self._find = find
        self._written: dict[tuple[int, float], int] = {}
        self.samples: list[Sample] = []

    def sample(self, at_s: float) -> None:
        """Takes a sample; one that ends while it is looked at counts with what it had written when last seen."""
        rss = fds = threads = 0
        for process in self._find():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                with process.oneshot():
                    identity = (process.pid, process.create_time())
                    self._written[identity] = process.io_counters().write_bytes
                    rss += process.memory_info().rss
                    threads += process.num_threads()
                fds += process.num_fds()
        written = sum(self._written.values())
        self.samples.append(Sample(at_s=at_s, rss_bytes=rss, num_fds=fds, num_threads=threads, written_bytes=written))
