"""For apps on the device: the released model, always the newest that works, swapped without a gap.

    from edge_client.inference import ReleasedModel

    model = ReleasedModel("/var/lib/flockwise/models/digits")
    probabilities = model.predict(images)        # float32 [n, 8, 8, 1] -> float32 [n, 10]

A release that the daemon has switched to is used from the next call on; it is loaded before the old one is dropped,
and if it cannot be loaded the old one stays. Needs LiteRT and numpy; the daemon need not run.
"""

import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_client.errors import DataFormatError, StorageError
from edge_client.releases.app_uses import begin_use
from wire_protocol import model_contract as contract

__all__ = ["ReleasedModel"]

_CURRENT: Final = "current"
_MODEL_FILE: Final = "model.tflite"


class ReleasedModel:
    """The model that a device's daemon keeps at a stable path. Safe to use from several threads.

    Args:
        directory: ``<state_dir>/models/<name>``.
        num_threads: Of the interpreter.

    Raises:
        StorageError: No release has come yet, or it cannot be loaded.
    """

    def __init__(self, directory: str | Path, *, num_threads: int = 1) -> None:
        self._directory = Path(directory)
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._loaded = self._load(self._current_number())
        self._unloadable = 0

    @property
    def number(self) -> int:
        """The release that the last call used."""
        return self._loaded.number

    def predict(self, examples: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The model's outputs.

        Args:
            examples: [n, ...] in the model's input dtype.

        Returns:
            [n, ...] in its output dtype.

        Raises:
            DataFormatError: The examples' shape or dtype is not the model's.
        """
        with self._lock:
            self._swap()
            return self._loaded.predict(examples)

    def _swap(self) -> None:
        """Goes on to the release that the stable path leads to, if that is another one and can be loaded."""
        try:
            number = self._current_number()
            if number not in {self._loaded.number, self._unloadable}:
                self._loaded = self._load(number)
        except StorageError:
            # What worked a moment ago still works; the daemon will notice what is wrong with the new one.
            self._unloadable = number

    def _current_number(self) -> int:
        try:
            return int((self._directory / _CURRENT).readlink().name)
        except (OSError, ValueError) as error:
            raise StorageError(f"there is no release in {self._directory} yet: {error}") from error

    def _load(self, number: int) -> "_Loaded":
        mark = begin_use(self._directory, number)
        try:
            return _Loaded(self._directory / "slots" / str(number) / _MODEL_FILE, number, self._num_threads, mark)
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            if mark is not None:
                mark.unlink(missing_ok=True)
            raise StorageError(f"release {number} in {self._directory} cannot be loaded: {error}") from error


class _Loaded:
    """One release in memory."""

    def __init__(self, path: Path, number: int, num_threads: int, mark: Path | None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        # From memory: the file may be pruned while it is in use.
        self._runner = Interpreter(model_content=path.read_bytes(), num_threads=num_threads).get_signature_runner(
            contract.INFER
        )
        details = self._runner.get_input_details()[contract.X]
        self._batch_size = int(details["shape"][0])
        self._shape = tuple(int(dim) for dim in details["shape"][1:])
        self._dtype = np.dtype(details["dtype"])
        self._mark = mark
        self.number = number

    def predict(self, examples: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if (
            examples.ndim == 0
            or examples.shape[1:] != self._shape
            or examples.dtype != self._dtype
            or not len(examples)
        ):
            raise DataFormatError(
                f"the model takes {self._dtype.name} [n, {', '.join(map(str, self._shape))}] with n >= 1, not "
                f"{examples.dtype} {list(examples.shape)}"
            )
        outputs = []
        for start in range(0, len(examples), self._batch_size):
            batch = examples[np.arange(start, start + self._batch_size) % len(examples)]
            outputs.append(self._runner(**{contract.X: batch})[contract.OUTPUT].copy())
        if self._mark is not None:
            self._mark.unlink(missing_ok=True)
            self._mark = None
        together: npt.NDArray[Any] = np.concatenate(outputs)[: len(examples)]
        return together
