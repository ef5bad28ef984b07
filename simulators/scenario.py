"""What a fleet is to learn, and from what: data set, model, partition. Shared by the demo and the simulations."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from simulators.datasets import Dataset, load_csv_folder, load_digits, load_mnist
from simulators.errors import InvalidPartition
from simulators.partitions import partition_by_group, partition_by_label, partition_dirichlet, partition_iid

__all__ = ["PARTITIONS", "PartitionName", "Scenario", "load_scenario"]

PartitionName = Literal["iid", "dirichlet", "label", "file"]
PARTITIONS: tuple[PartitionName, ...] = ("iid", "dirichlet", "label", "file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """A data set and who holds which part of it."""

    dataset: Dataset
    parts: list[npt.NDArray[np.int64]]
    """Per device, the positions of its training examples."""

    @property
    def num_devices(self) -> int:
        """How many devices hold data."""
        return len(self.parts)

    def device_id(self, index: int) -> str:
        """Id of the ``index``-th device."""
        return f"device-{index:04d}"

    def examples(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """The ``index``-th device's inputs and labels."""
        part = self.parts[index]
        return self.dataset.x_train[part], self.dataset.y_train[part]


def load_scenario(
    dataset_name: str,
    *,
    num_devices: int,
    partition: PartitionName,
    alpha: float,
    seed: int,
    data_dir: Path | None = None,
) -> Scenario:
    """Loads a data set and spreads it over devices.

    Args:
        dataset_name: ``digits``, ``mnist`` or ``csv`` (a folder with one CSV file per device).
        num_devices: How many devices; ignored by the partition ``file``, which has one per file.
        partition: How to spread.
        alpha: Concentration of the Dirichlet partition.
        seed: Seeds split and partition.
        data_dir: Where MNIST or the CSV folder is.

    Raises:
        DatasetUnavailable: The data is missing or damaged.
        InvalidPartition: It cannot be spread so.
    """
    groups: list[str] | None = None
    match dataset_name:
        case "digits":
            dataset = load_digits(seed=seed)
        case "mnist":
            dataset = load_mnist(data_dir)
        case "csv" if data_dir is not None:
            dataset, groups = load_csv_folder(data_dir, seed=seed)
        case _:
            raise InvalidPartition("the data set 'csv' needs --data-dir with one CSV file per device")
    match partition:
        case "iid":
            parts = partition_iid(len(dataset.y_train), num_devices, seed=seed)
        case "dirichlet":
            parts = partition_dirichlet(dataset.y_train, num_devices, alpha=alpha, seed=seed)
        case "label":
            parts = partition_by_label(dataset.y_train, num_devices, seed=seed)
        case "file":
            if groups is None:
                raise InvalidPartition("--partition file needs --dataset csv: its files are the devices")
            parts = partition_by_group(groups)
    return Scenario(dataset=dataset, parts=parts)
