"""The step benchmark's comparison: turns of real processes, ratios against the exported file."""

import sys
from pathlib import Path

import pytest

from simulators.step_bench.comparison import YARDSTICK, compare

PROGRAM = "import time; from simulators.step_bench.turns import serve; serve(lambda: time.sleep({}), warm_up=1)"


def rival(seconds):
    return [sys.executable, "-c", PROGRAM.format(seconds)]


def test_a_rival_four_times_as_slow_has_a_ratio_well_below_one_and_the_file_itself_exactly_one():
    ours, slow = compare({YARDSTICK: rival(0.01), "slow": rival(0.04)}, num_threads=1, turns=3, steps=2)
    assert ours.ratio == ours.cpu_ratio == 1
    assert slow.ratio < 0.8
    assert slow.median_ms >= 40
    assert 5 < slow.peak_rss_mb < 200


def test_a_rival_that_dies_is_named():
    with pytest.raises(RuntimeError, match="dead ended before it answered"):
        compare({YARDSTICK: rival(0.001), "dead": [sys.executable, "-c", ""]}, num_threads=1, turns=1, steps=1)


def test_the_pytorch_worker_needs_nothing_of_this_project():
    folder = Path(__file__).resolve().parents[2] / "simulators" / "step_bench"
    for name in ("torch_worker.py", "turns.py"):
        assert "simulators" not in (folder / name).read_text()
