"""Real data sets for demos and simulations: the bundled UCI digits, MNIST, and CSV folders (one file per device)."""

import csv
import dataclasses
import gzip
import hashlib
import os
import struct
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from simulators.errors import DatasetUnavailable

__all__ = ["MNIST_FILES", "Dataset", "find_mnist", "load_csv_folder", "load_digits", "load_mnist", "split_test"]

MNIST_FILES: Final[Mapping[str, str]] = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""File name without ``.gz`` -> SHA-256 of the *uncompressed* bytes (mirrors compress differently)."""

_MNIST_URL: Final = "https://ossci-datasets.s3.amazonaws.com/mnist"
_DOWNLOAD_TIMEOUT_S: Final = 60.0
_IDX_UNSIGNED_BYTE: Final = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Examples and labels, split into those that go to devices and those kept for testing."""

    name: str
    x_train: npt.NDArray[np.float32]
    """[n, ...] inputs."""
    y_train: npt.NDArray[np.int32]
    """[n] labels."""
    x_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.int32]

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1


def load_digits(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """The 1,797 8x8 images of the UCI optical digits test set (Alpaydin, Kaynak 1998; CC BY 4.0), bundled.

    Returns:
        x float32 [n, 64] in [0, 1], y int32 [n].
    """
    raw = resources.files("simulators").joinpath("data/digits.csv.gz").read_bytes()
    table = np.loadtxt(gzip.decompress(raw).decode().splitlines(), delimiter=",", dtype=np.float32)
    x = table[:, :64] / np.float32(16.0)
    return split_test("digits", x, table[:, 64].astype(np.int32), test_fraction=test_fraction, seed=seed)


def split_test(
    name: str, x: npt.NDArray[np.float32], y: npt.NDArray[np.int32], *, test_fraction: float, seed: int
) -> Dataset:
    """Sets a random part aside for testing."""
    order = np.random.default_rng(seed).permutation(len(y))
    num_test = max(1, round(len(y) * test_fraction))
    test, train = order[:num_test], order[num_test:]
    return Dataset(name=name, x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])


def find_mnist(data_dir: Path | None) -> Path | None:
    """Where MNIST's four files are: ``data_dir``, ``$FLOCKWISE_DATA_DIR``, ``data/mnist``, ``../shared/data/mnist``."""
    given = [data_dir] if data_dir is not None else []
    from_env = os.environ.get("FLOCKWISE_DATA_DIR")
    places = given + ([Path(from_env), Path(from_env) / "mnist"] if from_env else [])
    if data_dir is None:
        places += [Path("data/mnist"), Path("../shared/data/mnist")]
    for place in places:
        if all((place / f"{name}.gz").exists() or (place / name).exists() for name in MNIST_FILES):
            return place
    return None


def load_mnist(data_dir: Path | None = None, *, download: bool = True) -> Dataset:
    """MNIST (LeCun, Cortes, Burges): 60,000 training and 10,000 test images.

    Args:
        data_dir: Where its four files are, or where to put them.
        download: Fetch what is missing; each file is checked against its SHA-256.

    Returns:
        x float32 [n, 28, 28, 1] in [0, 1], y int32 [n].

    Raises:
        DatasetUnavailable: Missing and not downloadable, or damaged.
    """
    place = find_mnist(data_dir)
    if place is None and download:
        place = data_dir or Path("data/mnist")
        for name in MNIST_FILES:
            _download(name, place)
    if place is None:
        raise DatasetUnavailable(_how_to_get_mnist("MNIST is not here"))
    arrays = {name: _read_idx(name, place) for name in MNIST_FILES}
    images = [arrays[f"{part}-images-idx3-ubyte"] for part in ("train", "t10k")]
    labels = [arrays[f"{part}-labels-idx1-ubyte"].astype(np.int32) for part in ("train", "t10k")]
    scaled = [image[..., None].astype(np.float32) / np.float32(255.0) for image in images]
    return Dataset(name="mnist", x_train=scaled[0], y_train=labels[0], x_test=scaled[1], y_test=labels[1])


def _how_to_get_mnist(problem: str) -> str:
    return (
        f"{problem}. Put {', '.join(f'{name}.gz' for name in MNIST_FILES)} (from {_MNIST_URL}) into a folder and name "
        "it with --data-dir, or use --dataset digits, which is bundled"
    )


def _download(name: str, place: Path) -> None:
    url = f"{_MNIST_URL}/{name}.gz"
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT_S) as response:  # noqa: S310 - a constant https URL
            data = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise DatasetUnavailable(_how_to_get_mnist(f"cannot download {url}: {error}")) from error
    _checked(name, data, url)
    place.mkdir(parents=True, exist_ok=True)
    partial = place / f"{name}.gz.part"
    partial.write_bytes(data)
    partial.replace(place / f"{name}.gz")


def _checked(name: str, data: bytes, source: str) -> bytes:
    try:
        content = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        raise DatasetUnavailable(_how_to_get_mnist(f"{source} is damaged ({error})")) from error
    if hashlib.sha256(content).hexdigest() != MNIST_FILES[name]:
        raise DatasetUnavailable(_how_to_get_mnist(f"{source} does not hold the real {name}"))
    return content


def _read_idx(name: str, place: Path) -> npt.NDArray[np.uint8]:
    path = place / f"{name}.gz"
    if not path.exists():
        path = place / name
    content = _checked(name, path.read_bytes(), str(path))
    _, kind, num_dims = struct.unpack(">HBB", content[:4])
    if kind != _IDX_UNSIGNED_BYTE:
        raise DatasetUnavailable(_how_to_get_mnist(f"{path} is not a file of unsigned bytes"))
    shape = struct.unpack(f">{num_dims}I", content[4 : 4 + 4 * num_dims])
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * num_dims).reshape(shape)


def load_csv_folder(folder: Path, *, test_fraction: float = 0.2, seed: int = 0) -> tuple[Dataset, list[str]]:
    """One CSV file per device: a header row, features as numbers, the label in the column ``label`` or the last one.

    Returns:
        The data set and, per training example, the file it came from (for ``partition_by_group``).

    Raises:
        DatasetUnavailable: No CSV file, or one whose columns or numbers do not fit; the message names file and line.
    """
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise DatasetUnavailable(f"no .csv file in {folder}; expected one file per device")
    rows: list[list[float]] = []
    labels: list[int] = []
    groups: list[str] = []
    for file in files:
        _read_csv(file, rows, labels)
        groups += [file.name] * (len(labels) - len(groups))
    if len({len(row) for row in rows}) != 1:
        raise DatasetUnavailable(f"the files in {folder} have different numbers of columns")
    order = np.random.default_rng(seed).permutation(len(labels))
    num_test = max(1, round(len(labels) * test_fraction))
    x, y = np.array(rows, dtype=np.float32), np.array(labels, dtype=np.int32)
    test, train = order[:num_test], order[num_test:]
    dataset = Dataset(name=folder.name, x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])
    return dataset, [groups[index] for index in train]


def _read_csv(file: Path, rows: list[list[float]], labels: list[int]) -> None:
    with file.open(newline="") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        label_at = header.index("label") if "label" in header else len(header) - 1
        for row in reader:
            try:
                numbers = [float(cell) for cell in row]
                labels.append(_whole(numbers.pop(label_at)))
            except (ValueError, IndexError) as error:
                raise DatasetUnavailable(f"{file}, line {reader.line_num}: {error}") from error
            rows.append(numbers)


def _whole(label: float) -> int:
    if not label.is_integer():
        raise ValueError(f"the label {label} is not a whole number")
    return int(label)
