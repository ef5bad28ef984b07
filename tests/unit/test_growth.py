"""The slope is that of the line that was drawn, and neither the warm-up nor a level counts as a leak."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.trials.growth import Sample, growth_of, slope_per_hour


def _samples(rss, fds=lambda _: 10, written=lambda _: 0):
    return [
        Sample(at_s=t, rss_bytes=int(rss(t)), num_fds=fds(t), num_threads=3, written_bytes=int(written(t)))
        for t in range(0, 1801, 15)
    ]


@given(st.floats(-1e6, 1e6), st.floats(-1e3, 1e3), st.lists(st.floats(0, 1e4), min_size=2, max_size=50, unique=True))
def test_the_slope_of_a_line_is_its_own(level, slope, times):
    if max(times) - min(times) < 1:
        return
    found = slope_per_hour(times, [level + slope * t for t in times])
    assert found == pytest.approx(slope * 3600, rel=1e-6, abs=1e-2)


def test_two_samples_of_one_moment_have_no_slope():
    with pytest.raises(ValueError, match="two different moments"):
        slope_per_hour([5.0, 5.0], [1.0, 2.0])


def test_what_grows_in_the_warm_up_alone_is_no_growth():
    growth = growth_of(_samples(lambda t: 50e6 + min(t, 300) * 1e5), warm_up_s=360.0)
    assert growth.rss_slope_mb_per_hour == 0
    assert growth.num_samples == 97


def test_a_leak_of_two_megabytes_an_hour_is_seen_through_noise():
    growth = growth_of(_samples(lambda t: 50e6 + t * 2e6 / 3600 + (t % 7) * 1e4), warm_up_s=360.0)
    assert growth.rss_slope_mb_per_hour == pytest.approx(2.0, abs=0.1)


def test_files_that_come_and_go_are_no_drift_and_one_more_every_ten_minutes_is():
    assert growth_of(_samples(lambda _: 1, lambda t: 10 + t % 2), warm_up_s=360.0).fds_drift == 0
    assert growth_of(_samples(lambda _: 1, lambda t: 10 + t // 600), warm_up_s=360.0).fds_drift == 2


def test_bytes_written_are_those_of_an_hour():
    growth = growth_of(_samples(lambda _: 1, written=lambda t: t * 1000), warm_up_s=360.0)
    assert growth.written_mb_per_hour == pytest.approx(3.6)
