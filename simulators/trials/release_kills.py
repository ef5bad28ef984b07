"""Kills a process that releases private updates, again and again, and looks whether anything got out uncharged.

The child opens a ledger on disk and releases as fast as it can; each update is "published" by a line on its output, after
`release` has returned. It is killed with SIGKILL after a random time. What it said is then held against the ledger: every
published update is charged, with exactly these bytes, and at most one charge a life was never published.
"""

import dataclasses
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from edge_client.privacy.ledger import PrivacyLedger

__all__ = ["ReleaseKills", "run_release_kills"]

_CHILD: Final = """
import hashlib, os, sys
from pathlib import Path
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.rules import PrivacyBudget
from wire_protocol.privacy_spec import GaussianEvent
with PrivacyLedger(Path(sys.argv[1]), budget=PrivacyBudget(epsilon=1e6)) as ledger:
    index = len(ledger.entries)
    print("ready", flush=True)
    while True:
        payload = ledger.release(f"r{index}", GaussianEvent(noise_multiplier=20.0, is_discrete=True),
                                 lambda: os.urandom(20_000))
        print(f"r{index} {hashlib.sha256(payload).hexdigest()}", flush=True)
        ledger.drop_payloads_but(f"r{index}")
        index += 1
"""
_LONGEST_LIFE_S: Final = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseKills:
    """What the kills came to."""

    num_kills: int
    num_published: int
    num_charged: int
    num_uncharged: int
    """Published updates that the ledger does not know: must be 0."""
    num_other_bytes: int
    """Published updates whose bytes are not the charged ones: must be 0."""
    num_damaged: int
    """Ledgers that could not be opened after a kill: must be 0."""

    @property
    def is_clean(self) -> bool:
        """Whether every promise held, and the trial was one."""
        is_real = self.num_published > 0 and self.num_charged - self.num_published <= self.num_kills
        return is_real and not (self.num_uncharged or self.num_other_bytes or self.num_damaged)


def run_release_kills(directory: Path, *, num_kills: int, seed: int) -> ReleaseKills:
    """Kills ``num_kills`` processes that share one ledger, one after another.

    Args:
        directory: Gets the ledger.
        num_kills: How many.
        seed: Of the moments.
    """
    # Only moments are drawn here.
    rng = random.Random(seed)  # noqa: S311
    path, published, num_damaged = directory / "privacy.sqlite", dict[str, str](), 0
    for _ in range(num_kills):
        lines = _one_life(path, rng.uniform(0.0, _LONGEST_LIFE_S))
        num_damaged += "ready" not in lines
        published |= dict(line.split() for line in lines if line.count(" ") == 1)
    charged = _charged(path)
    return ReleaseKills(
        num_kills=num_kills,
        num_published=len(published),
        num_charged=len(charged),
        num_uncharged=sum(name not in charged for name in published),
        num_other_bytes=sum(charged.get(name, digest) != digest for name, digest in published.items()),
        num_damaged=num_damaged,
    )


def _one_life(path: Path, life_s: float) -> list[str]:
    """Starts a child, kills it so long after it is ready, and returns its whole lines."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    if child.stdout is None:
        raise AssertionError("a pipe was asked for")
    first = child.stdout.readline()
    killer = threading.Timer(life_s, os.kill, (child.pid, signal.SIGKILL))
    killer.start()
    text = first + child.stdout.read()
    killer.join()
    child.wait()
    child.stdout.close()
    # A line without its end was being written when the end came.
    return text.split("\n")[:-1]


def _charged(path: Path) -> dict[str, str]:
    """Release -> SHA-256 of the bytes it was charged for, of a ledger whose chain has been checked."""
    with PrivacyLedger(path, budget=None) as ledger:
        names = {entry.release_id for entry in ledger.entries}
    database = sqlite3.connect(path)
    try:
        rows = database.execute("SELECT release_id, payload_sha256 FROM entries").fetchall()
    finally:
        database.close()
    return {name: bytes(digest).hex() for name, digest in rows if name in names}
