"""Ids that appear in topics. Restricted so that an id is never a wildcard, a path or a control character."""

import re
from typing import Final

from wire_protocol.errors import InvalidIdentifier

__all__ = ["IDENTIFIER_PATTERN", "checked_identifier"]

IDENTIFIER_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""What a device, population or task id may look like. No dots or slashes: an id never becomes a path."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def checked_identifier(value: str, *, kind: str) -> str:
    """Returns ``value`` if it is a valid id.

    Args:
        value: The id to check.
        kind: What it identifies, for the error message ("device", "population", "task").

    Raises:
        InvalidIdentifier: ``value`` is not 1 to 64 characters of ``A-Z a-z 0-9 _ -``, or starts with ``_`` or ``-``.
    """
    if _IDENTIFIER.fullmatch(value) is None:
        raise InvalidIdentifier(
            f"{kind} id {value[:80]!r} is not allowed: use 1 to 64 of A-Z a-z 0-9 _ -, starting with a letter or digit"
        )
    return value
