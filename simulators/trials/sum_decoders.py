"""The decoders of `secure_sum`: key directories, and what passes between devices, coordinator and openers."""

import hashlib
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum import bfv
from secure_sum.ciphertext import Ciphertext, decode_ciphertext, encode_ciphertext
from secure_sum.directory_entries import (
    MemberKeys,
    MemberRole,
    bound_keys,
    decode_change,
    decode_request,
    encode_request,
)
from secure_sum.directory_pin import decode_pin, encode_pin, pin_of
from secure_sum.encryption_keys import decode_encryption_keys, release_encryption_keys
from secure_sum.errors import DirectoryError, MalformedDirectory, MalformedSealed, OversizedSealed
from secure_sum.key_directory import (
    KeyDirectory,
    add_member,
    decode_directory,
    empty_directory,
    encode_directory,
    remove_member,
    rotate_member,
)
from simulators.trials.decoders import Decoder

__all__ = ["sample_directory", "sample_member", "sum_decoders"]

_POPULATION: Final = "p"
_FEW: Final = 0.3
_RARE: Final = 0.02


def sample_member(member_id: str, *, seed: int, role: MemberRole = MemberRole.DEVICE) -> MemberKeys:
    """A member whose keys follow from a seed. For tests and trials alone."""
    identity = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"identity %d" % seed).digest())
    sealing = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"sealing %d" % seed).digest())
    return bound_keys(
        _POPULATION,
        member_id,
        role,
        identity_key=identity.public_key().public_bytes_raw(),
        sealing_key=sealing.public_key().public_bytes_raw(),
        sign=identity.sign,
    )


def sample_directory() -> KeyDirectory:
    """A log of every kind of entry."""
    authority = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x63")
    directory = empty_directory(_POPULATION, authority.public_key().public_bytes_raw())
    directory = add_member(directory, sample_member("d1", seed=1), made_at=10, authority=authority)
    directory = add_member(
        directory, sample_member("h1", seed=2, role=MemberRole.HELPER), made_at=11, authority=authority
    )
    directory = rotate_member(directory, sample_member("d1", seed=3), made_at=12, authority=authority)
    return remove_member(directory, "d1", made_at=13, authority=authority)


def sum_decoders() -> list[Decoder]:
    """The decoders that need no file."""
    return [*_directory_decoders(), *_encryption_decoders()]


def _encryption_decoders() -> list[Decoder]:
    """What comes with homomorphic encryption; TenSEAL's own reader too, where it is installed."""
    payload = encode_ciphertext(Ciphertext(num_values=5000, tags=(1, 2, 3, 4), chunks=(b"one", b"two")))
    keys = release_encryption_keys(
        population=_POPULATION,
        authority_id="ka",
        public_key=b"public key",
        tag_secret=bytes(32),
        sealing_keys={"d1": sample_member("d1", seed=1).sealing_key},
        sign=Ed25519PrivateKey.from_private_bytes(bytes(32)).sign,
        random_bytes=lambda count: bytes([7]) * count,
    )
    decoders = [
        Decoder(
            name="encrypted update",
            decode=lambda data: decode_ciphertext(data, num_values=5000),
            documented=(MalformedSealed, OversizedSealed),
            seeds=[payload],
            covers=("secure_sum.ciphertext.decode_ciphertext",),
        ),
        Decoder(
            name="encryption keys",
            decode=decode_encryption_keys,
            documented=(MalformedSealed, OversizedSealed),
            seeds=[keys.encode()],
            covers=("secure_sum.encryption_keys.decode_encryption_keys",),
        ),
    ]
    if not bfv.is_available():
        return decoders
    public = bfv.make_key_pair().public
    [ciphertext] = bfv.Encryptor(public).encrypt(np.arange(3))
    adder = bfv.CiphertextAdder(num_values=3)
    return [
        *decoders,
        Decoder(
            name="ciphertext",
            decode=lambda data: adder.add([data]),
            documented=(MalformedSealed,),
            seeds=[ciphertext],
            covers=(),
            max_bytes=100_000,
            share=_RARE,
        ),
    ]


def _directory_decoders() -> list[Decoder]:
    directory = sample_directory()
    return [
        Decoder(
            name="key directory",
            decode=decode_directory,
            documented=(DirectoryError,),
            seeds=[encode_directory(directory)],
            covers=("secure_sum.key_directory.decode_directory",),
            share=_FEW,
        ),
        Decoder(
            name="key directory entry",
            decode=decode_change,
            documented=(MalformedDirectory,),
            seeds=[entry.body for entry in directory.entries],
            covers=("secure_sum.directory_entries.decode_change",),
        ),
        Decoder(
            name="key directory request",
            decode=lambda data: decode_request(data.decode("latin-1")).check(_POPULATION),
            documented=(MalformedDirectory,),
            seeds=[encode_request(sample_member("d1", seed=1)).encode()],
            covers=("secure_sum.directory_entries.decode_request",),
            share=_FEW,
        ),
        Decoder(
            name="key directory pin",
            decode=decode_pin,
            documented=(MalformedDirectory,),
            seeds=[encode_pin(pin_of(directory))],
            covers=("secure_sum.directory_pin.decode_pin",),
        ),
    ]
