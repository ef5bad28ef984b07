"""Throws bad inputs at decoders, and watches what they raise, how long they take and how much memory they use."""

import base64
import collections
import dataclasses
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from simulators.trials.decoders import Decoder, byte_decoders
from simulators.trials.file_decoders import file_decoders
from simulators.trials.key_file_decoders import key_file_decoders
from simulators.trials.mutation import mutated
from simulators.trials.sealed_decoders import sealed_decoders
from simulators.trials.sum_decoders import sum_decoders

__all__ = ["MAX_MEMORY_BYTES", "MAX_TIME_S", "Defect", "FuzzReport", "every_decoder", "fuzz", "try_input"]

MAX_TIME_S: Final = 0.25
"""Most CPU seconds of this thread for one input; measured three more times before it counts, and the least of them taken."""
MAX_MEMORY_BYTES: Final = 4 * 1024 * 1024
"""Most memory that Python's allocators hand out for one input of a few kilobytes."""
_MEMORY_EVERY: Final = 200
_CORPUS_BYTES: Final = 64
"""How many inputs that a decoder accepted are kept, to go on from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defect:
    """An input that a decoder did not stand."""

    decoder: str
    problem: str
    input_base64: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FuzzReport:
    """What became of a run."""

    seed: int
    executions: int
    per_decoder: Mapping[str, int]
    num_accepted: int
    """Inputs that were decoded."""
    slowest_s: float
    slowest_decoder: str
    largest_memory_bytes: int
    """Of the inputs whose memory was measured: one in two hundred."""
    largest_memory_decoder: str
    defects: tuple[Defect, ...]
    """One per decoder and kind of problem."""


def every_decoder(scratch: Path) -> list[Decoder]:
    """The whole registry.

    Args:
        scratch: An empty directory for those that read files.
    """
    return [*byte_decoders(), *sum_decoders(), *sealed_decoders(), *file_decoders(scratch), *key_file_decoders(scratch)]


def try_input(decoder: Decoder, data: bytes) -> tuple[str, bool]:
    """Gives one input to a decoder.

    Returns:
        What is wrong (empty if nothing is), and whether the input was accepted.
    """
    try:
        decoder.decode(data)
    except decoder.documented:
        return "", False
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{type(error).__name__}: {str(error)[:200]}", False
    return "", True


def fuzz(
    executions: int,
    *,
    seed: int,
    only: str | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> FuzzReport:
    """Tries so many inputs.

    Args:
        executions: How many, over all decoders by their shares.
        seed: The same seed tries the same inputs.
        only: The name of one decoder.
        on_progress: Told of every hundred thousandth.
    """
    shared_memory = Path("/dev/shm")  # noqa: S108 - scratch files need no disk
    with tempfile.TemporaryDirectory(
        prefix="flockwise-fuzz-", dir=shared_memory if shared_memory.is_dir() else None
    ) as scratch:
        decoders = [decoder for decoder in every_decoder(Path(scratch)) if only in {None, decoder.name}]
        run = _Run(decoders, seed)
        for number in range(1, executions + 1):
            run.step(number)
            if number % 100_000 == 0:
                on_progress(number)
        return run.report(executions)


class _Run:
    """The state of one run."""

    def __init__(self, decoders: Sequence[Decoder], seed: int) -> None:
        if not decoders:
            raise ValueError("there is no decoder of this name")
        self._seed = seed
        self._rng = random.Random(seed)  # noqa: S311 - replayed, not secret
        self._decoders = decoders
        self._shares = [decoder.share for decoder in decoders]
        self._corpora = {decoder.name: list(decoder.seeds) for decoder in decoders}
        self._counts: collections.Counter[str] = collections.Counter()
        self._num_accepted = 0
        self._slowest = (0.0, "")
        self._largest = (0, "")
        self._defects: dict[tuple[str, str], Defect] = {}

    def step(self, number: int) -> None:
        """Tries one input."""
        [decoder] = self._rng.choices(self._decoders, self._shares)
        corpus = self._corpora[decoder.name]
        data = mutated(self._rng, corpus, decoder.max_bytes)
        self._counts[decoder.name] += 1
        began = time.thread_time()
        problem, is_accepted = try_input(decoder, data)
        took_s = time.thread_time() - began
        if problem:
            self._note(decoder, problem.partition(":")[0], problem, data)
        if is_accepted:
            self._num_accepted += 1
            if len(corpus) < _CORPUS_BYTES and data not in corpus:
                corpus.append(data)
        if took_s > self._slowest[0]:
            self._slowest = (took_s, decoder.name)
        if took_s > MAX_TIME_S:
            self._time_again(decoder, data)
        if number % _MEMORY_EVERY == 0:
            self._weigh(decoder, data)

    def report(self, executions: int) -> FuzzReport:
        """What has been found."""
        return FuzzReport(
            seed=self._seed,
            executions=executions,
            per_decoder=dict(sorted(self._counts.items())),
            num_accepted=self._num_accepted,
            slowest_s=round(self._slowest[0], 4),
            slowest_decoder=self._slowest[1],
            largest_memory_bytes=self._largest[0],
            largest_memory_decoder=self._largest[1],
            defects=tuple(self._defects.values()),
        )

    def _time_again(self, decoder: Decoder, data: bytes) -> None:
        times = []
        for _ in range(3):
            began = time.thread_time()
            try_input(decoder, data)
            times.append(time.thread_time() - began)
        if min(times) > MAX_TIME_S:
            self._note(decoder, "time", f"takes {min(times):.2f} s", data)

    def _weigh(self, decoder: Decoder, data: bytes) -> None:
        tracemalloc.start()
        try_input(decoder, data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > self._largest[0]:
            self._largest = (peak, decoder.name)
        if peak > MAX_MEMORY_BYTES:
            self._note(decoder, "memory", f"takes {peak} bytes for {len(data)}", data)

    def _note(self, decoder: Decoder, kind: str, problem: str, data: bytes) -> None:
        defect = Defect(decoder=decoder.name, problem=problem, input_base64=base64.b64encode(data).decode())
        self._defects.setdefault((decoder.name, kind), defect)
