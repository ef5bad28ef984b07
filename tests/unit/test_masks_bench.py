"""The bench of masks runs the real code, and says where it does not."""

from simulators.confidential_bench import confidential_rows
from simulators.trials.masks_bench import measure_masks


def test_a_small_round_is_real_and_a_large_one_says_that_it_is_simulated():
    real = measure_masks(num_parameters=50, num_devices=12, num_members=4)
    simulated = measure_masks(num_parameters=50, num_devices=12, num_members=4, max_sealed=5)
    assert (real.is_simulated, simulated.is_simulated) == (False, True)
    assert real.num_arrived == simulated.num_arrived == 11
    # The same messages, whoever was really sealed for; an order's size is counted to within a few bytes a contributor.
    assert (real.up_bytes, real.member_up_bytes) == (simulated.up_bytes, simulated.member_up_bytes)
    assert abs(real.member_down_bytes - simulated.member_down_bytes) < 12 * real.num_arrived
    for cost in (real, simulated):
        assert min(cost.device_ms, cost.coordinator_s, cost.member_ms) > 0


def test_every_way_to_a_sum_is_measured():
    rows = confidential_rows(64, 3)
    assert [row.way for row in rows] == ["plain", "helpers", "masks", "he"]
    assert all(row.up_bytes >= 4 * 64 for row in rows)
