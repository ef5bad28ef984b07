"""A short chaos run on real processes; `scripts/chaos --kills 500` is the long one."""

import pytest

from simulators.chaos import run_chaos

pytestmark = [pytest.mark.broker, pytest.mark.timeout(420)]


def test_real_processes_killed_at_failpoints_lose_nothing_acknowledged_and_count_nothing_twice(tmp_path, mosquitto_url):
    report = run_chaos(tmp_path, mosquitto_url, num_kills=8, seed=11, on_kill=lambda *_: None)
    assert report.num_kills == 8
    assert report.num_lost == 0
    assert report.num_counted_twice == 0
    assert report.num_abandoned_with_updates == 0
    assert report.max_state_error <= 1e-5
    assert report.num_acknowledged > 0
    assert report.is_clean
