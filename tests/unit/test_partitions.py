"""Partitions give every example to exactly one device, and skew as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.errors import InvalidPartition
from simulators.partitions import partition_by_group, partition_by_label, partition_dirichlet, partition_iid

LABELS = np.random.default_rng(0).integers(0, 10, 1000).astype(np.int32)


def _is_a_partition(parts, num_examples):
    return sorted(np.concatenate(parts).tolist()) == list(range(num_examples))


@given(st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=50)
def test_every_example_goes_to_exactly_one_device(num_devices, seed):
    assert _is_a_partition(partition_iid(1000, num_devices, seed=seed), 1000)
    assert _is_a_partition(partition_by_label(LABELS, num_devices, seed=seed), 1000)
    assert _is_a_partition(partition_dirichlet(LABELS, num_devices, alpha=1.0, seed=seed, min_examples=0), 1000)


def test_a_small_alpha_skews_labels_and_a_large_one_does_not():
    def mean_labels(alpha):
        parts = partition_dirichlet(LABELS, 10, alpha=alpha, seed=1)
        return np.mean([np.bincount(LABELS[part], minlength=10).max() / len(part) for part in parts])

    assert mean_labels(0.1) > 0.4
    assert mean_labels(100.0) < 0.2


def test_shards_by_label_leave_each_device_few_labels():
    parts = partition_by_label(LABELS, 50, labels_per_device=2, seed=0)
    assert max(len(set(LABELS[part].tolist())) for part in parts) <= 4


def test_groups_become_devices_in_order_of_appearance():
    assert [part.tolist() for part in partition_by_group(["b", "a", "b"])] == [[0, 2], [1]]


@pytest.mark.parametrize(
    "ask",
    [
        lambda: partition_iid(3, 4, seed=0),
        lambda: partition_iid(3, 0, seed=0),
        lambda: partition_dirichlet(LABELS, 10, alpha=0.0, seed=0),
        lambda: partition_dirichlet(LABELS, 900, alpha=0.01, seed=0),
        lambda: partition_by_label(LABELS, 600, seed=0),
        lambda: partition_by_group([]),
    ],
)
def test_what_cannot_be_spread_is_refused(ask):
    with pytest.raises(InvalidPartition):
        ask()
