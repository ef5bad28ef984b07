"""The device's side of homomorphic encryption: an integer update becomes ciphertexts and tags, signed."""

import dataclasses

import numpy as np
import numpy.typing as npt

from secure_sum.bfv import Encryptor, centred
from secure_sum.ciphertext import Ciphertext, encode_ciphertext
from secure_sum.errors import MalformedSealed
from secure_sum.keystream import Words
from secure_sum.sealed_box import BoxRoute, RandomBytes, make_box_key
from secure_sum.sealed_update import SealedMode, SealedUpdate, Sign, Statement, seal_update
from secure_sum.sum_tags import inner_tags, sum_of_tags, tag_pads

__all__ = ["EncryptionOrder", "seal_encrypted", "signed_values"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncryptionOrder:
    """For whom and for which round a device encrypts."""

    context: bytes
    device_id: str
    min_contributors: int
    """The fewest contributors that the device wants to be summed with."""
    authority_id: str
    authority_key: bytes
    """The key authority's X25519 key, from the key directory."""
    tag_secret: bytes = dataclasses.field(repr=False)
    """As the key authority sealed it for this device (`EncryptionKeys.tag_secret`)."""


def signed_values(values: Words) -> npt.NDArray[np.int64]:
    """The signed integers that words modulo 2^32 stand for."""
    return values.view(np.int32).astype(np.int64)


def seal_encrypted(
    values: Words, order: EncryptionOrder, *, encryptor: Encryptor, sign: Sign, random_bytes: RandomBytes
) -> SealedUpdate:
    """Encrypts an integer update.

    Args:
        values: uint32 [d]: signed integers modulo 2^32, of absolute value below t / 2.
        order: For whom.
        encryptor: With the key authority's public key.
        sign: The device's identity.
        random_bytes: Makes the ephemeral key: ``os.urandom`` outside tests. Encryption has its own randomness.

    Raises:
        MalformedSealed: A value is out of range: its sum could not be exact.
        BoxNotOpened: The key authority's key is no key.
    """
    integers = signed_values(values)
    if not np.array_equal(centred(integers), integers):
        raise MalformedSealed("a number of the update is too large to be encrypted exactly: lower grid_bits")
    ephemeral = make_box_key(random_bytes)
    ephemeral_key = ephemeral.public_key().public_bytes_raw()
    pads = tag_pads(
        ephemeral,
        order.authority_key,
        ephemeral_key=ephemeral_key,
        opener_key=order.authority_key,
        route=BoxRoute(context=order.context, sender_id=order.device_id, opener_id=order.authority_id),
    )
    ciphertext = Ciphertext(
        num_values=len(integers),
        tags=sum_of_tags((inner_tags(integers, tag_secret=order.tag_secret, context=order.context), pads)),
        chunks=encryptor.encrypt(integers),
    )
    statement = Statement(
        context=order.context,
        mode=SealedMode.HE,
        device_id=order.device_id,
        num_values=len(integers),
        min_contributors=order.min_contributors,
        payload_sha256=b"",
        ephemeral_key=ephemeral_key,
        box_digests=b"",
    )
    return seal_update(encode_ciphertext(ciphertext), (), statement, sign)
