"""How a plan keeps single updates from the coordinator: who opens the sum, and what that takes. Values.

| mode | sealed to | the sum is opened by | stands as long as |
|---|---|---|---|
| ``helpers`` | three helpers | any two of them (or all three) | no two of them conspire with the coordinator |
| ``masks`` | the other devices and a committee | ``threshold`` members of the committee | at most a third of the committee conspires |
| ``he`` | a key authority | the key authority | it does not conspire with the coordinator |

Each needs a private plan (`PrivacySpec`): sums are taken of integers, and below ``min_contributors`` nothing is opened.
"""

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from wire_protocol.blobs import BlobRef
from wire_protocol.identifiers import IDENTIFIER_PATTERN, checked_identifier

__all__ = [
    "ENCRYPTED_SUM_MODULUS",
    "Confidentiality",
    "EncryptedSums",
    "HelperSums",
    "MaskedSums",
    "SumOpener",
    "check_openers",
    "committee_threshold",
]

ENCRYPTED_SUM_MODULUS: Final = 1_073_692_673
"""t: encrypted sums are exact modulo this prime (`secure_sum.bfv`)."""
_NUM_HELPERS: Final = 3
_MIN_COMMITTEE: Final = 3
_KEY_BYTES: Final = 32


class SumOpener(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A party that holds part of what opens a sum.

    Raises:
        ValueError: The key has another length.
    """

    device_id: Annotated[str, msgspec.Meta(pattern=IDENTIFIER_PATTERN)]
    """Its name in the population."""
    box_key: Annotated[bytes, msgspec.Meta(min_length=_KEY_BYTES, max_length=_KEY_BYTES)]
    """X25519: what is sealed for it is sealed with this."""
    operator: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """Who runs it, for people: openers with one operator are one party."""

    def __post_init__(self) -> None:
        checked_identifier(self.device_id, kind="opener")
        if len(self.box_key) != _KEY_BYTES:
            raise ValueError(f"a box key has {_KEY_BYTES} bytes, not {len(self.box_key)}")


class HelperSums(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="by", tag="helpers"):
    """One-shot masks that two (or all three) of three helpers take off the sum.

    Raises:
        ValueError: Not three different helpers with three different keys, or not 2 or 3 needed.
    """

    helpers: tuple[SumOpener, SumOpener, SumOpener]
    num_needed: Literal[2, 3] = 2
    """2: one helper may be away. 3: none may, and then even a coordinator that lies, with two helpers on its side, learns
    nothing but sums; with 2 it could lie to the helpers about who contributed (``docs/privacy.md``)."""
    directory: BlobRef
    """The key directory that the helpers' keys stand in."""

    def __post_init__(self) -> None:
        check_openers(self.helpers, fewest=_NUM_HELPERS)
        if self.num_needed not in {2, 3}:
            raise ValueError(f"num_needed is 2 or 3, not {self.num_needed}")

    @property
    def openers(self) -> tuple[SumOpener, ...]:
        """Everybody that holds a part."""
        return self.helpers

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """What a device must have to seal an update."""
        return (self.directory,)

    @property
    def has_one_operator(self) -> bool:
        """Whether one operator says that it runs enough helpers to open alone (or none says who it is)."""
        operators = [helper.operator for helper in self.helpers]
        return any(operators.count(name) >= self.num_needed for name in operators)


class MaskedSums(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="by", tag="masks"):
    """Pairwise masks that cancel, and a committee of devices that opens what is left.

    Raises:
        ValueError: Fewer than three members, one twice, two contradicting lists of devices could both be opened, or
            neighbours do not come in pairs.
    """

    committee: Annotated[tuple[SumOpener, ...], msgspec.Meta(min_length=3, max_length=255)]
    threshold: Annotated[int, msgspec.Meta(ge=2, le=255)]
    """t: members that open; ``2 t > m + c``, where c, the members that may conspire with the coordinator, is a third of m."""
    num_neighbours: Annotated[int, msgspec.Meta(ge=2, le=2000)] = 64
    """k, even: with how many others each device has masks; everybody with everybody in a cohort of up to 64."""
    directory: BlobRef
    """The key directory that the keys of devices and committee stand in."""

    def __post_init__(self) -> None:
        check_openers(self.committee, fewest=_MIN_COMMITTEE)
        least = committee_threshold(len(self.committee))
        if not least <= self.threshold <= len(self.committee):
            raise ValueError(
                f"a committee of {len(self.committee)}, a third of which may conspire, needs a threshold of {least} to "
                f"{len(self.committee)}, not {self.threshold}"
            )
        if self.num_neighbours % 2:
            raise ValueError(f"num_neighbours must be even, not {self.num_neighbours}")

    @property
    def openers(self) -> tuple[SumOpener, ...]:
        """Everybody that holds a part."""
        return self.committee

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """What a device must have to seal an update."""
        return (self.directory,)


def committee_threshold(num_members: int) -> int:
    """The smallest threshold that keeps two lists of a round from both being opened, a third being corrupt: 22 of 32."""
    return (num_members + num_members // 3) // 2 + 1


class EncryptedSums(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="by", tag="he"):
    """Homomorphic encryption: the coordinator adds ciphertexts, and a key authority decrypts their sum alone.

    Raises:
        ValueError: The scheme is CKKS; says why.
    """

    key_authority: SumOpener
    keys: BlobRef
    """What the key authority released and signed: public key, and the tag secret for each device
    (`secure_sum.encryption_keys`)."""
    directory: BlobRef
    """The key directory that the key authority stands in."""
    scheme: Literal["bfv", "ckks"] = "bfv"
    """BFV is exact. ``ckks`` is refused: it is here so that who asks for it learns why."""

    def __post_init__(self) -> None:
        if self.scheme == "ckks":
            raise ValueError(
                "CKKS is refused: its decryptions carry the noise of the ciphertexts, and whoever has a ciphertext and its "
                "decryption solves for the secret key (Li and Micciancio 2021, IND-CPA-D); its sums are approximate and "
                "its ciphertexts 2.7 times as large. Use scheme = bfv, which is exact modulo 30 bits"
            )

    @property
    def openers(self) -> tuple[SumOpener, ...]:
        """Everybody that holds a part."""
        return (self.key_authority,)

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """What a device must have to seal an update."""
        return (self.directory, self.keys)


Confidentiality: TypeAlias = HelperSums | MaskedSums | EncryptedSums


def check_openers(openers: tuple[SumOpener, ...], *, fewest: int) -> None:
    """Checks that there are enough openers and that they are different ones.

    Raises:
        ValueError: Two have one name or one key, or there are too few.
    """
    if len(openers) < fewest:
        raise ValueError(f"{len(openers)} openers; at least {fewest} are needed")
    if len({opener.device_id for opener in openers}) < len(openers):
        raise ValueError("an opener is named twice")
    if len({opener.box_key for opener in openers}) < len(openers):
        raise ValueError("two openers have the same key")
