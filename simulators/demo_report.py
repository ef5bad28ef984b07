"""What a demo is asked to show, and what it showed: values."""

import dataclasses
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from coordinator.aggregation_spec import AggregationSpec
from simulators.scenario import PartitionName

__all__ = ["DemoConfig", "DemoReport", "DemoRound"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What to show."""

    out_dir: Path
    """Gets ``curve.png`` and ``report.json``."""
    dataset: Literal["digits", "mnist", "csv"] = "digits"
    model: Literal["mlp", "cnn", "linear"] = "mlp"
    num_devices: int = 20
    num_rounds: int = 10
    num_epochs: int = 5
    batch_size: int = 16
    learning_rate: float = 0.1
    momentum: float = 0.9
    partition: PartitionName = "iid"
    alpha: float = 1.0
    broker: str = "embedded"
    num_processes: int = 4
    data_dir: Path | None = None
    report_timeout_s: float = 600.0
    seed: int = 0
    aggregation: AggregationSpec = dataclasses.field(default_factory=AggregationSpec)
    epsilon: float | None = None
    """Device-level differential privacy, in distributed mode; None is none."""
    clipping_norm: float = 0.5
    """Of a private demo."""
    target_delta: float = 1e-5
    confidentiality: Literal["none", "helpers", "masks", "he"] = "none"
    """Who opens the sums of a private demo; with ``none`` the coordinator sees each update."""

    def __post_init__(self) -> None:
        if self.confidentiality != "none" and self.epsilon is None:
            raise ValueError("confidential sums are taken of private updates: set epsilon")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoRound:
    """One committed round."""

    round_id: int
    num_reports: int
    num_assigned: int
    training_loss: float | None
    """None in a private task, whose devices report no figures."""
    test_accuracy: float
    test_loss: float
    duration_s: float
    epsilon: float | None = None
    """What a device that took part in every round has been charged by now; None if nothing is private."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoReport:
    """What was shown; `flockwise-demo/report.json` holds `as_dict`."""

    config: DemoConfig
    rounds: tuple[DemoRound, ...]
    evaluation: Mapping[str, float]
    """Metrics of the closing federated evaluation, on the devices' own training examples."""
    num_abandoned: int
    rejections: Mapping[str, int]
    num_authenticated: int
    """Devices whose signatures the coordinator has checked and believed."""
    num_parameters: int
    model_bytes: int
    op_counts: Mapping[str, int]
    parity: Mapping[str, float]
    """Largest errors of the exported file against Keras, from its certificate."""
    who_must_be_believed: str
    """That only sums are seen: on whom this rests; empty if nobody says so."""
    finished: bool
    seconds: Mapping[str, float]
    """Wall time of each stage, and in total."""

    @property
    def final_accuracy(self) -> float:
        """Test accuracy after the last committed round."""
        return self.rounds[-1].test_accuracy if self.rounds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        values: dict[str, Any] = msgspec.to_builtins(self, enc_hook=str)
        values["final_test_accuracy"] = self.final_accuracy
        values["machine"] = {"python": platform.python_version(), "system": platform.system(), "cpus": os.cpu_count()}
        return values
