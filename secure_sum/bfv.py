"""The one module that knows TenSEAL: BFV, exact integers modulo a prime (Fan, Vercauteren 2012; SEAL 4 underneath).

Optional: ``pip install 'flockwise[he]'``. Imported when something is encrypted, added or decrypted, and not before.

| | |
|---|---|
| ring degree N | 4,096; the modulus of ciphertexts has 109 bits: 128-bit security by the HE standard's table |
| plain modulus t | 1,073,692,673, a prime of 30 bits with t = 1 mod 2 N, so that 4,096 numbers fit one ciphertext |
| what is added | ciphertexts, value by value; the sum modulo t is exact as long as the noise stays small |
| noise | a fresh ciphertext has at most 2 N * 21 + 21 < 2^18; decryption is right below q / 2 t, about 2^41 |

So with at most ``MAX_SUMMANDS`` ciphertexts no decryption can fail, which also closes what failing decryptions tell
about the key (Cheon, Choe, Passelegue, Stehle, Suvanto 2024, "Attacks against the IND-CPA-D security of exact FHE
schemes"). CKKS is not offered: its decryptions carry the noise, from which the key can be solved for (Li, Micciancio
2021, "On the security of homomorphic encryption on approximate numbers"), and its ciphertexts are larger.

Randomness is SEAL's own: Blake2xb seeded by ``std::random_device``, which is the operating system's.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from secure_sum.errors import EncryptionUnavailable, MalformedSealed

__all__ = [
    "CHUNK_VALUES",
    "MAX_SUMMANDS",
    "PLAIN_MODULUS",
    "BfvKeyPair",
    "CiphertextAdder",
    "Decryptor",
    "Encryptor",
    "centred",
    "chunk_lengths",
    "is_available",
    "make_key_pair",
]

CHUNK_VALUES: Final = 4096
"""N: the numbers in one ciphertext."""
PLAIN_MODULUS: Final = 1_073_692_673
"""t."""
MAX_SUMMANDS: Final = 100_000
"""Most fresh ciphertexts in a sum; the noise would bear a hundred times as many."""

_LOAD_ERRORS: Final = (ValueError, RuntimeError, TypeError, IndexError, MemoryError)
"""What TenSEAL raises for bytes that it cannot read."""
_PARAMETERS_ID: Final = (8741993187032888239, 13185936952380700870, 17079762673240770984, 5289457681607684947)
"""SEAL's hash of scheme, N, t and the modulus of ciphertexts: keys of any other parameters are refused."""
_HALF: Final = PLAIN_MODULUS // 2


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BfvKeyPair:
    """Both halves as TenSEAL writes them."""

    secret: bytes = dataclasses.field(repr=False)
    """About 204 kB; decrypts."""
    public: bytes = dataclasses.field(repr=False)
    """About 134 kB; encrypts and adds."""


def make_key_pair() -> BfvKeyPair:
    """A new key pair.

    Raises:
        EncryptionUnavailable: TenSEAL is not installed.
    """
    tenseal = _tenseal()
    context = tenseal.context(
        tenseal.SCHEME_TYPE.BFV, poly_modulus_degree=CHUNK_VALUES, plain_modulus=PLAIN_MODULUS, n_threads=1
    )
    written = {"save_public_key": True, "save_galois_keys": False, "save_relin_keys": False}
    return BfvKeyPair(
        secret=context.serialize(save_secret_key=True, **written),
        public=context.serialize(save_secret_key=False, **written),
    )


class Encryptor:
    """Encrypts with a public key.

    Args:
        public: `BfvKeyPair.public`, from the key authority's signed release.

    Raises:
        MalformedSealed: No public key of these parameters, or one with its secret key.
        EncryptionUnavailable: TenSEAL is not installed.
    """

    def __init__(self, public: bytes) -> None:
        self._context = _public_context(public)

    def encrypt(self, values: npt.NDArray[np.int64]) -> tuple[bytes, ...]:
        """Ciphertexts of [d] integers, each of absolute value at most (t - 1) / 2.

        Raises:
            MalformedSealed: A value is out of range.
        """
        if len(values) and int(np.abs(values).max()) > _HALF:
            raise MalformedSealed(f"a value beyond {_HALF} cannot be encrypted exactly")
        vector = _tenseal().bfv_vector
        return tuple(
            vector(self._context, values[start : start + CHUNK_VALUES].tolist()).serialize()
            for start in range(0, len(values), CHUNK_VALUES)
        )


class CiphertextAdder:
    """Adds ciphertexts: needs the parameters that all keys here have, and no key.

    Args:
        num_values: d.

    Raises:
        EncryptionUnavailable: TenSEAL is not installed.
    """

    def __init__(self, *, num_values: int) -> None:
        self._context = _parameters()
        self._lengths = chunk_lengths(num_values)
        self._total: list[Any] = []
        self.num_added = 0

    def check(self, chunks: Sequence[bytes]) -> None:
        """Checks that ciphertexts can be added.

        Raises:
            MalformedSealed: They are not ciphertexts of these parameters, of the right number and length.
        """
        _vectors(self._context, chunks, self._lengths)

    def add(self, chunks: Sequence[bytes]) -> None:
        """Adds one update's ciphertexts; all of them or, if one is not in order, none.

        Raises:
            MalformedSealed: As ``check``, or the noise of so many is not known to be small.
        """
        if self.num_added >= MAX_SUMMANDS:
            raise MalformedSealed(f"after {MAX_SUMMANDS} ciphertexts the noise is not known to be small any more")
        vectors = _vectors(self._context, chunks, self._lengths)
        try:
            # New objects: if one addition fails, the total is as it was.
            self._total = (
                [one + other for one, other in zip(self._total, vectors, strict=True)] if self._total else vectors
            )
        except _LOAD_ERRORS as error:
            raise MalformedSealed(f"ciphertexts that cannot be added: {error}") from error
        self.num_added += 1

    def total(self) -> tuple[bytes, ...]:
        """The sum's ciphertexts; empty if nothing was added."""
        return tuple(vector.serialize() for vector in self._total)


class Decryptor:
    """Decrypts with the secret key. Knows no rule: what may be decrypted is decided in `key_rules`.

    Args:
        secret: `BfvKeyPair.secret`.

    Raises:
        MalformedSealed: No secret key of these parameters.
        EncryptionUnavailable: TenSEAL is not installed.
    """

    def __init__(self, secret: bytes) -> None:
        self._context = _loaded_context(secret)
        if not self._context.has_secret_key():
            raise MalformedSealed("not a secret key")

    def decrypt(self, chunks: Sequence[bytes], *, num_values: int) -> npt.NDArray[np.int64]:
        """[num_values] the sum, centred modulo t.

        Raises:
            MalformedSealed: Not ciphertexts of that many numbers.
        """
        vectors = _vectors(self._context, chunks, chunk_lengths(num_values))
        try:
            parts = [np.array(vector.decrypt(), dtype=np.int64) for vector in vectors]
        except _LOAD_ERRORS as error:
            raise MalformedSealed(f"ciphertexts that cannot be decrypted: {error}") from error
        return centred(np.concatenate(parts) if parts else np.zeros(0, np.int64))


def is_available() -> bool:
    """Whether TenSEAL is installed; imports it if so."""
    try:
        _tenseal()
    except EncryptionUnavailable:
        return False
    return True


def centred(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The representatives modulo t that are nearest to zero."""
    reduced: npt.NDArray[np.int64] = (values + _HALF) % PLAIN_MODULUS - _HALF
    return reduced


def chunk_lengths(num_values: int) -> tuple[int, ...]:
    """How many numbers each ciphertext of d numbers has."""
    return tuple(min(CHUNK_VALUES, num_values - start) for start in range(0, num_values, CHUNK_VALUES))


def _vectors(context: Any, chunks: Sequence[bytes], lengths: Sequence[int]) -> list[Any]:
    if len(chunks) != len(lengths):
        raise MalformedSealed(f"{len(chunks)} ciphertexts where {len(lengths)} belong")
    load = _tenseal().bfv_vector_from
    vectors = []
    for chunk, length in zip(chunks, lengths, strict=True):
        try:
            vector = load(context, chunk)
            parts = vector.ciphertext()
        except _LOAD_ERRORS as error:
            raise MalformedSealed(f"not a ciphertext: {error}") from error
        # Two polynomials: a third would come of a product, and would let a total grow.
        if vector.size() != length or len(parts) != 1 or parts[0].size() != 2:  # noqa: PLR2004
            raise MalformedSealed(f"a ciphertext of another form than one of {length} numbers")
        vectors.append(vector)
    return vectors


@functools.cache
def _parameters() -> Any:
    """A context of a key that is thrown away: loading and adding need its parameters alone."""
    return _loaded_context(make_key_pair().public)


def _public_context(public: bytes) -> Any:
    context = _loaded_context(public)
    if context.is_private() or context.has_secret_key() or not context.has_public_key():
        raise MalformedSealed("not a public key alone")
    return context


def _loaded_context(data: bytes) -> Any:
    try:
        context = _tenseal().context_from(data, n_threads=1)
        found = tuple(context.seal_context().data.key_parms_id())
    except _LOAD_ERRORS as error:
        raise MalformedSealed(f"not a key of homomorphic encryption: {error}") from error
    if found != _PARAMETERS_ID:
        raise MalformedSealed(f"a key with other parameters than N = {CHUNK_VALUES}, t = {PLAIN_MODULUS}")
    return context


def _tenseal() -> Any:
    try:
        import tenseal
    except ImportError as error:
        raise EncryptionUnavailable(
            "homomorphic encryption needs TenSEAL: pip install 'flockwise[he]' (64-bit systems)"
        ) from error
    return tenseal
