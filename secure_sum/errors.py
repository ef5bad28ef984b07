"""Errors of this package.

    SecureSumError
    └── DirectoryError            the key directory does not say what was hoped for
        ├── MalformedDirectory    bytes that are no directory, entry or request, or a signature not the named key's
        │   └── OversizedDirectory  longer than such bytes can be; nothing was decoded
        ├── DirectoryRefused      an entry that may not follow those before it
        ├── UnknownMember         nobody has this id in this role
        ├── OtherAuthority        another authority's log, or another population's, than the one that is pinned
        ├── DirectoryRolledBack   the log is shorter than it was
        └── DirectoryForked       the log is not a continuation of what was seen

All are permanent: the same bytes fail again. None says anything about a secret.
"""

__all__ = [
    "DirectoryError",
    "DirectoryForked",
    "DirectoryRefused",
    "DirectoryRolledBack",
    "MalformedDirectory",
    "OtherAuthority",
    "OversizedDirectory",
    "SecureSumError",
    "UnknownMember",
]


class SecureSumError(Exception):
    """Base of the errors of this package."""


class DirectoryError(SecureSumError):
    """The key directory does not say what was hoped for."""


class MalformedDirectory(DirectoryError):
    """The bytes are not what they should be."""


class OversizedDirectory(MalformedDirectory):
    """The bytes are longer than the limit; nothing was decoded."""


class DirectoryRefused(DirectoryError):
    """An entry may not follow those before it."""


class UnknownMember(DirectoryError):
    """Nobody has this id in this role."""


class OtherAuthority(DirectoryError):
    """Another authority's log, or another population's."""


class DirectoryRolledBack(DirectoryError):
    """The log is shorter than it was seen before."""


class DirectoryForked(DirectoryError):
    """The log does not continue what was seen before."""
