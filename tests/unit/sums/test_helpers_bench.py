"""The bench of helpers runs what it measures: the sum is exact, and the bytes are what is sent."""

import pytest

from simulators.trials.helpers_bench import measure_helpers


def test_the_sum_that_is_measured_is_exact_and_costs_what_is_sent():
    few, many = measure_helpers(300, 5), measure_helpers(300, 25)
    assert (few.is_exact, many.is_exact) == (True, True)
    assert (few.is_scaled, many.is_scaled) == (False, True)
    assert 4 * 300 < few.up_bytes == many.up_bytes < 4 * 300 + 600
    assert few.helper_up_bytes == pytest.approx(4 * 300, abs=120)
    assert many.helper_down_bytes > 2 * few.helper_down_bytes
