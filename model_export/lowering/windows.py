"""Geometry of sliding windows along one axis: output length, padding, and where each tap reads."""

import dataclasses

__all__ = ["WindowAxis", "plan_axis"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WindowAxis:
    """One spatial axis of a convolution or a pooling, all in elements."""

    size: int
    window: int
    stride: int
    dilation: int
    output: int
    pad_before: int
    pad_after: int
    """May be negative (a crop): the padded size is what the last window needs, up to a multiple of the stride."""

    @property
    def phase_size(self) -> int:
        """Length of each of the ``stride`` phases of the padded axis."""
        return (self.pad_before + self.size + self.pad_after) // self.stride

    def tap(self, index: int) -> tuple[int, int]:
        """Which phase tap ``index`` reads, and from which offset in it."""
        offset, phase = divmod(index * self.dilation, self.stride)
        return phase, offset


def plan_axis(*, size: int, window: int, stride: int = 1, dilation: int = 1, padding: str = "valid") -> WindowAxis:
    """Plans one axis as TensorFlow does (https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2).

    Args:
        size: Input length.
        window: Taps of the window.
        stride: Step between windows.
        dilation: Step between taps.
        padding: ``"valid"`` or ``"same"``.
    """
    extent = (window - 1) * dilation + 1
    if padding == "same":
        output = -(-size // stride)
        total = max((output - 1) * stride + extent - size, 0)
        before = total // 2
    else:
        output = (size - extent) // stride + 1
        before = 0
    padded = -(-((output - 1) * stride + extent) // stride) * stride
    return WindowAxis(
        size=size,
        window=window,
        stride=stride,
        dilation=dilation,
        output=output,
        pad_before=before,
        pad_after=padded - size - before,
    )
