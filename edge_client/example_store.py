"""The local examples: a directory of raw arrays, or a CSV file.

A **directory** holds ``examples.json`` and two files of raw little-endian numbers in C order:

    {"format": 1, "num_examples": 600, "x_dtype": "uint8", "x_shape": [28, 28, 1], "y_dtype": "int32", "scale": 0.0039}

- ``x.bin``: the inputs, [num_examples, *x_shape], ``float32`` or ``uint8``; multiplied by ``scale`` when used
- ``y.bin``: the labels. Class numbers are [num_examples], ``int32``, ``int64`` or ``uint8``; 0 is the first class.
  Other labels (numbers to predict, one-hot rows, several yes or no) are ``float32`` [num_examples, k] with
  ``"y_shape": [k]``, or [num_examples] without
- optional: ``x_file`` and ``y_file`` (other names in the same directory), ``x_sha256`` and ``y_sha256``

They are memory-mapped: a set larger than memory is no trouble. A **CSV file** has a header row; the column ``label``,
or the last one, is the class number, all others are numbers; or columns whose names begin with ``target`` are the label,
as numbers. It is read whole at every round: import large ones.

Writing replaces a directory as a whole: the header is written last and atomically and names new data files, so that
whatever goes wrong (a full disk, a power cut) leaves the old examples in use.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from edge_client.atomic_files import PART_SUFFIX, atomic_file, remove_parts, write_atomically
from edge_client.csv_examples import read_csv_examples
from edge_client.errors import DataError, DataFormatError, DataNotFound, StorageError
from edge_client.example_header import HEADER_FILE, ExamplesHeader, read_header
from edge_client.training import ArrayExamples

__all__ = ["check_arrays", "open_examples", "verify_examples", "write_examples"]

_CHUNK: Final = 1024
_OUR_FILE: Final = re.compile(r"[xy]-[0-9a-f]{16}\.bin")


def open_examples(path: Path) -> ArrayExamples:
    """Opens a directory of raw arrays or a CSV file.

    Raises:
        DataNotFound: Nothing is there.
        DataFormatError: It is not in the documented layout; the message says what is wrong.
    """
    if path.is_dir():
        header = read_header(path)
        x = _map_array(path / header.x_file, header.x_dtype, (header.num_examples, *header.x_shape))
        y = _map_array(path / header.y_file, header.y_dtype, (header.num_examples, *header.y_shape))
        return ArrayExamples(x=x, y=y, scale=header.scale)
    if not path.exists():
        raise DataNotFound(
            f"there is nothing at {path}; import examples with: flockwise edge import-data FILE --out DIR"
        )
    if path.suffix.lower() != ".csv":
        raise DataFormatError(f"{path} is neither a directory of examples nor a .csv file")
    return read_csv_examples(path)


def write_examples(target: Path, *, x: npt.NDArray[Any], y: npt.NDArray[Any], scale: float = 1.0) -> int:
    """Writes a directory of examples, replacing the one that is there.

    Args:
        target: The directory; made if it is not there.
        x: [n, ...] inputs; uint8 stays uint8, everything else becomes float32.
        y: [n] class numbers, integer, 0 to 2**31 - 1; or [n] or [n, k] numbers, which become float32.
        scale: Inputs are multiplied by this when used.

    Returns:
        n.

    Raises:
        DataFormatError: Not such arrays, NaN or infinity, or ``target`` holds something else.
        StorageError: ``target`` cannot be written, and is unchanged.
    """
    check_arrays(x, y)
    _check_target(target)
    x_dtype = "uint8" if x.dtype == np.uint8 else "float32"
    try:
        target.mkdir(parents=True, exist_ok=True)
        remove_parts(target)
        old_files = _old_files(target)
        x_file, x_sha256 = _write_array(target, "x", x, x_dtype)
        y_dtype = "int32" if np.issubdtype(y.dtype, np.integer) and y.ndim == 1 else "float32"
        y_file, y_sha256 = _write_array(target, "y", y, y_dtype)
        header = ExamplesHeader(
            num_examples=len(y),
            x_dtype=x_dtype,  # type: ignore[arg-type]  # one of the two literals, by the line above
            x_shape=tuple(x.shape[1:]),
            y_dtype=y_dtype,  # type: ignore[arg-type]  # likewise
            y_shape=tuple(y.shape[1:]),
            scale=scale,
            x_file=x_file,
            y_file=y_file,
            x_sha256=x_sha256,
            y_sha256=y_sha256,
        )
        write_atomically(target / HEADER_FILE, msgspec.json.encode(header) + b"\n")
        for name in old_files - {x_file, y_file}:
            (target / name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"the examples cannot be written to {target}: {error}") from error
    return len(y)


def verify_examples(path: Path) -> None:
    """Reads everything once: hashes if the header names them, and that all inputs and labels are finite.

    Raises:
        DataError: As ``open_examples``; or damaged, or not finite.
    """
    examples = open_examples(path)
    if path.is_dir():
        header = read_header(path)
        for name, expected in ((header.x_file, header.x_sha256), (header.y_file, header.y_sha256)):
            if expected and _file_sha256(path / name) != expected:
                raise DataFormatError(f"{path / name} is not the file that {HEADER_FILE} describes; import it again")
    for start in range(0, examples.num_examples, _CHUNK):
        indices = np.arange(start, min(start + _CHUNK, examples.num_examples), dtype=np.int64)
        if not np.isfinite(examples.inputs(indices)).all():
            raise DataFormatError(f"{path}: an input among examples {start} to {indices[-1]} is NaN or infinite")
        if not np.isfinite(examples.labels[indices]).all():
            raise DataFormatError(f"{path}: a label among examples {start} to {indices[-1]} is NaN or infinite")


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    little_endian = np.dtype(dtype).newbyteorder("<")
    expected = math.prod(shape) * little_endian.itemsize
    try:
        found = path.stat().st_size
        if found != expected:
            raise DataFormatError(
                f"{path} has {found} bytes; {HEADER_FILE} describes {dtype} {list(shape)}, which is {expected} bytes"
            )
        return np.memmap(path, dtype=little_endian, mode="r", shape=shape)
    except FileNotFoundError as error:
        raise DataNotFound(f"{path}, which {HEADER_FILE} names, is not there") from error
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read: {error}") from error


def check_arrays(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
    """Refuses arrays that are no examples; values are checked when they are written.

    Raises:
        DataFormatError: Not numbers, not of the same length, or class numbers below 0 or too large.
    """
    if not _are_numbers(y) or y.ndim not in (1, 2) or 0 in y.shape:
        raise DataFormatError(f"labels must be class numbers [n] or numbers [n, k], not {y.dtype} {y.shape}")
    if not _are_numbers(x):
        raise DataFormatError(f"inputs must be numbers, not {x.dtype}")
    if x.ndim < 2 or len(x) != len(y) or 0 in x.shape:  # noqa: PLR2004 - at least [n, features]
        raise DataFormatError(f"inputs {x.shape} and labels {y.shape} do not belong together; is a shape missing?")
    if y.ndim > 1 or np.issubdtype(y.dtype, np.floating):
        return
    if int(y.min()) < 0 or int(y.max()) > np.iinfo(np.int32).max:
        raise DataFormatError(f"labels run from {y.min()} to {y.max()}; they must be class numbers from 0")


def _are_numbers(array: npt.NDArray[Any]) -> bool:
    return np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise DataFormatError(f"{target} is a file; name a directory for the examples")
    # An import that was cut short may have left its data files, and no header yet.
    if target.is_dir() and not (target / HEADER_FILE).exists():
        strange = [path for path in target.iterdir() if not (_OUR_FILE.fullmatch(path.name) or _is_part(path))]
        if strange:
            raise DataFormatError(f"{target} holds other files; name an empty or new directory for the examples")


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(PART_SUFFIX)


def _write_array(target: Path, prefix: str, values: npt.NDArray[Any], dtype: str) -> tuple[str, str]:
    """Writes an array under a name made of its hash; returns the name and the hash."""
    digest = hashlib.sha256()
    for chunk in _chunks(values, dtype):
        digest.update(chunk)
    name = f"{prefix}-{digest.hexdigest()[:16]}.bin"
    with atomic_file(target / name) as stream:
        for chunk in _chunks(values, dtype):
            stream.write(chunk)
    return name, digest.hexdigest()


def _chunks(values: npt.NDArray[Any], dtype: str) -> Iterator[bytes]:
    little_endian = np.dtype(dtype).newbyteorder("<")
    for start in range(0, len(values), _CHUNK):
        chunk = np.asarray(values[start : start + _CHUNK])
        # A float64 beyond float32 becomes infinity here and is refused in the next line.
        with np.errstate(over="ignore"):
            converted = chunk.astype(little_endian)
        if np.issubdtype(little_endian, np.floating) and not np.isfinite(converted).all():
            raise DataFormatError(f"a number of examples {start} to {start + len(chunk) - 1} is NaN or infinite")
        yield converted.tobytes()


def _old_files(target: Path) -> set[str]:
    """The data files that are in use before an import, and those of imports that were cut short."""
    files = {path.name for path in target.iterdir() if _OUR_FILE.fullmatch(path.name)}
    try:
        header = read_header(target)
    except DataError:
        return files
    return files | {header.x_file, header.y_file}
