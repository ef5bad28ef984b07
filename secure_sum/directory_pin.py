"""What somebody remembers of a key directory, and what may follow it: first contact, growth, rollback, fork."""

from typing import Annotated, Final

import msgspec

from secure_sum.directory_entries import fingerprint as key_fingerprint
from secure_sum.errors import (
    DirectoryForked,
    DirectoryRolledBack,
    MalformedDirectory,
    OtherAuthority,
    OversizedDirectory,
)
from secure_sum.key_directory import KeyDirectory

__all__ = ["DirectoryPin", "advanced_pin", "check_first_contact", "decode_pin", "encode_pin", "pin_of"]

_MAX_PIN_BYTES: Final = 4096
_DIGITS: Final = 64

_Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class DirectoryPin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The authority, and how far its log was seen."""

    population: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]
    authority_key: _Hex
    num_entries: Annotated[int, msgspec.Meta(ge=0)]
    head: _Hex


def pin_of(directory: KeyDirectory) -> DirectoryPin:
    """What to remember of a log."""
    return DirectoryPin(
        population=directory.population,
        authority_key=directory.authority_key.hex(),
        num_entries=len(directory.entries),
        head=directory.head.hex(),
    )


def check_first_contact(directory: KeyDirectory, *, population: str, fingerprint: str) -> None:
    """Checks whose log it is, as far as that is known without a pin.

    Args:
        directory: The log.
        population: Whose it must be.
        fingerprint: Of the authority's key, as an owner wrote it down; empty trusts whoever comes first.

    Raises:
        OtherAuthority: It is another population's or another authority's.
    """
    if directory.population != population:
        raise OtherAuthority(f"a key directory of population {directory.population!r}, not {population!r}")
    if fingerprint and key_fingerprint(directory.authority_key) != fingerprint:
        raise OtherAuthority("the key directory is signed by another authority than the one that the owner named")


def advanced_pin(pin: DirectoryPin, directory: KeyDirectory) -> DirectoryPin:
    """The pin after a further look at the log, which must continue what was seen.

    Raises:
        OtherAuthority: Another authority or population.
        DirectoryRolledBack: The log ends before what was seen.
        DirectoryForked: It is as long, but not the same up to there.
    """
    if (directory.population, directory.authority_key.hex()) != (pin.population, pin.authority_key):
        raise OtherAuthority(
            "the key directory is another authority's than the one pinned at first contact: if the authority really "
            "changed, delete the pin (directory_pin.json in the state directory) and compare the new fingerprint"
        )
    if len(directory.entries) < pin.num_entries:
        raise DirectoryRolledBack(
            f"the key directory has {len(directory.entries)} entries, {pin.num_entries} were seen before"
        )
    shorter = _head_at(directory, pin.num_entries)
    if shorter != pin.head:
        raise DirectoryForked(f"entry {pin.num_entries} of the key directory is not the one that was seen before")
    return pin_of(directory)


def encode_pin(pin: DirectoryPin) -> bytes:
    """JSON."""
    return msgspec.json.encode(pin) + b"\n"


def decode_pin(data: bytes) -> DirectoryPin:
    """Reads a pin.

    Raises:
        OversizedDirectory: Too long; nothing was decoded.
        MalformedDirectory: Not a pin.
    """
    if len(data) > _MAX_PIN_BYTES:
        raise OversizedDirectory(f"a pin of {len(data)} bytes")
    try:
        return _PINS.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedDirectory(f"not a pin of a key directory: {error}") from error


_PINS: Final = msgspec.json.Decoder(DirectoryPin)


def _head_at(directory: KeyDirectory, num_entries: int) -> str:
    if num_entries == 0:
        return directory.entries[0].change.previous.hex() if directory.entries else directory.head.hex()
    return directory.entries[num_entries - 1].digest.hex()
