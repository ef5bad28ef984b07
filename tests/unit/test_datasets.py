"""Data sets are the real ones, or an error that says how to get them."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from simulators.datasets import MNIST_FILES, find_mnist, load_csv_folder, load_digits, load_mnist
from simulators.errors import DatasetUnavailable


def test_the_bundled_digits_are_1797_real_images():
    digits = load_digits()
    assert len(digits.y_train) + len(digits.y_test) == 1797
    assert digits.x_train.shape[1:] == (64,)
    assert digits.num_classes == 10
    assert 0.0 == digits.x_train.min() < digits.x_train.max() == 1.0


def test_the_test_part_is_disjoint_from_the_training_part_and_the_same_each_time():
    first, second = load_digits(), load_digits()
    assert np.array_equal(first.x_test, second.x_test)
    train = {row.tobytes() for row in first.x_train}
    assert sum(row.tobytes() in train for row in first.x_test) <= 2  # the source holds a few identical images


def test_missing_mnist_is_an_error_that_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("FLOCKWISE_DATA_DIR", raising=False)
    with pytest.raises(DatasetUnavailable, match=r"--data-dir.*--dataset digits"):
        load_mnist(tmp_path, download=False)


def test_a_damaged_mnist_file_is_never_used(tmp_path):
    for name in MNIST_FILES:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(bytes(100)))
    with pytest.raises(DatasetUnavailable, match="does not hold the real"):
        load_mnist(tmp_path)


def test_the_real_mnist_loads_from_its_usual_place():
    if find_mnist(None) is None:
        if os.environ.get("CI"):
            pytest.fail("MNIST must be beside the checkout in CI")
        pytest.skip("MNIST is not on this machine; the tests above need none")
    mnist = load_mnist(find_mnist(None))
    assert mnist.x_train.shape == (60000, 28, 28, 1)
    assert mnist.y_test[:3].tolist() == [7, 2, 1]


def test_a_csv_folder_has_a_device_per_file(tmp_path: Path):
    for name, rows in {"a": 5, "b": 7}.items():
        (tmp_path / f"{name}.csv").write_text("f0,f1,label\n" + "0.5,1.5,1\n" * rows)
    dataset, groups = load_csv_folder(tmp_path)
    assert len(dataset.y_train) == len(groups) == 10
    assert set(groups) == {"a.csv", "b.csv"}
    assert dataset.x_train.shape == (10, 2)


@pytest.mark.parametrize("text", ["f0,label\nx,1\n", "f0,label\n1.0,1.5\n"])
def test_a_bad_csv_cell_is_named_with_file_and_line(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DatasetUnavailable, match=r"a\.csv, line 2"):
        load_csv_folder(tmp_path)
