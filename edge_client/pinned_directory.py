"""The key directory as this device believes it: pinned at first contact, and only ever continued.

The pin is durable before anything that the new log says is used. A pin that is there but cannot be read refuses every
log: putting it aside would be first contact again, which is what an attacker would want.
"""

import logging
from pathlib import Path
from typing import Final

from edge_client.errors import IdentityError, StorageError
from edge_client.state_writer import StateWriter
from secure_sum.directory_entries import MemberRotated, fingerprint
from secure_sum.directory_pin import DirectoryPin, advanced_pin, check_first_contact, decode_pin, encode_pin, pin_of
from secure_sum.errors import MalformedDirectory
from secure_sum.key_directory import KeyDirectory, decode_directory

__all__ = ["PIN_FILE", "PinnedDirectory"]

PIN_FILE: Final = "directory_pin.json"
"""The pin's name in the state directory."""

_LOG = logging.getLogger(__name__)


class PinnedDirectory:
    """Accepts logs that continue the one seen before.

    Args:
        directory: The state directory.
        writer: Writes in it.
        population: The device's.
        authority_fingerprint: As the owner's configuration names the authority; empty trusts whoever comes first.
    """

    def __init__(
        self, directory: Path, *, writer: StateWriter, population: str, authority_fingerprint: str = ""
    ) -> None:
        self._path = directory / PIN_FILE
        self._writer = writer
        self._population = population
        self._fingerprint = authority_fingerprint.lower()
        self._cached: tuple[bytes, KeyDirectory] | None = None

    def pin(self) -> DirectoryPin | None:
        """What is pinned; None before first contact.

        Raises:
            IdentityError: The pin cannot be read.
        """
        try:
            return decode_pin(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, MalformedDirectory) as error:
            raise IdentityError(
                f"{self._path} cannot be read ({error}): no key is believed; restore it, or delete it and compare the "
                "authority's fingerprint anew"
            ) from error

    def accept(self, data: bytes) -> KeyDirectory:
        """Checks a log and pins it.

        Raises:
            MalformedDirectory: Not a log, or a wrong signature in it.
            DirectoryError: Not this population's or authority's, or no continuation of what was pinned.
            IdentityError: As ``pin``.
            StorageError: The new pin cannot be kept: the log is not believed.
        """
        if self._cached is not None and self._cached[0] == data:
            return self._cached[1]
        directory, pin = decode_directory(data), self.pin()
        if pin is None:
            check_first_contact(directory, population=self._population, fingerprint=self._fingerprint)
            advanced = pin_of(directory)
            _LOG.warning(
                "key_directory_pinned population=%s authority=%s: compare it with what the authority shows",
                directory.population, fingerprint(directory.authority_key),
            )  # fmt: skip
        else:
            check_first_contact(directory, population=self._population, fingerprint=self._fingerprint)
            advanced = advanced_pin(pin, directory)
            _say_rotations(directory, since=pin.num_entries)
        if advanced != pin:
            self._keep(advanced)
        self._cached = (data, directory)
        return directory

    def _keep(self, pin: DirectoryPin) -> None:
        try:
            self._writer.write(self._path, encode_pin(pin), mode=0o600)
        except OSError as error:
            raise StorageError(f"the pin of the key directory cannot be kept in {self._path}: {error}") from error


def _say_rotations(directory: KeyDirectory, *, since: int) -> None:
    for entry in directory.entries[since:]:
        if isinstance(entry.change, MemberRotated):
            _LOG.warning(
                "member_key_rotated member=%s identity=%s",
                entry.member_id, fingerprint(entry.change.member.identity_key),
            )  # fmt: skip
