"""Examples in a CSV file: a header row, numbers, and a label in the column ``label`` or else in the last one."""

import array
import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_client.errors import DataFormatError
from edge_client.training import ArrayExamples

__all__ = ["read_csv_examples"]

_LABEL_COLUMN = "label"
_MIN_COLUMNS = 2
_MAX_LABEL = 2**31 - 1


def read_csv_examples(path: Path) -> ArrayExamples:
    """Reads a CSV file: x float32 [n, columns - 1], y int32 [n].

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
        self._label_at = _label_position(path, columns)
        self._inputs = array.array("f")
        self._labels = array.array("i")

    def add(self, row: Sequence[str], where: str) -> None:
        if len(row) != len(self._columns):
            raise DataFormatError(f"{where} has {len(row)} columns; the header has {len(self._columns)}")
        for index, text in enumerate(row):
            value = _number(text, f"{where}, column {self._columns[index]!r}")
            if index != self._label_at:
                self._inputs.append(value)
            elif value != int(value) or not 0 <= value <= _MAX_LABEL:
                raise DataFormatError(f"{where}: the label {text!r} is no class number (0, 1, 2 ...)")
            else:
                self._labels.append(int(value))

    def examples(self) -> ArrayExamples:
        if not self._labels:
            raise DataFormatError(f"{self._path} has a header and no examples")
        x = np.frombuffer(self._inputs, dtype=np.float32).reshape(len(self._labels), len(self._columns) - 1)
        return ArrayExamples(x=x, y=np.frombuffer(self._labels, dtype=np.int32))


def _label_position(path: Path, columns: Sequence[str]) -> int:
    if len(columns) < _MIN_COLUMNS:
        raise DataFormatError(f"{path} needs a header row with at least one column of numbers and one of labels")
    if all(_is_number(name) for name in columns):
        raise DataFormatError(f"{path} has no header row: its first line holds only numbers; put column names there")
    lowered = [name.lower() for name in columns]
    return lowered.index(_LABEL_COLUMN) if _LABEL_COLUMN in lowered else len(columns) - 1


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise DataFormatError(f"{where} is {text[:40]!r}, not a number") from error
    if not math.isfinite(value) or abs(value) > np.finfo(np.float32).max:
        raise DataFormatError(f"{where} is {text[:40]!r}; only finite numbers can be trained on")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
