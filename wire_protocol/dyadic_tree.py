"""A dyadic tree of counts over equal bins: how a device marks its bin, and how noisy counts become one distribution.

The tree over ``B = 2^L`` bins has the levels 1 to L; level l has ``2^l`` nodes, the last one the bins. A device counts
in one node of each level. Any range of bins is a sum of few nodes, so its noise grows with L and not with B
(Hay, Rastogi, Miklau, Suciu 2010, "Boosting the accuracy of differentially private histograms through consistency").
"""

import numpy as np
import numpy.typing as npt

__all__ = ["Counts", "cumulative", "leaf_counts", "num_nodes", "path_to"]

Counts = npt.NDArray[np.float64]


def num_nodes(num_levels: int) -> int:
    """Nodes of the levels 1 to ``num_levels``: ``2^(L+1) - 2``."""
    return (2 << num_levels) - 2


def path_to(leaf: int, num_levels: int) -> tuple[int, ...]:
    """Positions, in a vector of all levels one after another, of the nodes that hold a bin; one of each level."""
    return tuple((1 << level) - 2 + (leaf >> (num_levels - level)) for level in range(1, num_levels + 1))


def leaf_counts(nodes: Counts, num_levels: int) -> Counts:
    """The bins' counts that are nearest to what all levels say, by least squares; exact if the levels agree.

    Hay et al. 2010, theorem 3: weighted averages from the bins upwards, then corrections from the top downwards.
    Counts may be negative and stay so: to cut them at 0 here would lift every sum of them.

    Args:
        nodes: [num_nodes(L)] the levels one after another.
        num_levels: L.

    Returns:
        [2^L] one count per bin.
    """
    noisy = [nodes[(1 << level) - 2 : (2 << level) - 2] for level in range(1, num_levels + 1)]
    upwards = [noisy[-1]]
    for height, own in enumerate(reversed(noisy[:-1]), start=2):
        weight = (2.0**height - 2.0 ** (height - 1)) / (2.0**height - 1.0)
        upwards.append(weight * own + (1.0 - weight) * _pair_sums(upwards[-1]))
    found = upwards.pop()
    while upwards:
        below = upwards.pop()
        found = below + np.repeat((found - _pair_sums(below)) / 2.0, 2)
    return found


def cumulative(counts: Counts) -> Counts:
    """[B + 1] a distribution function from 0, never falling, whose last value is the total (at least 0).

    Noisy bins make sums that fall here and there. Bins are **not** cut at 0 before they are summed, which would push
    all weight upwards: the sums are made monotone instead, midway between the running maximum from below and the
    running minimum from above.

    Args:
        counts: [B] counts of bins; may be negative.
    """
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    from_below = np.maximum.accumulate(sums)
    from_above = np.minimum.accumulate(sums[::-1])[::-1]
    monotone: Counts = np.maximum.accumulate(np.maximum((from_below + from_above) / 2.0, 0.0))
    return monotone


def _pair_sums(counts: Counts) -> Counts:
    sums: Counts = counts.reshape(-1, 2).sum(axis=1)
    return sums
