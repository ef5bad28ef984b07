"""Errors of the test bench.

SimulationError
├── NoEnvironment         an environment cannot be made: no uv, no package index, no such package for this Python
└── TrialFailed           something that the project promises did not hold (ours, a bug)
    ├── ProtocolMismatch  the protocol did what its model forbids; the seed replays it
    ├── ReferenceMismatch an aggregated state differs from the exact mean of what was folded
    └── DecoderDefect     an input made a decoder raise what it does not document, or take too much
"""

from simulators.errors import SimulationError

__all__ = ["DecoderDefect", "NoEnvironment", "ProtocolMismatch", "ReferenceMismatch", "TrialFailed"]


class NoEnvironment(SimulationError):
    """A fresh environment cannot be made."""


class TrialFailed(SimulationError):
    """Something that the project promises did not hold."""


class ProtocolMismatch(TrialFailed):
    """The protocol did what its model forbids."""


class ReferenceMismatch(TrialFailed):
    """An aggregated state differs from the exact mean of what was folded."""


class DecoderDefect(TrialFailed):
    """An input made a decoder raise what it does not document, or take too much time or memory."""
