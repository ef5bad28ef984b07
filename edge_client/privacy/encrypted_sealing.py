"""Seals an update by homomorphic encryption, with keys that the key authority itself has signed for this device."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.errors import PrivacyRefused
from secure_sum.bfv import Encryptor
from secure_sum.directory_entries import MemberRole
from secure_sum.encrypted_update import EncryptionOrder, seal_encrypted
from secure_sum.encryption_keys import EncryptionKeys, decode_encryption_keys
from secure_sum.key_directory import KeyDirectory
from secure_sum.sealed_box import RandomBytes
from secure_sum.sealed_update import SealedUpdate, Sign
from wire_protocol.confidentiality import EncryptedSums
from wire_protocol.integer_updates import IntegerUpdate

__all__ = ["UpdateEncryptor"]


class UpdateEncryptor:
    """Encrypts what a device contributes.

    Args:
        population: The device's.
        device_id: The device.
        sealing_key: Its X25519 key, or None if it has none: then it can read no tag secret.
        sign: Signs statements with its identity.
        random_bytes: ``os.urandom`` outside tests.
    """

    def __init__(
        self,
        *,
        population: str,
        device_id: str,
        sealing_key: X25519PrivateKey | None,
        sign: Sign,
        random_bytes: RandomBytes,
    ) -> None:
        self._population = population
        self._device_id = device_id
        self._sealing_key = sealing_key
        self._sign = sign
        self._random_bytes = random_bytes

    def check(self, way: EncryptedSums, keys: bytes, directory: KeyDirectory) -> None:
        """Looks at the keys before training.

        Raises:
            PrivacyRefused: This device has no sealing key.
            SecureSumError: The keys are not the key authority's, or not for this device; or TenSEAL is not installed.
        """
        release = self._checked(way, keys, directory)
        self._tag_secret(release)
        Encryptor(release.public_key)

    def seal(
        self,
        way: EncryptedSums,
        keys: bytes,
        directory: KeyDirectory,
        update: IntegerUpdate,
        *,
        context: bytes,
        min_contributors: int,
    ) -> SealedUpdate:
        """Encrypts an update.

        Args:
            way: The plan's.
            keys: The bytes of ``way.keys``.
            directory: The key directory as this device believes it.
            update: uint32 [d].
            context: The round's.
            min_contributors: The fewest contributors that it wants to be summed with.

        Raises:
            PrivacyRefused: As ``check``.
            SecureSumError: As ``check``; or a number is too large.
        """
        release = self._checked(way, keys, directory)
        order = EncryptionOrder(
            context=context,
            device_id=self._device_id,
            min_contributors=min_contributors,
            authority_id=way.key_authority.device_id,
            authority_key=way.key_authority.box_key,
            tag_secret=self._tag_secret(release),
        )
        encryptor = Encryptor(release.public_key)
        return seal_encrypted(update, order, encryptor=encryptor, sign=self._sign, random_bytes=self._random_bytes)

    def _checked(self, way: EncryptedSums, keys: bytes, directory: KeyDirectory) -> EncryptionKeys:
        release = decode_encryption_keys(keys)
        authority = directory.member(way.key_authority.device_id, MemberRole.KEY_AUTHORITY)
        release.check(
            population=self._population, authority_id=authority.member_id, identity_key=authority.identity_key
        )
        return release

    def _tag_secret(self, release: EncryptionKeys) -> bytes:
        if self._sealing_key is None:
            raise PrivacyRefused("this device has no sealing key: 'flockwise edge directory-request' makes one")
        return release.tag_secret(self._device_id, self._sealing_key)
