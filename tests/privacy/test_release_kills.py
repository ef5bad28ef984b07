"""A short version of `scripts/kill-releases`."""

import dataclasses

import pytest

from simulators.trials.release_kills import ReleaseKills, run_release_kills


def test_killed_at_random_moments_nothing_was_published_that_is_not_charged(tmp_path):
    report = run_release_kills(tmp_path, num_kills=6, seed=1)
    assert report.is_clean, report


@pytest.mark.parametrize("wrong", ["num_uncharged", "num_other_bytes", "num_damaged"])
def test_one_broken_promise_is_not_clean(wrong):
    good = ReleaseKills(
        num_kills=6, num_published=50, num_charged=55, num_uncharged=0, num_other_bytes=0, num_damaged=0
    )
    assert good.is_clean
    assert not dataclasses.replace(good, **{wrong: 1}).is_clean
    assert not dataclasses.replace(good, num_charged=57).is_clean
    assert not dataclasses.replace(good, num_published=0, num_charged=0).is_clean
