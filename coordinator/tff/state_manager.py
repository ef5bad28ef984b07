"""TFF's program state, durable: a ``tff.program.ProgramStateManager`` over the coordinator's own state files.

TFF's ``FileProgramStateManager`` does not sync what it writes, and its program logic does not wait for a save before it
starts the next round. Here `save` syncs, and runs to its end without giving way to other tasks: a save that was
started before a round is durable before that round is published, awaited or not.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_federated as tff

from coordinator.checkpoints import CheckpointFiles, CheckpointStore, StoredLeaf
from coordinator.errors import CheckpointDamaged, CheckpointExists

__all__ = ["CheckpointStore", "DurableStateManager"]

_LOG = logging.getLogger(__name__)


class DurableStateManager(tff.program.ProgramStateManager):
    """Saves and loads program state: nested tuples, lists and dicts of arrays, plain values and data iterators.

    Args:
        directory: Made if it does not exist.
        keep: How many of the latest versions stay.
    """

    def __init__(self, directory: Path, *, keep: int = 3) -> None:
        self._files = CheckpointFiles(directory, keep=keep)

    async def get_versions(self) -> list[int] | None:
        """The versions in store, oldest first, or None if there are none."""
        return self._files.versions() or None

    async def load(self, version: int, structure: Any) -> Any:
        """The state of a version, in the containers of ``structure``.

        Raises:
            tff.program.ProgramStateNotFoundError: There is no such version.
            CheckpointDamaged: It is truncated or altered, or of another structure.
        """
        try:
            leaves = self._files.read(version)
        except FileNotFoundError as error:
            raise tff.program.ProgramStateNotFoundError(version) from error
        return _restore(leaves, structure)

    async def load_latest(self, structure: Any) -> tuple[Any, int]:
        """The latest state that is whole and its version, or (None, 0); damaged ones are set aside and logged."""
        found = self._files.read_latest()
        if found is None:
            return None, 0
        version, leaves = found
        _LOG.info("program_state_loaded version=%d", version)
        return _restore(leaves, structure), version

    async def save(self, program_state: Any, version: int) -> None:
        """Stores a state; when this returns, it is durable.

        Raises:
            tff.program.ProgramStateExistsError: The version is stored already.
        """
        leaves = list(_flatten(program_state, ""))
        # Only references are awaited: see the module's docstring.
        if any(isinstance(leaf, tff.program.MaterializableValueReference) for _, leaf in leaves):
            values = await tff.program.materialize_value([leaf for _, leaf in leaves])
            leaves = [(path, value) for (path, _), value in zip(leaves, values, strict=True)]
        try:
            self._files.write(version, [(path, _stored(leaf)) for path, leaf in leaves])
        except CheckpointExists as error:
            raise tff.program.ProgramStateExistsError(version=version, path=str(error)) from error

    async def remove_all(self) -> None:
        """Removes every version."""
        self._files.remove_all()


def _flatten(structure: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields (path, leaf) of nested tuples, lists and dicts; anything else is a leaf."""
    if isinstance(structure, Mapping):
        for key, value in structure.items():
            yield from _flatten(value, f"{path}/{key}")
    elif isinstance(structure, tuple | list):
        names = getattr(structure, "_fields", range(len(structure)))
        for name, value in zip(names, structure, strict=True):
            yield from _flatten(value, f"{path}/{name}")
    else:
        yield path, structure


def _stored(leaf: Any) -> StoredLeaf:
    if isinstance(leaf, tff.program.FederatedDataSourceIterator):
        data: bytes = leaf.to_bytes()
        return data
    return leaf  # type: ignore[no-any-return]


def _restore(leaves: list[tuple[str, StoredLeaf]], structure: Any) -> Any:
    """Puts leaves into the containers of ``structure``; data iterators are rebuilt by the class found there."""
    expected = list(_flatten(structure, ""))
    if [path for path, _ in expected] != [path for path, _ in leaves]:
        raise CheckpointDamaged("the stored state has another structure; was it made with other settings?")
    values = iter([_restored(leaf, like) for (_, leaf), (_, like) in zip(leaves, expected, strict=True)])
    return _unflatten(values, structure)


def _restored(leaf: StoredLeaf, like: Any) -> Any:
    if isinstance(like, tff.program.FederatedDataSourceIterator):
        return type(like).from_bytes(leaf)
    # A 0-d array comes back as the scalar it was: TFF's programs treat the two differently.
    return leaf[()] if isinstance(leaf, np.ndarray) else leaf


def _unflatten(values: Iterator[Any], structure: Any) -> Any:
    if isinstance(structure, Mapping):
        return type(structure)(  # type: ignore[call-arg]
            [(key, _unflatten(values, value)) for key, value in structure.items()]
        )
    if isinstance(structure, tuple | list):
        elements = [_unflatten(values, value) for value in structure]
        return type(structure)(*elements) if hasattr(structure, "_fields") else type(structure)(elements)
    return next(values)
