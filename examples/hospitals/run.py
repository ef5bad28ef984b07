#!/usr/bin/env python3
"""Five hospitals learn to tell benign from malignant biopsies, on real data, with masks and differential privacy.

    uv run examples/hospitals/run.py

Each hospital clips and noises what it learnt, and hides it under masks that cancel in the sum of all. All five are the
committee that takes off what does not cancel; nobody sees a hospital's update, and there is no second organisation. The
models that are released keep each *hospital* private, at the epsilon that is printed. With five participants that costs
accuracy: how much, the same rounds without privacy beside it say. All of it is the code that runs in the field, on virtual
time in this process.
"""

import sys
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from patients import NUM_INPUTS, load_patients

from coordinator.errors import CoordinatorError
from coordinator.privacy_accounting import calibrate
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from flockwise.reporting import one_line_errors, print_json
from simulators.consortium import (
    POPULATION,
    Consortium,
    linear_plan,
    mean_of_rounds,
    scores,
    train_alone,
    train_together,
)
from simulators.errors import SimulationError
from simulators.virtual_openers import VirtualConfidentiality
from simulators.virtual_trust import VirtualTrust
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.tensors import Tensors

_MIN_HOSPITALS: Final = 5
_CLIP: Final = 1.0


def run(*, num_rounds: int, epsilon: float, seed: int) -> dict[str, Any]:
    """Trains alone, together without privacy, and together with it; returns what the command prints."""
    hospitals, test = load_patients(seed=seed)
    plan = linear_plan(NUM_INPUTS, num_epochs=3, batch_size=16, learning_rate=0.5)
    consortium = Consortium(
        members={name: (patients.x, patients.y) for name, patients in hospitals.items()},
        x_test=test.x, y_test=test.y, plan=plan,
    )  # fmt: skip
    privacy = calibrate(
        PrivacySpec(
            mode="distributed", clipping_norm=_CLIP, noise_multiplier=1.0, min_contributors=_MIN_HOSPITALS,
            num_rounds=num_rounds, target_epsilon=epsilon,
        )
    )  # fmt: skip
    trust = VirtualTrust(POPULATION, list(hospitals))
    rules = PrivacyRules(
        budget=PrivacyBudget(epsilon=epsilon), min_contributors=_MIN_HOSPITALS, confidentiality=frozenset({"masks"}),
        min_noise_multiplier=min(0.3, privacy.noise_multiplier),
    )  # fmt: skip
    joint = train_together(
        consortium, num_rounds=num_rounds, privacy=privacy, rules=rules, way=trust.masked_sums(tuple(hospitals)),
        confidentiality=VirtualConfidentiality(trust=trust, min_contributors=_MIN_HOSPITALS),
    )  # fmt: skip

    def accuracy(weights: Tensors) -> float:
        return float(((scores(weights, test.x) > 0).astype(np.int32) == test.y).mean())

    return {
        "hospitals": {
            name: {
                "patients": len(patients.y),
                "accuracy_alone": accuracy(train_alone(consortium, name, num_rounds=num_rounds)),
            }
            for name, patients in hospitals.items()
        },
        "patients_tested": len(test.y),
        "share_benign": float(test.y.mean()),
        "accuracy_together_without_privacy": accuracy(mean_of_rounds(consortium, num_rounds=num_rounds)),
        "accuracy_together": joint.test_accuracy,
        "epsilon": epsilon,
        "delta": privacy.target_delta,
        "noise_multiplier": privacy.noise_multiplier,
        "rounds": joint.num_commits,
        "reports": list(joint.num_reports),
    }


@click.command()
@click.option("--rounds", "num_rounds", type=click.IntRange(1, 100), default=4, show_default=True)
@click.option(
    "--epsilon",
    type=click.FloatRange(0, min_open=True),
    default=8.0,
    show_default=True,
    help="Per hospital, for all rounds.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of who is in which hospital.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@one_line_errors(SimulationError, CoordinatorError, ValueError)
def main(*, num_rounds: int, epsilon: float, seed: int, as_json: bool) -> None:
    """Train five hospitals' model with masks and differential privacy, and say what each would come to alone.

    Exit codes: 0 trained, 1 failed, 2 wrong usage.

    Example: uv run examples/hospitals/run.py --epsilon 16
    """  # fmt: skip
    values = run(num_rounds=num_rounds, epsilon=epsilon, seed=seed)
    if as_json:
        print_json(values)
        return
    click.echo(
        f"Accuracy on {values['patients_tested']} patients whom no hospital trained on (always 'benign': "
        f"{values['share_benign']:.0%}):"
    )
    for name, hospital in values["hospitals"].items():
        click.echo(f"  {name:16s} alone, {hospital['patients']:3d} patients         {hospital['accuracy_alone']:6.1%}")
    click.echo(f"  all five together, no privacy at all         {values['accuracy_together_without_privacy']:6.1%}")
    click.echo(f"  all five together, masks, epsilon {values['epsilon']:<4g}       {values['accuracy_together']:6.1%}")
    click.echo(
        f"{values['rounds']} rounds. Epsilon {values['epsilon']:g} at delta {values['delta']:g} is per hospital, for whoever sees "
        "the models; the coordinator and the others saw sums of five alone. The noise is drawn anew each time."
    )


if __name__ == "__main__":
    main()
