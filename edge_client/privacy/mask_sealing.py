"""Masks an update for a round and seals what opens the masks to its committee, after looking at round and keys."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.errors import PrivacyRefused
from edge_client.training import TrainingJob
from secure_sum.committee_sealing import MaskedRound, check_round, seal_to_committee
from secure_sum.directory_entries import MemberRole
from secure_sum.key_directory import KeyDirectory
from secure_sum.sealed_box import RandomBytes
from secure_sum.sealed_update import SealedUpdate, Sign
from wire_protocol.confidentiality import MaskedSums
from wire_protocol.integer_updates import IntegerUpdate

__all__ = ["UpdateMasker"]


class UpdateMasker:
    """Masks what a device contributes.

    Args:
        device_id: The device.
        sealing_key: Its X25519 key, from which its pairwise masks follow; None if it has none.
        sign: Signs statements with its identity.
        random_bytes: ``os.urandom`` outside tests.
    """

    def __init__(
        self, *, device_id: str, sealing_key: X25519PrivateKey | None, sign: Sign, random_bytes: RandomBytes
    ) -> None:
        self._device_id = device_id
        self._sealing_key = sealing_key
        self._sign = sign
        self._random_bytes = random_bytes

    def check(self, job: TrainingJob, way: MaskedSums, directory: KeyDirectory, *, context: bytes) -> None:
        """Looks at roster, keys and committee before training.

        Raises:
            PrivacyRefused: This device has no sealing key, or another one than the directory says.
            SealingRefused: The round could not hide this device.
        """
        if directory.members[self._device_id].sealing_key != self._key().public_key().public_bytes_raw():
            raise PrivacyRefused(f"{self._device_id} is in the key directory with another sealing key than it has")
        check_round(self._round(job, way, directory, context))

    def seal(
        self, job: TrainingJob, way: MaskedSums, directory: KeyDirectory, update: IntegerUpdate, *, context: bytes
    ) -> SealedUpdate:
        """The masked and sealed update.

        Raises:
            PrivacyRefused: As ``check``.
            SecureSumError: As ``check``; or a key is none.
        """
        return seal_to_committee(
            update,
            self._round(job, way, directory, context),
            own_key=self._key(),
            sign=self._sign,
            random_bytes=self._random_bytes,
        )

    def _key(self) -> X25519PrivateKey:
        if self._sealing_key is None:
            raise PrivacyRefused("this device has no sealing key to share masks with: have it put into the directory")
        return self._sealing_key

    def _round(self, job: TrainingJob, way: MaskedSums, directory: KeyDirectory, context: bytes) -> MaskedRound:
        if job.plan.privacy is None:
            raise PrivacyRefused("masks are added to integers, and the plan has no privacy")
        return MaskedRound(
            context=context,
            device_id=self._device_id,
            min_contributors=job.plan.privacy.min_contributors,
            roster=job.roster,
            num_neighbours=way.num_neighbours,
            device_keys={keys.member_id: keys.sealing_key for keys in directory.members_with(MemberRole.DEVICE)},
            committee=tuple(member.device_id for member in way.committee),
            threshold=way.threshold,
        )
