"""A key authority's answer: the devices for which it has issued its keys, then the rules.

It knows devices by the key directory with which it issued the keys, and takes no other from the coordinator: a device
that was entered later has no keys to encrypt with.
"""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.opener.encryption_key_file import KeyMaterial
from secure_sum.bfv import Decryptor
from secure_sum.contributor_rules import ContributorRules
from secure_sum.directory_entries import MemberRole
from secure_sum.errors import OpeningRefused, RefusalCause
from secure_sum.key_directory import KeyDirectory
from secure_sum.key_rules import DecryptionBook, KeyRules, answer_as_key_authority
from secure_sum.openings import KeyAsk, OpeningOrder, OpeningResult

__all__ = ["KeyDesk"]


class KeyDesk:
    """Answers orders as a key authority; an `AnswerOrder` for an opener's session.

    Args:
        population: Whose.
        authority_id: Its name in it.
        sealing_key: Its X25519 key.
        material: Its encryption keys.
        book: What it has committed itself to, for ever.
        directory: The key directory with which the keys were issued.
        releases: SHA-256 of every file in which the keys were released.
        min_contributors: The fewest whose sum it decrypts; at least 2.

    Raises:
        MalformedSealed: The material holds no secret key.
        EncryptionUnavailable: TenSEAL is not installed.
    """

    def __init__(
        self,
        *,
        population: str,
        authority_id: str,
        sealing_key: X25519PrivateKey,
        material: KeyMaterial,
        book: DecryptionBook,
        directory: KeyDirectory,
        releases: frozenset[bytes],
        min_contributors: int,
    ) -> None:
        devices = directory.members_with(MemberRole.DEVICE)
        self._rules = KeyRules(
            authority_id=authority_id,
            contributors=ContributorRules(
                population=population,
                registered={member.member_id: member.identity_key for member in devices},
                min_contributors=max(2, min_contributors),
            ),
            sealing_key=sealing_key,
            tag_secret=material.tag_secret,
            decryptor=Decryptor(material.secret_key),
        )
        self._releases = releases
        self._book = book

    def __call__(self, order: OpeningOrder) -> OpeningResult:
        """Answers an order.

        Raises:
            OpeningRefused: A rule forbids it.
            EdgeClientError: The book cannot be kept: nothing is answered.
        """
        if isinstance(order.ask, KeyAsk) and order.ask.keys_sha256 not in self._releases:
            # Nobody's fault: it would only count as a wrong total.
            raise OpeningRefused(
                RefusalCause.WRONG_CONTEXT, "encrypted with other keys than this key authority has now"
            )
        return answer_as_key_authority(order, self._rules, self._book)
