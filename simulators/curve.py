"""The accuracy curve as a picture. The only module that imports matplotlib."""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["draw_curve"]


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
