"""Exported files in other runtimes: what the record says, and that it is still true of the lowest and the newest."""

import dataclasses
import os
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from model_export.proved_runtimes import proved_runtimes, runtimes_markdown, runtimes_of
from simulators.trials.errors import NoEnvironment
from simulators.trials.runtime_files import write_files, zoo_files
from simulators.trials.runtime_proof import (
    RUNTIMES,
    TOLERANCE,
    Environment,
    newer_python,
    prove_device,
    prove_runtime,
    requirements,
)

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEVICE_TESTS = [
    f"tests/unit/edge/test_{name}.py"
    for name in ("config", "example_store", "identity", "labels", "linear_trainer", "outbox", "session_table")
]


def test_the_page_shows_the_record():
    page = (ROOT / "docs" / "reference" / "runtimes.md").read_text()
    table = page.partition("--write -->\n")[2].partition("<!-- end")[0]
    assert table == runtimes_markdown(proved_runtimes())
    assert f"Lowest runtime proved: **ai-edge-litert {proved_runtimes().lowest}**" in page
    assert f"for the models of the zoo **{proved_runtimes().lowest_for_zoo}**" in page


def test_devices_install_the_newest_runtime_that_is_proved():
    [pinned] = [line for line in PROJECT["project"]["dependencies"] if line.startswith("ai-edge-litert")]
    assert pinned == f"ai-edge-litert=={proved_runtimes().newest}"
    assert RUNTIMES[-1] == proved_runtimes().newest


def test_the_lowest_runtime_is_the_first_from_which_on_every_one_is_right():
    record = proved_runtimes()
    assert tuple(run.runtime for run in record.runs) == RUNTIMES
    for lowest, counts in ((record.lowest, lambda wrong: True), (record.lowest_for_zoo, record.zoo.__contains__)):
        are_right = [not run.problem and not any(map(counts, run.wrong)) for run in record.runs]
        first = RUNTIMES.index(lowest)
        assert all(are_right[first:])
        assert not are_right[first - 1]
    for run in record.runs:
        assert max(run.loss_difference, run.weight_difference, run.output_difference) <= TOLERANCE
    assert max(record.zoo.values()) <= TOLERANCE


def test_a_file_with_an_op_or_a_version_that_was_in_no_proof_is_proved_nowhere():
    proved = {"ADD": 1, "CONV_2D": 3}
    assert runtimes_of({"ADD": 1, "CONV_2D": 2}, proved) == (proved_runtimes().lowest, proved_runtimes().newest)
    assert runtimes_of({"ADD": 2}, proved) == ()
    assert runtimes_of({"ADD": 1, "GATHER_ND": 1}, proved) == ()


@pytest.fixture(scope="module")
def files():
    return list(zoo_files())


@pytest.fixture(scope="module")
def inputs(files, tmp_path_factory):
    directory = tmp_path_factory.mktemp("inputs")
    write_files(files, directory)
    return directory


def made(directory, python, packages):
    environment = Environment(directory=directory, python=python, packages=packages)
    try:
        environment.make()
    except NoEnvironment as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no environment can be made here: {error}")
    return environment


@pytest.mark.install
def test_the_lowest_runtime_of_the_zoo_computes_what_the_certificates_say(files, inputs, tmp_path):
    record = proved_runtimes()
    lowest = record.lowest_for_zoo
    environment = made(tmp_path / "environment", sys.executable, requirements(lowest))
    run = prove_runtime(environment, lowest, files, inputs=inputs, certified=record.zoo)
    assert run.is_right, (run.problem, run.wrong)
    assert run.numpy == "1.25.2"
    # And a difference would be seen: the same run against figures that are off by a little more than is allowed.
    wrong = [
        dataclasses.replace(file, expected={key: value + 2 * TOLERANCE * max(1, np.abs(value).max(initial=0))
                                            for key, value in file.expected.items()})
        for file in files[:2]
    ]  # fmt: skip
    assert prove_runtime(environment, lowest, wrong, inputs=inputs, certified=record.zoo).wrong == ("mlp",)


@pytest.mark.install
def test_the_device_package_runs_on_a_newer_python_with_the_newest_runtime_and_numpy(files, inputs, tmp_path):
    python = newer_python()
    if python is None:
        assert not os.environ.get("CI"), "CI needs a Python of 3.12 or later: devices have one"
        pytest.skip("there is no Python of 3.12 or later here")
    testing = [line for line in PROJECT["dependency-groups"]["dev"] if re.match("pytest|hypothesis", str(line))]
    environment = made(tmp_path / "environment", python, (str(ROOT), *testing))
    record = proved_runtimes()
    run = prove_runtime(environment, record.newest, files, inputs=inputs, certified=record.zoo)
    assert run.is_right, (run.problem, run.wrong)
    assert run.numpy.startswith("2.")
    assert run.python.split(".")[1] >= "12"
    assert " passed" in prove_device(environment, ROOT, DEVICE_TESTS)
