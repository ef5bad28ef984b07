"""How far each signature of a file is from Keras, in absolute and in relative terms: what the certificate lists."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model_export.certificate import SignatureError

__all__ = ["SignatureErrors"]

_FLOOR: Final = 1e-3
_Arrays = Sequence[npt.NDArray[Any]]


class SignatureErrors:
    """The largest errors met so far, by signature and what it gives."""

    def __init__(self) -> None:
        self._errors: dict[tuple[str, str], tuple[float, float]] = {}

    def note(
        self, signature: str, quantity: str, got: _Arrays, expected: _Arrays, *, relative: float | None = None
    ) -> None:
        """Compares what a signature gave with Keras.

        Args:
            signature: Its name in the file.
            quantity: What is compared.
            got: LiteRT's tensors.
            expected: Keras's, of the same shapes.
            relative: The relative error, where it is judged elsewhere (see ``gradient_comparison``); otherwise the largest
                difference in any tensor over that tensor's largest value, but over no less than a thousandth of all's.
        """
        pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(got, expected, strict=True)]
        absolutes = [_largest(a - b) for a, b in pairs]
        floor = max(_FLOOR * max(_largest(b) for _, b in pairs), float(np.finfo(np.float32).tiny))
        scales = [max(_largest(b), floor) for _, b in pairs]
        relatives = [error / scale for error, scale in zip(absolutes, scales, strict=True)]
        now = (float(np.max(absolutes)), float(np.max(relatives)) if relative is None else relative)
        before = self._errors.get((signature, quantity), (0.0, 0.0))
        # Unlike max(), this passes a NaN on.
        absolute, worst = (float(np.maximum(a, b)) for a, b in zip(before, now, strict=True))
        self._errors[signature, quantity] = (absolute, worst)

    def entries(self) -> tuple[SignatureError, ...]:
        """In the order in which they were first met."""
        return tuple(
            SignatureError(signature=signature, quantity=quantity, absolute=absolute, relative=relative)
            for (signature, quantity), (absolute, relative) in self._errors.items()
        )


def _largest(values: npt.NDArray[np.float64]) -> float:
    return float(np.abs(values).max(initial=0.0))
