"""Examples in a CSV file: a header row, numbers, and a class number in the column ``label`` or else in the last one.

Where names of columns begin with ``target``, these hold the label, as numbers: what a regression predicts, or one-hot
rows. A class number is never guessed to be a number, nor the other way round.
"""

import array
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edge_client.errors import DataFormatError
from edge_client.training import ArrayExamples

__all__ = ["read_csv_examples"]

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
"""A Python float: numpy 2 would round what is compared with its own to float32 first."""
_LABEL_COLUMN = "label"
_TARGET_PREFIX = "target"
_MIN_COLUMNS = 2
_MAX_LABEL = 2**31 - 1


def read_csv_examples(path: Path) -> ArrayExamples:
    """Reads a CSV file: x float32 [n, other columns], y int32 [n], or float32 [n, target columns].

    Raises:
        DataFormatError: No header, no rows, rows of different length, or something that is no number; the message
            names line and column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.reader(stream)
            table = _Table(path, [name.strip() for name in next(rows, [])])
            for row in rows:
                if row:
                    table.add(row, f"{path} line {rows.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataFormatError(f"{path} cannot be read as CSV: {error}") from error
    return table.examples()


class _Table:
    """The rows read so far."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        self._columns = columns
        self._targets_at = _target_positions(path, columns)
        self._label_at = None if self._targets_at else _label_position(columns)
        self._inputs = array.array("f")
        self._targets = array.array("f")
        self._labels = array.array("i")

    def add(self, row: Sequence[str], where: str) -> None:
        if len(row) != len(self._columns):
            raise DataFormatError(f"{where} has {len(row)} columns; the header has {len(self._columns)}")
        for index, text in enumerate(row):
            value = _number(text, f"{where}, column {self._columns[index]!r}")
            if index in self._targets_at:
                self._targets.append(value)
            elif index != self._label_at:
                self._inputs.append(value)
            elif value != int(value) or not 0 <= value <= _MAX_LABEL:
                raise DataFormatError(f"{where}: the label {text!r} is no class number (0, 1, 2 ...)")
            else:
                self._labels.append(int(value))

    def examples(self) -> ArrayExamples:
        if not self._inputs:
            raise DataFormatError(f"{self._path} has a header and no examples")
        num_targets = len(self._targets_at)
        x = np.frombuffer(self._inputs, dtype=np.float32).reshape(-1, len(self._columns) - (num_targets or 1))
        if num_targets:
            return ArrayExamples(x=x, y=np.frombuffer(self._targets, dtype=np.float32).reshape(-1, num_targets))
        return ArrayExamples(x=x, y=np.frombuffer(self._labels, dtype=np.int32))


def _target_positions(path: Path, columns: Sequence[str]) -> frozenset[int]:
    """The columns of numbers to predict; none in a file of class numbers."""
    if len(columns) < _MIN_COLUMNS:
        raise DataFormatError(f"{path} needs a header row with at least one column of numbers and one of labels")
    if all(_is_number(name) for name in columns):
        raise DataFormatError(f"{path} has no header row: its first line holds only numbers; put column names there")
    positions = frozenset(i for i, name in enumerate(columns) if name.lower().startswith(_TARGET_PREFIX))
    if len(positions) == len(columns):
        raise DataFormatError(f"{path} has target columns alone; it needs at least one column of inputs")
    if positions and _LABEL_COLUMN in [name.lower() for name in columns]:
        raise DataFormatError(f"{path} has a column 'label' and target columns; rename the one that is no label")
    return positions


def _label_position(columns: Sequence[str]) -> int:
    lowered = [name.lower() for name in columns]
    return lowered.index(_LABEL_COLUMN) if _LABEL_COLUMN in lowered else len(columns) - 1


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise DataFormatError(f"{where} is {text[:40]!r}, not a number") from error
    if not math.isfinite(value) or abs(value) > _FLOAT32_MAX:
        raise DataFormatError(f"{where} is {text[:40]!r}; only finite numbers can be trained on")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
