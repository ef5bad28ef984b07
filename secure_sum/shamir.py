"""Shamir's secret sharing over the field of 2^255 - 19 elements.

Shamir 1979, "How to share a secret": a secret is the value at 0 of a random polynomial of degree ``threshold - 1``;
share number x is its value at x. Fewer than ``threshold`` shares are uniformly random whatever the secret is.

# Edge cases

| input | result |
|---|---|
| ``threshold`` 1 | every share is the secret itself |
| a share that is no number below the prime | ``MalformedSealed``: every number has one spelling |
| shares of different secrets, or a forged one | another secret, or ``MalformedSealed`` if that would not fit in 31 bytes; nothing here can tell, so whoever has more shares than the threshold should compare |
"""

from collections.abc import Callable, Sequence
from typing import Final

from secure_sum.errors import MalformedSealed

__all__ = ["MAX_SHARES", "PRIME", "SECRET_BYTES", "SHARE_BYTES", "ShareWeights", "decode_share", "split_secret"]

PRIME: Final = 2**255 - 19
SECRET_BYTES: Final = 31
"""Whatever 31 bytes are, they are a number below the prime."""
SHARE_BYTES: Final = 32
MAX_SHARES: Final = 255
_TOP_BIT_OFF: Final = (1 << 255) - 1


def split_secret(
    secret: bytes, *, threshold: int, num_shares: int, random_bytes: Callable[[int], bytes]
) -> tuple[bytes, ...]:
    """Splits a secret.

    Args:
        secret: 31 bytes.
        threshold: t: this many shares give the secret back, fewer say nothing about it.
        num_shares: m: shares to make.
        random_bytes: Unguessable bytes: ``os.urandom``.

    Returns:
        m shares of 32 bytes; the first is number 1.

    Raises:
        ValueError: The secret is not 31 bytes long, or not ``1 <= threshold <= num_shares <= 255``.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if not 1 <= threshold <= num_shares <= MAX_SHARES:
        raise ValueError(f"cannot make {num_shares} shares of which {threshold} are enough")
    coefficients = [_field_element(random_bytes) for _ in range(threshold - 1)]
    constant = int.from_bytes(secret, "little")
    shares = []
    for number in range(1, num_shares + 1):
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * number % PRIME
        shares.append(((value + constant) % PRIME).to_bytes(SHARE_BYTES, "little"))
    return tuple(shares)


class ShareWeights:
    """Computes with shares of these numbers; the Lagrange weights are found once for all secrets.

    Args:
        numbers: Which shares, each from 1 to 255, no number twice. As many as the threshold, or more.
        at: Where the polynomial is wanted: at 0 is the secret, elsewhere another share.

    Raises:
        ValueError: A number is out of range or there twice, or there is none.
    """

    __slots__ = ("_weights", "numbers")

    def __init__(self, numbers: Sequence[int], *, at: int = 0) -> None:
        if not numbers or len(set(numbers)) != len(numbers) or not all(1 <= n <= MAX_SHARES for n in numbers):
            raise ValueError(f"not the numbers of different shares: {list(numbers)}")
        self.numbers = tuple(numbers)
        self._weights = tuple(_lagrange_weight(number, self.numbers, at) for number in self.numbers)

    def value(self, shares: Sequence[int]) -> int:
        """The polynomial through these shares, where it is wanted.

        Args:
            shares: Field elements, in the order of ``numbers``.
        """
        return sum(weight * share for weight, share in zip(self._weights, shares, strict=True)) % PRIME

    def secret(self, shares: Sequence[int]) -> bytes:
        """The secret whose shares these are; the weights must be those at 0.

        Raises:
            MalformedSealed: The result does not fit in 31 bytes: these are not shares of one secret.
        """
        try:
            return self.value(shares).to_bytes(SECRET_BYTES, "little")
        except OverflowError:
            raise MalformedSealed("these shares belong to no secret") from None


def decode_share(data: bytes) -> int:
    """A share as a field element.

    Raises:
        MalformedSealed: Not 32 bytes that spell a number below the prime.
    """
    value = int.from_bytes(data, "little")
    if len(data) != SHARE_BYTES or value >= PRIME:
        raise MalformedSealed("a share is 32 bytes that spell a number below 2^255 - 19")
    return value


def _field_element(random_bytes: Callable[[int], bytes]) -> int:
    """Uniform over the field: 19 of 2^255 draws are drawn again."""
    while True:
        value = int.from_bytes(random_bytes(SHARE_BYTES), "little") & _TOP_BIT_OFF
        if value < PRIME:
            return value


def _lagrange_weight(number: int, numbers: Sequence[int], at: int) -> int:
    numerator = denominator = 1
    for other in numbers:
        if other != number:
            numerator = numerator * (at - other) % PRIME
            denominator = denominator * (number - other) % PRIME
    return numerator * pow(denominator, -1, PRIME) % PRIME
