"""The key authority of a virtual population: real keys, the real desk."""

import hashlib
import os
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.identity import DeviceIdentity
from edge_client.opener.encryption_key_file import KeyMaterial, make_release
from edge_client.opener.key_desk import KeyDesk
from edge_client.opener.set_book import SqliteSetBook
from edge_client.opener.wrong_totals import KeyBook
from secure_sum.bfv import make_key_pair
from secure_sum.directory_entries import MemberRole
from secure_sum.key_rules import DecryptionBook
from secure_sum.sum_tags import TAG_SECRET_BYTES
from simulators.virtual_trust import VirtualTrust
from wire_protocol.blobs import split_blob
from wire_protocol.confidentiality import EncryptedSums, SumOpener

__all__ = ["KEY_AUTHORITY", "VirtualKeyAuthority", "trust_with_key_authority"]

KEY_AUTHORITY: Final = "key-authority"


def trust_with_key_authority(population: str, device_ids: list[str]) -> VirtualTrust:
    """Keys of a population that has a key authority and no helpers."""
    return VirtualTrust(population, device_ids, others={MemberRole.KEY_AUTHORITY: [KEY_AUTHORITY]})


class VirtualKeyAuthority:
    """Makes and releases keys, and answers.

    Args:
        trust: Of ``trust_with_key_authority``.

    Raises:
        EncryptionUnavailable: TenSEAL is not installed.
    """

    def __init__(self, trust: VirtualTrust) -> None:
        self._trust = trust
        self._own = trust.members[KEY_AUTHORITY]
        pair = make_key_pair()
        self._material = KeyMaterial(
            secret_key=pair.secret, public_key=pair.public, tag_secret=os.urandom(TAG_SECRET_BYTES)
        )
        self.released: bytes = self._release(self._own.identity)
        """What devices fetch."""

    def sums(self) -> EncryptedSums:
        """A plan's confidentiality."""
        return EncryptedSums(
            key_authority=SumOpener(device_id=KEY_AUTHORITY, box_key=self._own.sealing_key),
            keys=split_blob(self.released).ref,
            directory=split_blob(self._trust.directory_bytes).ref,
        )

    def new_book(self) -> DecryptionBook:
        """A book in memory."""
        return KeyBook(None, sets=SqliteSetBook(None), key_id=b"virtual")

    def desk(self, *, min_contributors: int, book: DecryptionBook) -> KeyDesk:
        """What answers."""
        return KeyDesk(
            population=self._trust.population,
            authority_id=KEY_AUTHORITY,
            sealing_key=self._own.sealing,
            material=self._material,
            book=book,
            directory=self._trust.directory,
            releases=frozenset({hashlib.sha256(self.released).digest()}),
            min_contributors=min_contributors,
        )

    def _release(self, identity: Ed25519PrivateKey) -> bytes:
        signer = DeviceIdentity(identity, epoch=1)
        return make_release(self._material, self._trust.directory, authority_id=KEY_AUTHORITY, identity=signer).encode()
