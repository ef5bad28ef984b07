"""What a key authority checks before it decrypts, and its answer.

It decrypts for a set of contributors as a helper answers for one (`contributor_rules`): registered, signed, each once,
as many as it and each of them demands. **One total per round**: the set and the ciphertext together are written down
before anything is decrypted; the same again gets the same answer, anything else is refused. What was decrypted is
told only if its tags are those of exactly this set's sum (`sum_tags`). So it is no oracle: a coordinator that hands in
one device's ciphertext, or bytes made to give the key away, is refused, has spent that round, and is counted: after
``MAX_WRONG_TOTALS`` the key authority stops for good, because each refusal may tell a bit.
"""

import dataclasses
import hashlib
from typing import Final, Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum.bfv import MAX_SUMMANDS, Decryptor
from secure_sum.ciphertext import decode_ciphertext
from secure_sum.contributor_rules import ContributorRules, check_contributors
from secure_sum.errors import BoxNotOpened, MalformedSealed, OpeningRefused, OversizedSealed, RefusalCause
from secure_sum.openings import Contributor, KeyAsk, OpeningOrder, OpeningResult
from secure_sum.sealed_box import BoxRoute
from secure_sum.sealed_update import vector_payload
from secure_sum.sum_tags import Tags, are_same_tags, inner_tags, sum_of_tags, tag_pads

__all__ = ["MAX_WRONG_TOTALS", "DecryptionBook", "KeyRules", "answer_as_key_authority"]

MAX_WRONG_TOTALS: Final = 8
_TOTAL_DOMAIN: Final = b"flockwise total to decrypt 1\x00"


class DecryptionBook(Protocol):
    """What a key authority has committed itself to, for ever."""

    def claim(self, context: bytes, set_digest: bytes) -> bool:
        """Notes the total of a round, durably, unless one is noted.

        Returns:
            Whether this total is the one that is noted now.
        """

    def num_wrong_totals(self) -> int:
        """Rounds whose total was not the sum of the set."""

    def note_wrong_total(self, context: bytes) -> None:
        """Notes such a round, durably; each once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyRules:
    """What a key authority goes by."""

    authority_id: str
    contributors: ContributorRules
    sealing_key: X25519PrivateKey = dataclasses.field(repr=False)
    tag_secret: bytes = dataclasses.field(repr=False)
    decryptor: Decryptor = dataclasses.field(repr=False)


def answer_as_key_authority(order: OpeningOrder, rules: KeyRules, book: DecryptionBook) -> OpeningResult:
    """Decrypts the sum that an order names, or refuses.

    Returns:
        With ``data``: [d] the sum as words of 4 bytes, little endian, modulo 2^32.

    Raises:
        OpeningRefused: A rule forbids it; nothing is told.
    """
    ask = order.ask
    if not isinstance(ask, KeyAsk):
        raise OpeningRefused(RefusalCause.WRONG_CONTEXT, "this opener is a key authority")
    if book.num_wrong_totals() >= MAX_WRONG_TOTALS:
        raise OpeningRefused(
            RefusalCause.WRONG_TOTAL, f"{MAX_WRONG_TOTALS} totals were not the sum of their sets: new keys are needed"
        )
    if len(order.contributors) > MAX_SUMMANDS:
        raise OpeningRefused(RefusalCause.OUT_OF_RANGE, f"more than {MAX_SUMMANDS} ciphertexts in a sum")
    check_contributors(order, rules.contributors)
    pads = sum_of_tags(_pads(order, contributor, rules) for contributor in order.contributors)
    try:
        total = decode_ciphertext(ask.total, num_values=order.num_values)
    except (MalformedSealed, OversizedSealed) as error:
        raise OpeningRefused(RefusalCause.MALFORMED, str(error)) from error
    set_digest = order.set_digest()
    claimed = hashlib.sha256(_TOTAL_DOMAIN + set_digest + hashlib.sha256(ask.total).digest()).digest()
    if not book.claim(order.context, claimed):
        raise OpeningRefused(RefusalCause.SECOND_SET, "another total was decrypted, or refused, in this round")
    try:
        values = rules.decryptor.decrypt(total.chunks, num_values=order.num_values)
    except MalformedSealed as error:
        book.note_wrong_total(order.context)
        raise OpeningRefused(RefusalCause.WRONG_TOTAL, str(error)) from error
    wanted = sum_of_tags((inner_tags(values, tag_secret=rules.tag_secret, context=order.context), pads))
    if not are_same_tags(wanted, total.tags):
        book.note_wrong_total(order.context)
        raise OpeningRefused(
            RefusalCause.WRONG_TOTAL, "what was handed in is not the sum of these contributors' updates"
        )
    data = vector_payload(values.astype(np.uint32))
    return OpeningResult(context=order.context, set_digest=set_digest, data=data)


def _pads(order: OpeningOrder, contributor: Contributor, rules: KeyRules) -> Tags:
    own = rules.sealing_key
    route = BoxRoute(context=order.context, sender_id=contributor.device_id, opener_id=rules.authority_id)
    try:
        return tag_pads(
            own,
            contributor.ephemeral_key,
            ephemeral_key=contributor.ephemeral_key,
            opener_key=own.public_key().public_bytes_raw(),
            route=route,
        )
    except BoxNotOpened as error:
        raise OpeningRefused(RefusalCause.BAD_BOX, str(error), device_id=contributor.device_id) from error
