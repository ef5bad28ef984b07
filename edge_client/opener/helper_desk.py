"""A helper's answer: the key directory as this machine believes it, then the rules.

The coordinator sends the directory along with the order; it is believed only as far as the machine's own pin goes.
"""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum.contributor_rules import ContributorRules
from secure_sum.directory_entries import MemberRole
from secure_sum.errors import DirectoryError, OpeningRefused, RefusalCause
from secure_sum.helper_rules import HelperRules, SetBook, answer_as_helper
from secure_sum.key_directory import KeyDirectory
from secure_sum.openings import HelperAsk, OpeningOrder, OpeningResult

__all__ = ["HelperDesk"]


class HelperDesk:
    """Answers orders as a helper; an `AnswerOrder` for an opener's session.

    Args:
        population: Whose.
        helper_id: Its name in it.
        key: Its sealing key.
        book: Where its sets are, for ever.
        accept_directory: Checks a key directory against the pin: `PinnedDirectory.accept`.
        min_contributors: The fewest whose sum it helps to open; at least 2.
    """

    def __init__(
        self,
        *,
        population: str,
        helper_id: str,
        key: X25519PrivateKey,
        book: SetBook,
        accept_directory: Callable[[bytes], KeyDirectory],
        min_contributors: int,
    ) -> None:
        self._population = population
        self._helper_id = helper_id
        self._key = key
        self._book = book
        self._accept_directory = accept_directory
        self._min_contributors = max(2, min_contributors)

    def __call__(self, order: OpeningOrder) -> OpeningResult:
        """Answers an order.

        Raises:
            OpeningRefused: A rule forbids it.
            EdgeClientError: The book, or the pin of the directory, cannot be kept: nothing is answered.
        """
        if not isinstance(order.ask, HelperAsk):
            raise OpeningRefused(RefusalCause.WRONG_CONTEXT, "this opener is a helper")
        try:
            directory = self._accept_directory(order.ask.directory)
            own = directory.member(self._helper_id, MemberRole.HELPER)
        except DirectoryError as error:
            raise OpeningRefused(RefusalCause.UNREGISTERED, f"the key directory is not believed: {error}") from error
        if own.sealing_key != self._key.public_key().public_bytes_raw():
            raise OpeningRefused(RefusalCause.BAD_BOX, "the key directory has another sealing key for this helper")
        devices = directory.members_with(MemberRole.DEVICE)
        rules = HelperRules(
            helper_id=self._helper_id,
            contributors=ContributorRules(
                population=self._population,
                registered={member.member_id: member.identity_key for member in devices},
                min_contributors=self._min_contributors,
            ),
            key=self._key,
        )
        return answer_as_helper(order, rules, self._book)
