"""Gets the sum of a round opened: whom to ask next, how long to wait, and when to give up. No I/O.

It holds nothing that a restart must bring back: the set of contributors is the journal's, orders and their names follow
from it, and openers give the same answers again.
"""

import hashlib
import logging
import math

import msgspec

from broker_link.link import Incoming
from coordinator.actions import Publish
from coordinator.blob_shelf import BlobShelf
from coordinator.errors import InvalidConfig, OpeningLost, OpeningTimedOut
from coordinator.fleet import FleetCoordinator
from coordinator.opening import OpeningExchange, OpeningSettings
from coordinator.sealed_admission import SealedAdmission
from coordinator.sum_mode import Opened, SealedSet
from coordinator.sum_modes import sum_mode_of
from coordinator.sum_range import check_range
from coordinator.task_bundle import TaskBundle
from secure_sum.errors import DirectoryError, SecureSumError
from secure_sum.key_directory import decode_directory
from wire_protocol.confidentiality import EncryptedSums
from wire_protocol.errors import WireError
from wire_protocol.messages import OpeningAnswer, Piece, decode_message, message_kind
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.topics import parse_device_topic

__all__ = ["SumOpenings", "open_sums"]

_LOG = logging.getLogger(__name__)
_ANSWER = message_kind(OpeningAnswer)
_PIECE = message_kind(Piece)


class SumOpenings:
    """The openings of one coordinator, one round at a time.

    Args:
        admission: What this coordinator's sealed updates look like.
        spec: The plan's mechanism: how large a sum may be.
        shelf: Where openers fetch what they are asked.
        settings: How patient to be.
    """

    def __init__(
        self,
        *,
        admission: SealedAdmission,
        spec: PrivacySpec,
        shelf: BlobShelf,
        settings: OpeningSettings | None = None,
    ) -> None:
        self.admission = admission
        self._spec = spec
        self._settings = settings or OpeningSettings()
        self._exchange = OpeningExchange(
            population=admission.population,
            shelf=shelf,
            settings=self._settings,
            max_result_bytes=admission.mode.max_result_bytes,
        )
        self._round_id: int | None = None
        self._gives_up_at = math.inf
        self._silent: frozenset[str] = frozenset()

    @property
    def exchange(self) -> OpeningExchange:
        """What has been said and heard."""
        return self._exchange

    def has_begun(self, round_id: int) -> bool:
        """Whether this round's openers have been asked in this life."""
        return self._round_id == round_id

    def next_wakeup(self) -> float | None:
        """When ``advance`` is due; None if nothing is under way."""
        if self._round_id is None:
            return None
        return min(self._exchange.next_wakeup(), self._gives_up_at)

    def close(self) -> None:
        """Forgets the round. Who was silent in it is asked last in the next."""
        self._exchange.reset()
        self._round_id = None
        self._gives_up_at = math.inf

    def advance(self, sealed: SealedSet, *, now: float) -> Opened | list[Publish]:
        """Goes on with a round's opening.

        Args:
            sealed: What to open; the same in every call for one round.
            now: Monotonic time in seconds.

        Returns:
            The sum, or what to send.

        Raises:
            OpeningLost: Those that have not refused cannot open it, or what they say gives no sum.
            OpeningTimedOut: It has taken too long.
        """
        if self._round_id != sealed.round_id:
            self.close()
            self._round_id = sealed.round_id
            self._gives_up_at = now + self._settings.give_up_s
            _LOG.info("opening_begun round_id=%d contributors=%d", sealed.round_id, len(sealed.headers))
        opened = self._opened(sealed)
        if opened is not None:
            return opened
        if now >= self._gives_up_at:
            raise OpeningTimedOut(f"the openers have not answered within {self._settings.give_up_s:g} s")
        return self._asked(sealed, now)

    def take(self, event: object, *, now: float) -> list[Publish] | None:
        """Takes what an opener sends; None if it is not for this talk."""
        if not isinstance(event, Incoming) or not event.topic.endswith((_ANSWER, _PIECE)):
            return None
        try:
            topic = parse_device_topic(event.topic)
            if topic.direction != "up" or topic.device_id not in self.admission.mode.opener_ids:
                return None
            if topic.kind == _ANSWER:
                answer = decode_message(event.payload, OpeningAnswer)
                return self._exchange.take_answer(topic.device_id, answer, now=now)
            piece = decode_message(event.payload, Piece)
        except WireError:
            return None  # the fleet counts it as what it is
        return self._exchange.take_piece(topic.device_id, piece, now=now)

    def _opened(self, sealed: SealedSet) -> Opened | None:
        try:
            opened = self.admission.mode.opened(sealed, self._exchange.answers)
            if opened is not None:
                check_range(opened, self._spec)
        except SecureSumError as error:
            raise OpeningLost(f"what the openers say gives no sum: {error}") from error
        return opened

    def _asked(self, sealed: SealedSet, now: float) -> list[Publish]:
        refused = frozenset(self._exchange.refusals)
        self._silent |= self._exchange.silent(now=now)
        mode, answers = self.admission.mode, self._exchange.answers
        orders = mode.orders(sealed, answers, refused | self._silent)
        if not orders and self._silent:
            # Nobody is left: whoever was passed over may be there again.
            self._silent = frozenset()
            orders = mode.orders(sealed, answers, refused)
        if not orders:
            causes = ", ".join(f"{name}: {cause.value}" for name, cause in sorted(self._exchange.refusals.items()))
            raise OpeningLost(f"the openers that are left cannot open the sum ({causes})")
        return self._exchange.ask(sealed.round_id, orders, now=now)


def open_sums(
    fleet: FleetCoordinator,
    *,
    population: str,
    bundle: TaskBundle,
    directory: bytes | None,
    encryption_keys: bytes | None = None,
    settings: OpeningSettings | None = None,
) -> SumOpenings | None:
    """Makes a fleet's coordinator one of a confidential task: what it admits, what it offers, how sums are opened.

    Args:
        fleet: The coordinator's talk with the devices; no round is under way.
        population: Its name.
        bundle: The task.
        directory: The key directory that the plan names; None of a task that needs none.
        encryption_keys: What the key authority released, of a task with encrypted sums.
        settings: How patient to be with openers.

    Returns:
        The openings; None if the task is not confidential.

    Raises:
        InvalidConfig: The directory or the keys are not those that the plan names, or a confidentiality that is not known
            here.
    """
    mode, plan = sum_mode_of(bundle.plan), bundle.plan
    if mode is None or plan.confidentiality is msgspec.UNSET or plan.privacy is None:
        return None
    if directory is None:
        raise InvalidConfig("a confidential task needs the key directory that its plan names: give --directory")
    if fleet.shelf.put(directory) != plan.confidentiality.directory:
        raise InvalidConfig("this is not the key directory that the plan names: make the plan anew with this one")
    if isinstance(plan.confidentiality, EncryptedSums) and (
        encryption_keys is None or fleet.shelf.put(encryption_keys) != plan.confidentiality.keys
    ):
        raise InvalidConfig("encrypted sums need the keys that the plan names, as 'key-authority issue' released them")
    try:
        members = decode_directory(directory).members
    except DirectoryError as error:
        raise InvalidConfig(f"the key directory cannot be used: {error}") from error
    admission = SealedAdmission(
        mode=mode,
        population=population,
        task_id=bundle.task_id,
        plan_sha256=hashlib.sha256(bundle.plan_bytes).digest(),
        num_values=plan.num_update_numbers,
        min_contributors=plan.privacy.min_contributors,
        registered={name: keys.identity_key for name, keys in members.items()},
        directory=directory,
    )
    fleet.intake.sealed = admission
    return SumOpenings(admission=admission, spec=plan.privacy, shelf=fleet.shelf, settings=settings)
