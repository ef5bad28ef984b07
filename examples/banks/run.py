#!/usr/bin/env python3
"""Five banks learn to see fraud together, under homomorphic encryption: nobody sees a bank's update, not even noised.

    uv run examples/banks/run.py

Each bank trains on its own transactions and encrypts what it learnt. The coordinator adds five ciphertexts, which it cannot
read. A key authority decrypts the sum, and only if it is the sum of at least four banks that have signed for it. All of it
is the code that runs in the field, on virtual time in this process.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent))

from transactions import NUM_BANKS, NUM_INPUTS, bank_transactions, future_transactions

from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from flockwise.reporting import one_line_errors, print_json
from secure_sum.encryption_forecast import EncryptionLimits, check_forecast, forecast_encryption
from secure_sum.errors import SecureSumError
from simulators.consortium import POPULATION, Consortium, linear_plan, scores, train_alone, train_together
from simulators.errors import SimulationError
from simulators.virtual_key_authority import VirtualKeyAuthority, trust_with_key_authority
from simulators.virtual_openers import VirtualConfidentiality
from wire_protocol.privacy_spec import MIN_SHARE_STDDEV_UNITS, PrivacySpec, rounded_l2_bound

_MIN_BANKS: Final = 4
_CLIP: Final = 4.0
_GRID_BITS: Final = 16
_FALSE_ALARMS: Final = 0.01
_NAMES: Final = tuple(f"bank-{letter}" for letter in "abcde")


def almost_exact_sums(num_parameters: int, num_rounds: int) -> PrivacySpec:
    """The least noise that there is: about 1/4096 of the clip. This is no differential privacy, and its epsilon says so."""
    clip_units = 1 << _GRID_BITS
    noise = 1.001 * MIN_SHARE_STDDEV_UNITS * math.sqrt(_MIN_BANKS) / rounded_l2_bound(clip_units, num_parameters)
    return PrivacySpec(
        mode="distributed", clipping_norm=_CLIP, noise_multiplier=noise, min_contributors=_MIN_BANKS,
        num_rounds=num_rounds, target_epsilon=num_rounds * 4 / noise**2, grid_bits=_GRID_BITS,
    )  # fmt: skip


def recall(score: npt.NDArray[np.float64], y: npt.NDArray[np.int32]) -> float:
    """Share of the frauds that are found if one in a hundred honest customers is stopped."""
    threshold = np.quantile(score[y == 0], 1 - _FALSE_ALARMS)
    return float((score[y == 1] > threshold).mean())


def run(*, num_rounds: int, seed: int) -> dict[str, Any]:
    """Trains alone and together; returns what the command prints."""
    banks = {name: bank_transactions(index, seed=seed) for index, name in enumerate(_NAMES[:NUM_BANKS])}
    future = future_transactions(seed=seed)
    plan = linear_plan(NUM_INPUTS, num_epochs=2, batch_size=32, learning_rate=0.3)
    consortium = Consortium(
        members={name: (bank.x, bank.y) for name, bank in banks.items()}, x_test=future.x, y_test=future.y, plan=plan
    )
    privacy = almost_exact_sums(plan.num_parameters, num_rounds)
    forecast = forecast_encryption(plan.num_parameters, NUM_BANKS)
    check_forecast(forecast, EncryptionLimits())
    trust = trust_with_key_authority(POPULATION, list(banks))
    authority = VirtualKeyAuthority(trust)
    rules = PrivacyRules(
        budget=PrivacyBudget(epsilon=2 * privacy.target_epsilon), min_contributors=_MIN_BANKS, min_noise_multiplier=1e-6,
        confidentiality=frozenset({"he"}),
    )  # fmt: skip
    joint = train_together(
        consortium, num_rounds=num_rounds, privacy=privacy, rules=rules, way=authority.sums(),
        confidentiality=VirtualConfidentiality(trust=trust, min_contributors=_MIN_BANKS, key_authority=authority),
    )  # fmt: skip
    alone = {
        name: recall(scores(train_alone(consortium, name, num_rounds=num_rounds), future.x), future.y) for name in banks
    }
    return {
        "banks": {name: {"transactions": len(bank.y), "recall_alone": alone[name]} for name, bank in banks.items()},
        "recall_together": recall(scores(joint.weights, future.x), future.y),
        "rounds": joint.num_commits,
        "reports": list(joint.num_reports),
        "forecast": dataclasses.asdict(forecast),
    }


@click.command()
@click.option("--rounds", "num_rounds", type=click.IntRange(1, 1000), default=8, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the invented customers.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@one_line_errors(SimulationError, SecureSumError)
def main(*, num_rounds: int, seed: int, as_json: bool) -> None:
    """Train five banks' model under encryption, and say what each would find alone.

    Exit codes: 0 trained, 1 failed, 2 wrong usage.

    Example: uv run examples/banks/run.py
    """
    values = run(num_rounds=num_rounds, seed=seed)
    if as_json:
        print_json(values)
        return
    click.echo(f"Frauds found if {_FALSE_ALARMS:.0%} of the honest customers are stopped (all patterns of fraud):")
    for name, bank in values["banks"].items():
        click.echo(f"  {name} alone, {bank['transactions']:5d} transactions  {bank['recall_alone']:6.1%}")
    click.echo(f"  all five together, encrypted    {values['recall_together']:6.1%}")
    forecast = values["forecast"]
    click.echo(
        f"{values['rounds']} rounds; each bank sent {forecast['update_bytes']:,} bytes a round, of which the coordinator can "
        "read none; the key authority decrypted one sum a round."
    )


if __name__ == "__main__":
    main()
