"""Errors of secure sums, and the reasons for which an opener does not open.

    SecureSumError
    ├── MalformedSealed      bytes that are no sealed update, order or result (theirs, permanent)
    ├── OversizedSealed      longer than the limit; nothing was parsed (theirs, permanent)
    ├── BoxNotOpened         a sealed box of another key, round or party, or a changed one (theirs, permanent)
    ├── OpeningRefused       a rule of an opener forbids to answer; has a reason (theirs; permanent but for NOT_READY)
    ├── EncryptionUnavailable  TenSEAL, which is optional, is not installed here (ours: the owner installs it)
    ├── ForecastExceeded     an encrypted round would cost more than it may (ours: settings; says what to do)
    ├── OpeningFailed        answers that do not fit together: no sum can be formed (theirs, permanent)
    │   └── SharesDisagree     members of a committee contradict each other (theirs; more answers may settle it)
    ├── SealingRefused       a round that could not hide a device: it does not seal for it (theirs, permanent)
    └── DirectoryError            the key directory does not say what was hoped for
        ├── MalformedDirectory    bytes that are no directory, entry or request, or a signature not the named key's
        │   └── OversizedDirectory  longer than such bytes can be; nothing was decoded
        ├── DirectoryRefused      an entry that may not follow those before it
        ├── UnknownMember         nobody has this id in this role
        ├── OtherAuthority        another authority's log, or another population's, than the one that is pinned
        ├── DirectoryRolledBack   the log is shorter than it was
        └── DirectoryForked       the log is not a continuation of what was seen

All but NOT_READY are permanent: the same bytes fail again. None says anything about a secret.
"""

import enum

__all__ = [
    "BoxNotOpened",
    "DirectoryError",
    "DirectoryForked",
    "DirectoryRefused",
    "DirectoryRolledBack",
    "EncryptionUnavailable",
    "ForecastExceeded",
    "MalformedDirectory",
    "MalformedSealed",
    "OpeningFailed",
    "OpeningRefused",
    "OtherAuthority",
    "OversizedDirectory",
    "OversizedSealed",
    "RefusalCause",
    "SealingRefused",
    "SecureSumError",
    "SharesDisagree",
    "UnknownMember",
]


class RefusalCause(enum.Enum):
    """Why an opener does not answer an order. The values are those of `wire_protocol.opening_messages`."""

    MALFORMED = "malformed"
    """Not an order that this opener can read, or not in its one form."""
    WRONG_CONTEXT = "wrong_context"
    """Another population's, another mode's, or for another opener."""
    WRONG_SIZE = "wrong_size"
    """A contributor has signed for another length."""
    TOO_FEW = "too_few"
    """Fewer contributors than the opener, or one of the contributors, demands."""
    DUPLICATE_DEVICE = "duplicate_device"
    UNREGISTERED = "unregistered"
    """A device that is not in the opener's register."""
    BAD_SIGNATURE = "bad_signature"
    BAD_BOX = "bad_box"
    """A box that does not open for this opener."""
    SECOND_SET = "second_set"
    """For this round the opener has answered, or begun to answer, for another set."""
    BOTH_SIDES = "both_sides"
    """A device is listed as arrived and as missing."""
    WEAK_THRESHOLD = "weak_threshold"
    """Two contradicting lists could both be opened."""
    ISOLATED = "isolated"
    """A device with too few neighbours that arrived."""
    OUT_OF_RANGE = "out_of_range"
    """The sum could leave the numbers that it is taken in."""
    WRONG_TOTAL = "wrong_total"
    """What was to be decrypted is not the sum of the contributors' updates."""
    NOT_READY = "not_ready"
    """The opener cannot keep what it must keep before it answers; ask again."""


class SecureSumError(Exception):
    """Base of this package's errors."""


class EncryptionUnavailable(SecureSumError):
    """TenSEAL is not installed."""


class ForecastExceeded(SecureSumError):
    """An encrypted round would cost more than it may."""


class MalformedSealed(SecureSumError):
    """The bytes are not what they should be."""


class OversizedSealed(SecureSumError):
    """The bytes are longer than the limit; nothing was parsed."""


class BoxNotOpened(SecureSumError):
    """A sealed box is not for this key, round and pair of parties, or was changed."""


class OpeningFailed(SecureSumError):
    """The openers' answers do not give a sum."""


class SharesDisagree(OpeningFailed):
    """Members of a committee contradict each other, or too few have answered to tell."""


class SealingRefused(SecureSumError):
    """A device does not seal an update for a round as it was asked to."""


class OpeningRefused(SecureSumError):
    """An opener does not answer.

    Args:
        cause: Which rule forbids it.
        text: More, for people.
        device_id: The contributor that it is about; empty if it is about none in particular.
    """

    def __init__(self, cause: RefusalCause, text: str, *, device_id: str = "") -> None:
        super().__init__(f"{cause.value}: {text}")
        self.cause = cause
        self.device_id = device_id


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
