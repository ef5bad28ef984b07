"""A committee member's answer: the owner's consent, the key directory as this device believes it, then the rules.

The coordinator sends the directory along with the order; it is believed only as far as the device's own pin goes. A
member that is on battery says that it is not ready, and is asked again.
"""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum.committee_rules import CommitteeRules, answer_as_member
from secure_sum.contributor_rules import ContributorRules
from secure_sum.directory_entries import MemberRole
from secure_sum.errors import DirectoryError, OpeningRefused, RefusalCause
from secure_sum.helper_rules import SetBook
from secure_sum.key_directory import KeyDirectory
from secure_sum.openings import MaskAsk, OpeningOrder, OpeningResult

__all__ = ["CommitteeDesk"]


class CommitteeDesk:
    """Answers orders as a member of a committee; an `AnswerOrder` for an `OpenerSession`.

    Args:
        population: The device's.
        device_id: The device.
        key: Its sealing key.
        book: Where its sets are, for ever.
        accept_directory: Checks a key directory against the pin: `PinnedDirectory.accept`.
        min_contributors: The owner's; at least 2.
        is_on_mains: Whether the device has the power to do this now.
    """

    def __init__(
        self,
        *,
        population: str,
        device_id: str,
        key: X25519PrivateKey,
        book: SetBook,
        accept_directory: Callable[[bytes], KeyDirectory],
        min_contributors: int,
        is_on_mains: Callable[[], bool] = lambda: True,
    ) -> None:
        self._population = population
        self._device_id = device_id
        self._key = key
        self._book = book
        self._accept_directory = accept_directory
        self._min_contributors = max(2, min_contributors)
        self._is_on_mains = is_on_mains

    def __call__(self, order: OpeningOrder) -> OpeningResult:
        """Answers an order.

        Raises:
            OpeningRefused: A rule forbids it, or the device is on battery now.
            EdgeClientError: The book, or the pin of the directory, cannot be kept: nothing is answered.
        """
        if not isinstance(order.ask, MaskAsk):
            raise OpeningRefused(RefusalCause.WRONG_CONTEXT, "this opener is a member of a committee")
        if not self._is_on_mains():
            raise OpeningRefused(RefusalCause.NOT_READY, "on battery")
        try:
            directory = self._accept_directory(order.ask.directory)
            own = directory.member(self._device_id, MemberRole.DEVICE)
        except DirectoryError as error:
            raise OpeningRefused(RefusalCause.UNREGISTERED, f"the key directory is not believed: {error}") from error
        if own.sealing_key != self._key.public_key().public_bytes_raw():
            raise OpeningRefused(RefusalCause.BAD_BOX, "the key directory has another sealing key for this device")
        rules = CommitteeRules(
            member_id=self._device_id,
            contributors=ContributorRules(
                population=self._population,
                registered={
                    member.member_id: member.identity_key for member in directory.members_with(MemberRole.DEVICE)
                },
                min_contributors=self._min_contributors,
            ),
            key=self._key,
        )
        return answer_as_member(order, rules, self._book)
