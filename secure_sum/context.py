"""The name of one round: 32 bytes that everything sealed, signed or opened for it covers."""

import hashlib
import struct
from typing import Final

__all__ = ["CONTEXT_BYTES", "round_context"]

CONTEXT_BYTES: Final = 32
_DOMAIN: Final = b"flockwise round context 1\x00"
_DIGEST_BYTES: Final = 32


def round_context(*, population: str, task_id: str, plan_sha256: bytes, round_id: int) -> bytes:
    """SHA-256 over domain, population, task, plan and round; each part has a fixed or a stated length.

    Args:
        population: Name of the population.
        task_id: The task.
        plan_sha256: 32 bytes: the hash of the plan's bytes, as the assignment names it.
        round_id: The round.

    Returns:
        32 bytes.

    Raises:
        ValueError: ``plan_sha256`` is not 32 bytes, or ``round_id`` is not within 64 bits.
    """
    if len(plan_sha256) != _DIGEST_BYTES or not 0 <= round_id < 2**64:
        raise ValueError("a round context needs a hash of 32 bytes and a round id of at most 64 bits")
    names = b"".join(struct.pack(">H", len(name)) + name for name in (population.encode(), task_id.encode()))
    return hashlib.sha256(b"".join((_DOMAIN, names, plan_sha256, struct.pack(">Q", round_id)))).digest()
