"""Curves of accuracy as pictures. The only module that imports matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["draw_curve", "draw_frontier"]


def draw_curve(path: Path, *, accuracies: Sequence[float], losses: Sequence[float], title: str) -> None:
    """Draws test accuracy and loss against the round, to a PNG file.

    Args:
        path: Where to write.
        accuracies: [r] test accuracy in [0, 1] after round 1, 2, ...
        losses: [r] test loss after the same rounds.
        title: Above the picture.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rounds = range(1, len(accuracies) + 1)
    figure, left = plt.subplots(figsize=(7, 4.2), dpi=120)
    left.plot(rounds, [100 * value for value in accuracies], marker="o", color="#1f5fa8", label="test accuracy")
    left.set_xlabel("committed round")
    left.set_ylabel("test accuracy [%]", color="#1f5fa8")
    left.grid(visible=True, alpha=0.3)
    right = left.twinx()
    right.plot(rounds, losses, linestyle="--", color="#a85a1f", label="test loss")
    right.set_ylabel("test loss", color="#a85a1f")
    left.set_title(title)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def draw_frontier(path: Path, *, series: Mapping[str, Mapping[float, Sequence[float]]], title: str) -> None:
    """Draws test accuracy against epsilon, a line per series through its means, with bars from worst to best, to a PNG file.

    The axis is logarithmic in the error, or all that is useful would be one line at the top.

    Args:
        path: Where to write.
        series: Name -> epsilon -> accuracies in (0, 1) of several seeds.
        title: Above the picture.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=120)
    for name, points in series.items():
        epsilons = sorted(points)
        errors = [sorted(100 - 100 * value for value in points[epsilon]) for epsilon in epsilons]
        means = [sum(values) / len(values) for values in errors]
        below = [mean - values[0] for mean, values in zip(means, errors, strict=True)]
        above = [values[-1] - mean for mean, values in zip(means, errors, strict=True)]
        axes.errorbar(epsilons, means, yerr=(below, above), marker="o", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20, 50, 80]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 - y:g}"))
    axes.set_xlabel("epsilon (claimed, delta 1e-5)")
    axes.set_ylabel("test accuracy [%]")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    axes.set_title(title)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
