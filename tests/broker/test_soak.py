"""A short soak of the real commands; `scripts/soak --minutes 30` is the long one."""

import pytest

from simulators.trials.soak import run_soak

pytestmark = [pytest.mark.broker, pytest.mark.tensorflow, pytest.mark.timeout(180)]


def test_a_coordinator_and_a_litert_device_go_on_round_after_round_and_open_no_more_files(tmp_path, mosquitto_url):
    report = run_soak(tmp_path, mosquitto_url, minutes=0.15, num_devices=1, num_samples=9)
    assert report.num_commits > 3
    assert report.num_abandoned == 0
    assert set(report.growth) == {"coordinator", "device-0", "trainer-0"}
    assert all(growth.fds_drift <= 1 for growth in report.growth.values())
    assert report.growth["coordinator"].written_mb_per_hour > 0
    # The trainer child writes nothing: only the daemon owns files.
    assert report.growth["trainer-0"].written_mb_per_hour == 0
    assert report.exit_codes == {"coordinator": 4, "device-0": 0}
