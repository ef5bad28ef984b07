"""One coordinator per population and state directory: a second would throw the first off the broker, and be thrown off."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from coordinator.errors import StateInUse
from wire_protocol.identifiers import checked_identifier

__all__ = ["sole_coordinator"]


@contextlib.contextmanager
def sole_coordinator(state_dir: Path, population: str) -> Iterator[None]:
    """Keeps every other coordinator of a population out while the block runs. The lock ends with the process, too.

    Args:
        state_dir: The coordinator's state directory; made if it is not there.
        population: Its name.

    Raises:
        StateInUse: Another one runs with this state directory.
        InvalidIdentifier: The population's name may not be part of a path.
        OSError: The lock's file cannot be made.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    path = state_dir / f"{checked_identifier(population, kind='population')}.lock"
    with path.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateInUse(
                f"another coordinator of {population!r} runs with {state_dir}: stop it first, and start it again afterwards"
            ) from error
        yield
