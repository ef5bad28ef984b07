"""The coordinator's side of homomorphic encryption: adds what it cannot read."""

from secure_sum.bfv import CiphertextAdder
from secure_sum.ciphertext import NUM_TAGS, Ciphertext, decode_ciphertext, encode_ciphertext
from secure_sum.sum_tags import sum_of_tags

__all__ = ["EncryptedSum"]


class EncryptedSum:
    """Adds encrypted updates: ciphertexts and tags.

    Args:
        num_values: d.

    Raises:
        EncryptionUnavailable: TenSEAL is not installed.
    """

    def __init__(self, *, num_values: int) -> None:
        self._adder = CiphertextAdder(num_values=num_values)
        self._num_values = num_values
        self._tags: tuple[int, ...] = (0,) * NUM_TAGS

    def check(self, payload: bytes) -> None:
        """Checks that an update's payload can be added.

        Raises:
            MalformedSealed: Not d encrypted numbers.
            OversizedSealed: Longer than they can be.
        """
        self._adder.check(decode_ciphertext(payload, num_values=self._num_values).chunks)

    def add(self, payload: bytes) -> None:
        """Adds one update's payload; if it is not in order, nothing.

        Raises:
            MalformedSealed: As ``check``.
            OversizedSealed: As ``check``.
        """
        ciphertext = decode_ciphertext(payload, num_values=self._num_values)
        self._adder.add(ciphertext.chunks)
        self._tags = sum_of_tags((self._tags, ciphertext.tags))

    def total(self) -> bytes:
        """What is asked to be decrypted; the same after the same updates in the same order."""
        return encode_ciphertext(Ciphertext(num_values=self._num_values, tags=self._tags, chunks=self._adder.total()))
