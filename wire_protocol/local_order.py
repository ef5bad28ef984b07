"""The order in which a device visits its examples, and the tickets that seed dropout: the same on every machine.

numpy's generators do not promise the same stream across versions, and a device may run another version than the
simulation it is compared with. So order and tickets come from 64-bit integer arithmetic: SHA-256 makes a key of
(seed, round, device, epoch, purpose), and SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators", figure 16) spreads it over the examples. None of this is secret and none of it is noise.
"""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from wire_protocol.plan import TrainingPlan

__all__ = ["LocalStep", "local_steps", "num_local_steps"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LocalStep:
    """One optimizer step: which examples, and their dropout tickets."""

    indices: npt.NDArray[np.int64]
    """[n] positions in the device's example store, 1 <= n <= batch_size; n < batch_size only in an epoch's last step."""
    tickets: npt.NDArray[np.int32]
    """[n] one dropout ticket per example, drawn afresh for every visit."""


def num_local_steps(plan: TrainingPlan, num_examples: int) -> int:
    """Optimizer steps of one round on ``num_examples`` local examples."""
    steps = plan.num_epochs * -(-num_examples // plan.batch_size)
    return min(steps, plan.max_steps) if plan.max_steps else steps


def local_steps(plan: TrainingPlan, *, num_examples: int, round_id: int, device_id: str) -> Iterator[LocalStep]:
    """Yields the steps of one round, in order.

    Args:
        plan: Gives seed, batch size, epochs and step limit.
        num_examples: Size of the device's example store.
        round_id: The round; another round visits in another order.
        device_id: The device; another device visits in another order.
    """
    left = num_local_steps(plan, num_examples)
    for epoch in range(plan.num_epochs):
        key = f"{plan.seed}|{round_id}|{device_id}|{epoch}"
        order = np.argsort(_stream(f"{key}|order", num_examples), kind="stable")
        raw = _stream(f"{key}|dropout", num_examples)
        tickets = (raw >> np.uint64(33)).astype(np.int32)
        for start in range(0, num_examples, plan.batch_size):
            if left == 0:
                return
            left -= 1
            stop = start + plan.batch_size
            yield LocalStep(indices=order[start:stop].astype(np.int64), tickets=tickets[start:stop])


def _stream(key: str, n: int) -> npt.NDArray[np.uint64]:
    """``n`` SplitMix64 outputs; the starting state is the first 8 bytes, little-endian, of the key's SHA-256."""
    state = np.frombuffer(hashlib.sha256(key.encode()).digest()[:8], dtype="<u8").astype(np.uint64)
    z = state + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
