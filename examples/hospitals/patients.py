"""Biopsies of 569 patients, spread over five hospitals; every fifth patient is kept for testing.

The hospitals are invented, and differ: a screening centre sees mostly benign biopsies, an oncology few.

Real data: Breast Cancer Wisconsin (Diagnostic), W. Wolberg, O. Mangasarian, N. Street and W. Street, 1993, UCI Machine
Learning Repository, doi:10.24432/C5DW2B, licence CC BY 4.0. ``breast_cancer.csv`` has its thirty measurements of cell
nuclei and the diagnosis (1 is benign); the patients' ids are left out, a header is added, the numbers are unchanged.

Inputs are scaled by the ranges that the data set's own documentation prints: public numbers, so that no hospital has to
say anything about its patients for it.
"""

import csv
import dataclasses
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["HOSPITALS", "NUM_INPUTS", "Patients", "load_patients"]

HOSPITALS: Final = {
    "screening-centre": (136, 0.92),
    "clinic-south": (114, 0.75),
    "st-anna": (91, 0.55),
    "city-hospital": (68, 0.30),
    "oncology": (46, 0.10),
}
"""Patients of each, and the share of benign biopsies among them."""
NUM_INPUTS: Final = 30

_FILE: Final = Path(__file__).with_name("breast_cancer.csv")
_TEST_EVERY: Final = 5
_SMALLEST: Final = (
    *(6.981, 9.71, 43.79, 143.5, 0.053, 0.019, 0.0, 0.0, 0.106, 0.05),
    *(0.112, 0.36, 0.757, 6.802, 0.002, 0.002, 0.0, 0.0, 0.008, 0.001),
    *(7.93, 12.02, 50.41, 185.2, 0.071, 0.027, 0.0, 0.0, 0.156, 0.055),
)
_LARGEST: Final = (
    *(28.11, 39.28, 188.5, 2501.0, 0.163, 0.345, 0.427, 0.201, 0.304, 0.097),
    *(2.873, 4.885, 21.98, 542.2, 0.031, 0.135, 0.396, 0.053, 0.079, 0.03),
    *(36.04, 49.54, 251.2, 4254.0, 0.223, 1.058, 1.252, 0.291, 0.664, 0.208),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patients:
    """Measurements and diagnoses."""

    x: npt.NDArray[np.float32]
    """[n, NUM_INPUTS] from -1 to 1."""
    y: npt.NDArray[np.int32]
    """[n] 1 is benign."""


def load_patients(*, seed: int = 0) -> tuple[dict[str, Patients], Patients]:
    """Each hospital's patients, and those kept for testing.

    Args:
        seed: Shuffles who is where.
    """
    with _FILE.open(newline="") as stream:
        rows = np.array([[float(value) for value in row] for row in list(csv.reader(stream))[1:]])
    low, high = np.array(_SMALLEST), np.array(_LARGEST)
    x = (2 * (rows[:, :NUM_INPUTS] - low) / (high - low) - 1).astype(np.float32)
    y = rows[:, NUM_INPUTS].astype(np.int32)
    order = np.random.default_rng(seed).permutation(len(y))
    is_test = np.arange(len(y)) % _TEST_EVERY == 0
    train, test = order[~is_test], order[is_test]
    benign, malignant = list(train[y[train] == 1]), list(train[y[train] == 0])
    parts = {}
    for name, (size, share) in HOSPITALS.items():
        num_benign = min(len(benign), max(round(size * share), size - len(malignant)))
        parts[name] = np.array(benign[:num_benign] + malignant[: size - num_benign])
        benign, malignant = benign[num_benign:], malignant[size - num_benign :]
    hospitals = {name: Patients(x=x[part], y=y[part]) for name, part in parts.items()}
    return hospitals, Patients(x=x[test], y=y[test])
