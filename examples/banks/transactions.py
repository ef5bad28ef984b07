"""Card transactions of five invented banks. No real customer is in them: everything follows from a seed.

Each transaction has eight facts, drawn so that they look like those of honest customers; a few are then made fraud, by one of
three patterns, which shift some of the facts. A bank sees mostly one of the patterns, so that what one bank learns alone
serves it badly when the next pattern reaches it. That is the point of the example, and it is built in.

| fact | honest | spree at night | stolen abroad | account taken over |
|---|---|---|---|---|
| amount | log-normal, median 40 | median 25 | median 300 | median 900 |
| hour | around 14, by a wrapped normal | around 3 | honest | honest |
| transactions in the last hour | Poisson 0.4 | Poisson 5 | honest | Poisson 1 |
| kilometres from the last one | exponential, mean 8 | honest | mean 900 | honest |
| abroad | 3 % | 5 % | 85 % | 5 % |
| payee never paid before | 10 % | 60 % | 40 % | 95 % |
| days since the device was first seen | exponential, mean 300 | honest | honest | mean 2 |
| card present | 70 % | 5 % | 60 % | 1 % |

The model's twelve inputs are these, on fixed scales that need no look at anybody's data, and four products of two.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

__all__ = ["NUM_BANKS", "NUM_INPUTS", "Transactions", "bank_transactions", "future_transactions"]

NUM_BANKS = 5
NUM_INPUTS = 12
_FRAUD_SHARE = 0.06
_SIZES = (2400, 2000, 1600, 1200, 800)
_MAIN_PATTERN = (0, 1, 2, 0, 1)
_MAIN_SHARE = 0.9
_NUM_PATTERNS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transactions:
    """Inputs and labels."""

    x: npt.NDArray[np.float32]
    """[n, NUM_INPUTS]"""
    y: npt.NDArray[np.int32]
    """[n] 1 is fraud."""


def bank_transactions(bank: int, *, seed: int = 0) -> Transactions:
    """What one bank has seen.

    Args:
        bank: 0 to ``NUM_BANKS - 1``.
        seed: Another seed, other customers.
    """
    mix = np.full(_NUM_PATTERNS, (1 - _MAIN_SHARE) / (_NUM_PATTERNS - 1))
    mix[_MAIN_PATTERN[bank]] = _MAIN_SHARE
    return _transactions(np.random.default_rng([seed, bank]), _SIZES[bank], mix)


def future_transactions(*, seed: int = 0) -> Transactions:
    """What reaches them next: all patterns alike."""
    return _transactions(np.random.default_rng([seed, NUM_BANKS]), 4000, np.full(_NUM_PATTERNS, 1 / _NUM_PATTERNS))


def _transactions(rng: np.random.Generator, count: int, mix: npt.NDArray[np.float64]) -> Transactions:
    is_fraud = rng.random(count) < _FRAUD_SHARE
    pattern = np.where(is_fraud, rng.choice(_NUM_PATTERNS, count, p=mix), -1)
    night, abroad, takeover = (pattern == number for number in range(_NUM_PATTERNS))
    amount = rng.lognormal(np.log(np.select([night, abroad, takeover], [25.0, 300.0, 900.0], 40.0)), 0.9)
    hour = rng.normal(np.where(night, 3.0, 14.0), np.where(night, 2.0, 4.5)) % 24
    recent = rng.poisson(np.select([night, takeover], [5.0, 1.0], 0.4))
    distance = rng.exponential(np.where(abroad, 900.0, 8.0))
    is_abroad = rng.random(count) < np.select([abroad, night, takeover], [0.85, 0.05, 0.05], 0.03)
    is_new_payee = rng.random(count) < np.select([night, abroad, takeover], [0.60, 0.40, 0.95], 0.10)
    device_days = rng.exponential(np.where(takeover, 2.0, 300.0))
    card_present = rng.random(count) < np.select([night, abroad, takeover], [0.05, 0.60, 0.01], 0.70)
    facts = (
        np.log(amount / 40) / 2,
        np.cos(hour * np.pi / 12),
        np.minimum(recent, 10) / 5,
        np.log1p(distance) / 5,
        is_abroad,
        is_new_payee,
        np.exp(-device_days / 10),
        card_present,
    )
    products = (
        is_new_payee * np.exp(-device_days / 10),
        is_abroad * np.log1p(distance) / 5,
        np.cos(hour * np.pi / 12) * np.minimum(recent, 10) / 5,
        ~card_present * np.log(amount / 40) / 2,
    )
    x = np.stack([np.asarray(fact, np.float64) for fact in (*facts, *products)], axis=1)
    return Transactions(x=x.astype(np.float32), y=is_fraud.astype(np.int32))
