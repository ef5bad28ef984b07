"""The published accuracy of answers, on fewer repeats; and the noise is not smaller than epsilon allows."""

import math

import pytest

from simulators.trials.query_accuracy import measure_accuracy

REPEATS = 40


def test_a_thousand_sensors_answer_as_exactly_as_published_and_no_more_exactly():
    found = measure_accuracy(1.0, num_devices=1000, num_repeats=REPEATS)
    # Two-sided geometric noise of scale 1/epsilon on the count; of 40 squares of Laplace kind six standard errors are wide.
    expected = math.sqrt(2.0)
    assert expected / 2.2 < found.count < expected * 1.8
    assert 0.025 < found.mean < 0.12
    assert found.median < 0.3
    assert found.q90 < 1.0
    assert 1.5 < found.histogram < 6.0
    assert found.covered >= 0.90


def test_half_the_epsilon_is_twice_the_noise():
    one, half = (measure_accuracy(epsilon, num_devices=100, num_repeats=30) for epsilon in (1.0, 0.5))
    assert half.histogram / one.histogram == pytest.approx(2.0, rel=0.5)
