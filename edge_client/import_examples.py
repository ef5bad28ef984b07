"""What examples can be imported from: CSV, ``.npy`` and raw files, as arrays for ``example_store.write_examples``."""

import math
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_client.csv_examples import read_csv_examples
from edge_client.errors import DataFormatError, DataNotFound
from edge_client.labels import Labels

__all__ = ["read_array", "read_csv_arrays", "shaped"]


def read_csv_arrays(path: Path) -> tuple[npt.NDArray[np.float32], Labels]:
    """Inputs [n, columns - 1] and labels [n] (or [n, k] numbers) of a CSV file; see ``example_store`` for its layout.

    Raises:
        DataNotFound: There is no such file.
        DataFormatError: It is not in that layout.
    """
    if not path.is_file():
        raise DataNotFound(f"there is no file {path}")
    examples = read_csv_examples(path)
    return examples.inputs(np.arange(examples.num_examples, dtype=np.int64)), examples.labels


def read_array(path: Path, *, dtype: str | None = None) -> npt.NDArray[Any]:
    """Opens a ``.npy`` file, or any other as a vector of raw little-endian numbers of ``dtype``; both memory-mapped.

    Raises:
        DataNotFound: There is no such file.
        DataFormatError: It is no ``.npy`` file of numbers, or raw without a dtype.
    """
    if not path.is_file():
        raise DataNotFound(f"there is no file {path}")
    if path.suffix.lower() != ".npy" and dtype is None:
        raise DataFormatError(f"{path} is raw: say which numbers it holds (--dtype, --labels-dtype)")
    try:
        if path.suffix.lower() == ".npy":
            loaded: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return loaded
        return np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r")
    except (ValueError, TypeError, EOFError, OSError, SyntaxError, OverflowError, tokenize.TokenError) as error:
        raise DataFormatError(f"{path} cannot be read: {error}") from error


def shaped(x: npt.NDArray[Any], shape: tuple[int, ...] | None) -> npt.NDArray[Any]:
    """Gives inputs the shape [n, *shape]; None leaves them as they are.

    Raises:
        DataFormatError: The numbers do not come out even.
    """
    if shape is None:
        return x
    size = math.prod(shape)
    if x.ndim > 1 and x.size != len(x) * size:
        raise DataFormatError(f"an input has {math.prod(x.shape[1:])} numbers; the shape {shape} has {size}")
    if x.size == 0 or x.size % size:
        raise DataFormatError(f"{x.size} numbers are no whole number of inputs of shape {shape}")
    return x.reshape(-1, *shape)
