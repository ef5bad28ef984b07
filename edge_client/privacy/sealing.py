"""Seals an integer update for those who open the sum, after looking at who they are.

The coordinator names the openers, in the plan; that they are who they seem, the key directory says, which it cannot
write: each opener must stand in it, in its role and with the key that the plan names, and so must this device, or the
openers would refuse the whole sum for it. The directory itself is pinned (`pinned_directory`).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol, TypeAlias

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.errors import PrivacyRefused
from edge_client.privacy.encrypted_sealing import UpdateEncryptor
from edge_client.privacy.mask_sealing import UpdateMasker
from edge_client.training import TrainingJob
from secure_sum.context import round_context
from secure_sum.directory_entries import MemberRole
from secure_sum.errors import DirectoryError, SecureSumError
from secure_sum.helper_shares import SealingOrder, seal_to_helpers
from secure_sum.key_directory import KeyDirectory
from secure_sum.sealed_box import RandomBytes
from secure_sum.sealed_update import Sign, encode_sealed_update
from wire_protocol.confidentiality import Confidentiality, EncryptedSums, HelperSums, MaskedSums, SumOpener
from wire_protocol.integer_updates import IntegerUpdate
from wire_protocol.plan import TrainingPlan

__all__ = ["AcceptDirectory", "PlanSealer", "SealingRound", "UpdateSealer", "confidentiality_of"]

_LOG = logging.getLogger(__name__)
AcceptDirectory: TypeAlias = Callable[[bytes], KeyDirectory]
"""Checks a directory's bytes against what is pinned, and pins them; raises DirectoryError, or a device's own error."""

_ROLES: Final[Mapping[type[msgspec.Struct], MemberRole]] = {
    HelperSums: MemberRole.HELPER,
    MaskedSums: MemberRole.DEVICE,
    EncryptedSums: MemberRole.KEY_AUTHORITY,
}
_WAYS: Final[Mapping[type[msgspec.Struct], Literal["helpers", "masks", "he"]]] = {
    HelperSums: "helpers",
    MaskedSums: "masks",
    EncryptedSums: "he",
}


class UpdateSealer(Protocol):
    """Seals what a device contributes to a confidential sum."""

    def check(self, job: TrainingJob) -> None:
        """Refuses a job whose openers are not to be trusted.

        Raises:
            PrivacyRefused: Says which, and why.
        """

    def seal(self, job: TrainingJob, update: IntegerUpdate) -> bytes:
        """The sealed update's bytes; fresh seeds and keys at every call.

        Raises:
            PrivacyRefused: As ``check``.
        """


class SealingRound(Protocol):
    """Seals for one kind of confidentiality."""

    def __call__(self, job: TrainingJob, update: IntegerUpdate, directory: KeyDirectory, /) -> bytes:
        """The sealed update's bytes."""


def confidentiality_of(plan: TrainingPlan) -> Literal["none", "helpers", "masks", "he"]:
    """How a plan keeps single updates from the coordinator, by the word that an owner's rules have for it."""
    if plan.confidentiality is msgspec.UNSET:
        return "none"
    return _WAYS[type(plan.confidentiality)]


class PlanSealer:
    """Seals as the plan says.

    Args:
        population: The device's.
        device_id: The device.
        identity_key: Its public Ed25519 key.
        sealing_key: Its X25519 key, to read what is sealed for it, and to share masks; None if it has none.
        sign: Signs statements with it.
        accept_directory: Believes a key directory, or does not.
        random_bytes: ``os.urandom`` outside tests.
    """

    def __init__(
        self,
        *,
        population: str,
        device_id: str,
        identity_key: bytes,
        sealing_key: X25519PrivateKey | None,
        sign: Sign,
        accept_directory: AcceptDirectory,
        random_bytes: RandomBytes,
    ) -> None:
        self._population = population
        self._device_id = device_id
        self._identity_key = identity_key
        self._sign = sign
        self._accept_directory = accept_directory
        self._random_bytes = random_bytes
        self._encryptor = UpdateEncryptor(
            population=population, device_id=device_id, sealing_key=sealing_key, sign=sign, random_bytes=random_bytes
        )
        self._masker = UpdateMasker(device_id=device_id, sealing_key=sealing_key, sign=sign, random_bytes=random_bytes)
        self._seals: Mapping[type[msgspec.Struct], SealingRound] = {
            HelperSums: self._seal_to_helpers,
            MaskedSums: self._seal_to_committee,
            EncryptedSums: self._seal_encrypted,
        }

    def check(self, job: TrainingJob) -> None:
        """Looks at directory, openers and this device's own entry.

        Raises:
            PrivacyRefused: One of them is not in order.
        """
        self._checked(job)

    def seal(self, job: TrainingJob, update: IntegerUpdate) -> bytes:
        """Seals an update."""
        way, directory = self._checked(job)
        try:
            return self._seals[type(way)](job, update, directory)
        except (SecureSumError, ValueError) as error:
            raise PrivacyRefused(f"the update cannot be sealed: {error}") from error

    def _checked(self, job: TrainingJob) -> tuple[Confidentiality, KeyDirectory]:
        way = job.plan.confidentiality
        if way is msgspec.UNSET or type(way) not in self._seals:
            raise PrivacyRefused("this device does not know how to seal for this plan")
        try:
            directory = self._accept_directory(job.sealing_blobs[way.directory.sha256])
        except (DirectoryError, KeyError) as error:
            raise PrivacyRefused(f"the plan's key directory is not believed: {error}") from error
        own = directory.members.get(self._device_id)
        if own is None or own.identity_key != self._identity_key:
            raise PrivacyRefused(
                f"{self._device_id} is not in the key directory with its key: have the authority enter it, and the plan "
                "made with that directory"
            )
        for opener in way.openers:
            _check_opener(opener, directory, _ROLES[type(way)])
        if isinstance(way, EncryptedSums):
            self._check_encryption(job, way, directory)
        if isinstance(way, MaskedSums):
            self._check_masked_round(job, way, directory)
        if isinstance(way, HelperSums) and way.has_one_operator:
            _LOG.warning("helpers_of_one_operator: the sum alone being seen is a promise of theirs, not a proof")
        return way, directory

    def _seal_to_helpers(self, job: TrainingJob, update: IntegerUpdate, directory: KeyDirectory, /) -> bytes:
        del directory
        way, spec = job.plan.confidentiality, job.plan.privacy
        if not isinstance(way, HelperSums) or spec is None:
            raise PrivacyRefused("not a plan with helpers")
        order = SealingOrder(
            context=self.context(job),
            device_id=self._device_id,
            min_contributors=spec.min_contributors,
            helpers=tuple((helper.device_id, helper.box_key) for helper in way.helpers),
            num_needed=way.num_needed,
        )
        return encode_sealed_update(seal_to_helpers(update, order, sign=self._sign, random_bytes=self._random_bytes))

    def _check_masked_round(self, job: TrainingJob, way: MaskedSums, directory: KeyDirectory) -> None:
        try:
            self._masker.check(job, way, directory, context=self.context(job))
        except SecureSumError as error:
            raise PrivacyRefused(f"the round could not hide this device: {error}") from error

    def _seal_to_committee(self, job: TrainingJob, update: IntegerUpdate, directory: KeyDirectory, /) -> bytes:
        way = job.plan.confidentiality
        if not isinstance(way, MaskedSums):
            raise PrivacyRefused("not a plan with a committee")
        return encode_sealed_update(self._masker.seal(job, way, directory, update, context=self.context(job)))

    def _check_encryption(self, job: TrainingJob, way: EncryptedSums, directory: KeyDirectory) -> None:
        try:
            self._encryptor.check(way, job.sealing_blobs[way.keys.sha256], directory)
        except (SecureSumError, KeyError) as error:
            raise PrivacyRefused(f"the plan's encryption keys are not believed: {error}") from error

    def _seal_encrypted(self, job: TrainingJob, update: IntegerUpdate, directory: KeyDirectory, /) -> bytes:
        way, spec = job.plan.confidentiality, job.plan.privacy
        if not isinstance(way, EncryptedSums) or spec is None:
            raise PrivacyRefused("not a plan with encrypted sums")
        keys = job.sealing_blobs[way.keys.sha256]
        context, fewest = self.context(job), spec.min_contributors
        sealed = self._encryptor.seal(way, keys, directory, update, context=context, min_contributors=fewest)
        return encode_sealed_update(sealed)

    def context(self, job: TrainingJob) -> bytes:
        """The round's name: everything sealed and signed covers it."""
        return round_context(
            population=self._population, task_id=job.task_id, plan_sha256=job.plan_sha256, round_id=job.round_id
        )


def _check_opener(opener: SumOpener, directory: KeyDirectory, role: MemberRole) -> None:
    try:
        known = directory.member(opener.device_id, role)
    except DirectoryError as error:
        raise PrivacyRefused(f"the plan seals to {opener.device_id}: {error}") from error
    if known.sealing_key != opener.box_key:
        raise PrivacyRefused(f"the plan names another key of {opener.device_id} than the key directory")
