"""Ways to spread a data set over devices. Pure functions of labels and a seed; every example goes to one device.

| partition | what it imitates |
|---|---|
| `partition_iid` | every device sees the same distribution |
| `partition_dirichlet` | label skew of Hsu, Qi, Brown 2019 (arXiv:1909.06335): per label, shares drawn from Dirichlet(alpha) |
| `partition_by_label` | the shards of McMahan et al. 2017 (arXiv:1602.05629): each device has few labels |
| `partition_by_group` | a given assignment, such as one file or one writer per device |
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simulators.errors import InvalidPartition

__all__ = ["partition_by_group", "partition_by_label", "partition_dirichlet", "partition_iid"]

Labels = npt.NDArray[np.int32] | npt.NDArray[np.int64]
Partition = list[npt.NDArray[np.int64]]
"""Per device, the sorted positions of its examples."""

_MAX_DIRICHLET_DRAWS = 100


def partition_iid(num_examples: int, num_devices: int, *, seed: int) -> Partition:
    """Shuffles and deals out; sizes differ by at most one.

    Raises:
        InvalidPartition: Fewer examples than devices.
    """
    _check(num_examples, num_devices)
    order = np.random.default_rng(seed).permutation(num_examples)
    return [np.sort(part).astype(np.int64) for part in np.array_split(order, num_devices)]


def partition_dirichlet(
    labels: Labels, num_devices: int, *, alpha: float, seed: int, min_examples: int = 1
) -> Partition:
    """Deals each label out in shares drawn from a symmetric Dirichlet(alpha).

    Args:
        labels: [n] integer labels.
        num_devices: How many devices.
        alpha: Concentration; 100 is nearly IID, 0.1 gives most devices one or two labels.
        seed: Seeds the draw.
        min_examples: Redraw until every device has at least this many.

    Raises:
        InvalidPartition: alpha not positive, or no draw gave every device enough examples.
    """
    _check(len(labels), num_devices)
    if not alpha > 0:
        raise InvalidPartition(f"Dirichlet alpha must be positive, not {alpha}")
    rng = np.random.default_rng(seed)
    for _ in range(_MAX_DIRICHLET_DRAWS):
        parts = _draw_dirichlet(labels, num_devices, alpha, rng)
        if min(len(part) for part in parts) >= min_examples:
            return parts
    raise InvalidPartition(
        f"no Dirichlet({alpha}) draw gave each of {num_devices} devices {min_examples} of {len(labels)} examples; "
        "use fewer devices or a larger alpha"
    )


def _draw_dirichlet(labels: Labels, num_devices: int, alpha: float, rng: np.random.Generator) -> Partition:
    parts: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(num_devices)]
    for label in np.unique(labels):
        positions = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(num_devices, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(positions)).astype(np.int64)
        for part, piece in zip(parts, np.split(positions, cuts), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)).astype(np.int64) for part in parts]


def partition_by_label(labels: Labels, num_devices: int, *, labels_per_device: int = 2, seed: int) -> Partition:
    """Sorts by label, cuts into ``num_devices * labels_per_device`` shards, deals each device that many shards.

    Raises:
        InvalidPartition: Fewer examples than shards.
    """
    num_shards = num_devices * labels_per_device
    _check(len(labels), num_shards)
    rng = np.random.default_rng(seed)
    by_label = np.lexsort((rng.permutation(len(labels)), labels))
    shards = np.array_split(by_label, num_shards)
    order = rng.permutation(num_shards).reshape(num_devices, labels_per_device)
    return [np.sort(np.concatenate([shards[shard] for shard in row])).astype(np.int64) for row in order]


def partition_by_group(groups: Sequence[object]) -> Partition:
    """One device per distinct group (a file, a writer), in order of first appearance."""
    found: dict[object, list[int]] = {}
    for position, group in enumerate(groups):
        found.setdefault(group, []).append(position)
    if not found:
        raise InvalidPartition("no examples to partition")
    return [np.array(positions, dtype=np.int64) for positions in found.values()]


def _check(num_examples: int, num_parts: int) -> None:
    if num_parts < 1:
        raise InvalidPartition(f"need at least one device, not {num_parts}")
    if num_examples < num_parts:
        raise InvalidPartition(f"{num_examples} examples cannot be spread over {num_parts} parts; use fewer devices")
