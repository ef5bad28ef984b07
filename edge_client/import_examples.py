"""Bringing examples in: CSV, ``.npy`` or raw files become a directory of the layout in ``example_store``."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.csv_examples import read_csv_examples
from edge_client.errors import DataFormatError, DataNotFound
from edge_client.example_store import write_examples

__all__ = ["import_arrays", "import_csv", "read_array"]


def import_csv(source: Path, target: Path, *, shape: tuple[int, ...] | None = None, scale: float = 1.0) -> int:
    """Imports a CSV file.

    Args:
        source: The file; see ``example_store`` for its layout.
        target: The directory of examples; made or replaced.
        shape: Shape of one input, if it is more than a row of numbers: its product is the number of columns.
        scale: Inputs are multiplied by this when used.

    Returns:
        How many examples were imported.

    Raises:
        DataError: The source is not what it should be; ``target`` is unchanged.
        StorageError: ``target`` cannot be written, and is unchanged.
    """
    if not source.is_file():
        raise DataNotFound(f"there is no file {source}")
    examples = read_csv_examples(source)
    x = examples.inputs(np.arange(examples.num_examples, dtype=np.int64))
    return write_examples(target, x=_shaped(x, shape), y=examples.labels, scale=scale)


def import_arrays(
    x: npt.NDArray[Any], y: npt.NDArray[Any], target: Path, *, shape: tuple[int, ...] | None = None, scale: float = 1.0
) -> int:
    """Imports arrays, which may be memory maps. Arguments, result and errors as ``import_csv``."""
    return write_examples(target, x=_shaped(x, shape), y=y, scale=scale)


def read_array(path: Path, *, dtype: str | None = None) -> npt.NDArray[Any]:
    """Opens a ``.npy`` file, or any other as a vector of raw little-endian numbers of ``dtype``.

    Raises:
        DataNotFound: There is no such file.
        DataFormatError: It is no ``.npy`` file of numbers, or raw without a dtype.
    """
    if not path.is_file():
        raise DataNotFound(f"there is no file {path}")
    try:
        if path.suffix.lower() == ".npy":
            loaded: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return loaded
        if dtype is None:
            raise DataFormatError(f"{path} is raw: say what numbers it holds (uint8, int32, float32 ...)")
        return np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r")
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise DataFormatError(f"{path} cannot be read: {error}") from error


def _shaped(x: npt.NDArray[Any], shape: tuple[int, ...] | None) -> npt.NDArray[Any]:
    if shape is None:
        return x
    size = math.prod(shape)
    if x.ndim != 1 and x.size != len(x) * size:
        raise DataFormatError(f"an input has {math.prod(x.shape[1:])} numbers; the shape {shape} has {size}")
    if x.size == 0 or x.size % size:
        raise DataFormatError(f"{x.size} numbers are no whole number of inputs of shape {shape}")
    return x.reshape(-1, *shape)
