"""A key authority's answer: the key directory as this machine believes it, then the rules.

The coordinator sends the directory along with the order; it is believed only as far as the machine's own pin goes.
"""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.opener.encryption_key_file import KeyMaterial
from secure_sum.bfv import Decryptor
from secure_sum.contributor_rules import ContributorRules
from secure_sum.directory_entries import MemberRole
from secure_sum.errors import DirectoryError, OpeningRefused, RefusalCause
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
        accept_directory: Checks a key directory against the pin: `PinnedDirectory.accept`.
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
        accept_directory: Callable[[bytes], KeyDirectory],
        min_contributors: int,
    ) -> None:
        self._population = population
        self._authority_id = authority_id
        self._sealing_key = sealing_key
        self._material = material
        self._decryptor = Decryptor(material.secret_key)
        self._book = book
        self._accept_directory = accept_directory
        self._min_contributors = max(2, min_contributors)

    def __call__(self, order: OpeningOrder) -> OpeningResult:
        """Answers an order.

        Raises:
            OpeningRefused: A rule forbids it.
            EdgeClientError: The book, or the pin of the directory, cannot be kept: nothing is answered.
        """
        if not isinstance(order.ask, KeyAsk):
            raise OpeningRefused(RefusalCause.WRONG_CONTEXT, "this opener is a key authority")
        try:
            directory = self._accept_directory(order.ask.directory)
        except DirectoryError as error:
            raise OpeningRefused(RefusalCause.UNREGISTERED, f"the key directory is not believed: {error}") from error
        devices = directory.members_with(MemberRole.DEVICE)
        rules = KeyRules(
            authority_id=self._authority_id,
            contributors=ContributorRules(
                population=self._population,
                registered={member.member_id: member.identity_key for member in devices},
                min_contributors=self._min_contributors,
            ),
            sealing_key=self._sealing_key,
            tag_secret=self._material.tag_secret,
            decryptor=self._decryptor,
        )
        return answer_as_key_authority(order, rules, self._book)
