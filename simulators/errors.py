"""Errors of the simulators.

SimulationError
├── DatasetUnavailable   a data set is not there or damaged; says how to get it
├── InvalidPartition     examples cannot be spread over devices as asked
└── FleetFailed          a process of a simulated fleet died or never came up
"""

__all__ = ["DatasetUnavailable", "FleetFailed", "InvalidPartition", "SimulationError"]


class SimulationError(Exception):
    """Base of the errors of this package."""


class DatasetUnavailable(SimulationError):
    """A data set is not there or damaged."""


class InvalidPartition(SimulationError):
    """Examples cannot be spread over devices as asked."""


class FleetFailed(SimulationError):
    """A process of a simulated fleet died or never came up."""
