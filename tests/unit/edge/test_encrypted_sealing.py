"""A device encrypts with keys that the key authority of the pinned directory has signed for it, and with no others."""

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.errors import PrivacyRefused
from edge_client.privacy.encrypted_sealing import UpdateEncryptor
from secure_sum import bfv
from secure_sum.ciphertext import decode_ciphertext
from secure_sum.directory_entries import MemberRole, bound_keys
from secure_sum.encryption_keys import release_encryption_keys
from secure_sum.errors import BoxNotOpened, EncryptionUnavailable, MalformedSealed, UnknownMember
from secure_sum.key_directory import add_member, empty_directory
from wire_protocol.blobs import split_blob
from wire_protocol.confidentiality import EncryptedSums, SumOpener

pytestmark = pytest.mark.skipif(
    not os.environ.get("CI") and not bfv.is_available(), reason="TenSEAL is not installed here"
)
CONTEXT = bytes(32)


class World:
    """A directory with one bank and one key authority, and what the authority released."""

    def __init__(self):
        authority = Ed25519PrivateKey.generate()
        self.directory = empty_directory("p", authority.public_key().public_bytes_raw())
        self.identity, self.sealing = {}, {}
        for name, role in (("bank", MemberRole.DEVICE), ("ka", MemberRole.KEY_AUTHORITY)):
            self.identity[name], self.sealing[name] = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
            keys = bound_keys(
                "p", name, role, identity_key=self.identity[name].public_key().public_bytes_raw(),
                sealing_key=self.public(name), sign=self.identity[name].sign,
            )  # fmt: skip
            self.directory = add_member(self.directory, keys, made_at=0, authority=authority)
        self.pair = bfv.make_key_pair()

    def public(self, name):
        return self.sealing[name].public_key().public_bytes_raw()

    def release(self, **changes):
        values = {
            "population": "p", "authority_id": "ka", "public_key": self.pair.public, "tag_secret": bytes(32),
            "sealing_keys": {"bank": self.public("bank")}, "sign": self.identity["ka"].sign, "random_bytes": os.urandom,
        }  # fmt: skip
        return release_encryption_keys(**{**values, **changes}).encode()

    def way(self, keys, authority_id="ka"):
        blob = split_blob(bytes(10)).ref
        opener = SumOpener(device_id=authority_id, box_key=self.public("ka"))
        return EncryptedSums(key_authority=opener, keys=split_blob(keys).ref, directory=blob)

    def encryptor(self, *, device_id="bank", sealing_key="bank"):
        return UpdateEncryptor(
            population="p", device_id=device_id, sealing_key=self.sealing.get(sealing_key),
            sign=self.identity["bank"].sign, random_bytes=os.urandom,
        )  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return World()


def test_an_update_is_encrypted_under_the_key_authoritys_key(world):
    keys, values = world.release(), np.array([1, 2**32 - 5, 7], np.uint32)
    way, encryptor = world.way(keys), world.encryptor()
    encryptor.check(way, keys, world.directory)
    sealed = encryptor.seal(way, keys, world.directory, values, context=CONTEXT, min_contributors=3)
    chunks = decode_ciphertext(sealed.payload, num_values=3).chunks
    read = bfv.Decryptor(world.pair.secret).decrypt(chunks, num_values=3)
    assert np.array_equal(read.astype(np.uint32), values)
    assert (sealed.context, sealed.min_contributors, sealed.boxes) == (CONTEXT, 3, ())


def test_keys_that_the_coordinator_made_are_refused(world):
    forged = world.release(public_key=bfv.make_key_pair().public, sign=Ed25519PrivateKey.generate().sign)
    with pytest.raises(MalformedSealed, match="not signed"):
        world.encryptor().check(world.way(forged), forged, world.directory)


def test_a_device_is_no_key_authority_though_it_stands_in_the_directory(world):
    """A bank that signs a release under its own name, and a coordinator that names it in the plan."""
    forged = world.release(authority_id="bank", sign=world.identity["bank"].sign)
    with pytest.raises(UnknownMember):
        world.encryptor().check(world.way(forged, authority_id="bank"), forged, world.directory)


def test_a_device_that_came_later_is_told_that_the_keys_must_be_issued_anew(world):
    keys = world.release()
    with pytest.raises(BoxNotOpened, match="issue"):
        world.encryptor(device_id="newcomer").check(world.way(keys), keys, world.directory)
    with pytest.raises(BoxNotOpened):
        world.encryptor(sealing_key="ka").check(world.way(keys), keys, world.directory)
    with pytest.raises(PrivacyRefused, match="directory-request"):
        world.encryptor(sealing_key="none").check(world.way(keys), keys, world.directory)


def test_a_release_that_brings_the_secret_key_along_is_refused(world):
    keys = world.release(public_key=world.pair.secret)
    with pytest.raises(MalformedSealed, match="public key alone"):
        world.encryptor().check(world.way(keys), keys, world.directory)


def test_a_device_without_tenseal_refuses_before_it_trains(world, monkeypatch):
    keys = world.release()
    monkeypatch.setitem(__import__("sys").modules, "tenseal", None)
    with pytest.raises(EncryptionUnavailable, match="pip install"):
        world.encryptor().check(world.way(keys), keys, world.directory)
