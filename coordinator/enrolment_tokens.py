"""Makes enrolment tokens: the whole goes to the operator, the public half into the roster."""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.errors import InvalidConfig
from coordinator.roster import TokenRecord
from wire_protocol.enrolment import EnrolmentToken
from wire_protocol.identifiers import checked_identifier

__all__ = ["make_token"]

_ID_BYTES = 8
_SECRET_BYTES = 32


def make_token(
    *,
    population: str,
    device_id: str | None,
    valid_s: float,
    num_uses: int,
    now: float,
    random_bytes: Callable[[int], bytes],
) -> tuple[EnrolmentToken, TokenRecord]:
    """Makes a token.

    Args:
        population: What it lets a device join.
        device_id: The only device it is for; None for any id that nobody has.
        valid_s: How long it can be used, in seconds.
        num_uses: How many devices it lets in.
        now: Seconds since 1970.
        random_bytes: ``os.urandom`` in production.

    Returns:
        What the device's owner gets, and what the roster keeps.

    Raises:
        InvalidIdentifier: An id that is not allowed.
        InvalidConfig: No use or no time is left, or one device is to enrol more than once.
    """
    checked_identifier(population, kind="population")
    if device_id is not None:
        checked_identifier(device_id, kind="device")
    if num_uses < 1 or not valid_s > 0 or (device_id is not None and num_uses != 1):
        raise InvalidConfig("a token needs time, and at least one use; exactly one if it is for one device")
    secret = random_bytes(_SECRET_BYTES)
    token = EnrolmentToken(token_id=random_bytes(_ID_BYTES).hex(), secret=secret)
    record = TokenRecord(
        token_id=token.token_id,
        population=population,
        public_key=Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw(),
        device_id=device_id,
        made_at=now,
        expires_at=now + valid_s,
        uses_left=num_uses,
    )
    return token, record
