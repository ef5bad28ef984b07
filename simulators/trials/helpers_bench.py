"""What helpers cost, measured on the real code: sealing, admission, addition, the helpers' rules and answers, opening.

Where a round is large, a few updates are run and the time that grows with their number is scaled, which the row says.
The disk of a helper's book is not measured, nor is waiting.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import numpy as np

from coordinator.helper_mode import HelperMode
from coordinator.sealed_admission import SealedAdmission
from coordinator.sum_mode import Answered, SealedSet
from secure_sum.context import round_context
from secure_sum.helper_rules import answer_as_helper
from secure_sum.helper_shares import SealingOrder, seal_to_helpers
from secure_sum.openings import encode_order, encode_result
from secure_sum.sealed_update import SealedUpdate, encode_sealed_update
from simulators.virtual_trust import VirtualTrust
from wire_protocol.plan import TensorSpec, TrainingPlan
from wire_protocol.privacy_spec import PrivacySpec

__all__ = ["HelpersCost", "measure_helpers"]

_MOST_RUN: Final = 20
"""More updates than this are not run one by one."""
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HelpersCost:
    """One round of helpers mode, any two of three opening. Seconds are CPU seconds of one core."""

    num_values: int
    """d."""
    num_contributors: int
    """n."""
    is_scaled: bool
    """Whether times that grow with n are those of fewer updates, scaled."""
    device_ms: float
    """From the integer update to the bytes that are sent."""
    coordinator_s: float
    """Admission (hash and signature), addition, opening."""
    helper_s: float
    """The busier helper's, which answers for two parts of the masks."""
    up_bytes: int
    """What a device sends."""
    helper_down_bytes: int
    """What a helper fetches, the key directory included."""
    helper_up_bytes: int
    """What it answers."""
    is_exact: bool
    """Whether the opened sum of those that were run is the plain one, bit for bit."""


def measure_helpers(num_values: int, num_contributors: int) -> HelpersCost:
    """Measures one size.

    Args:
        num_values: d.
        num_contributors: n.
    """
    bench = _HelperBench(num_values, num_contributors)
    updates, plain = _updates(num_values, num_contributors)
    names = bench.device_ids[: len(updates)]
    device_s, data = _timed(lambda: [bench.seal(name, update) for name, update in zip(names, updates, strict=True)])
    sealed = dict(zip(names, data, strict=True))
    total = bench.mode.empty()
    admitted: dict[str, SealedUpdate] = {}

    def fold() -> None:
        for name, one in sealed.items():
            admitted[name] = bench.admission.admit(one, device_id=name, round_id=1)
            bench.mode.add(total, admitted[name].payload)
            # The header is what the coordinator keeps of an update for the opening.
            admitted[name].header(name)

    fold_s, _ = _timed(fold)
    sealed_set = bench.sealed_set(admitted, total)
    orders = bench.mode.orders(sealed_set, (), frozenset())
    answers, helper_s = [], []
    for opener_id, order in orders.items():
        rules = bench.trust.helper_rules(opener_id, min_contributors=2)
        spent_s, result = _timed(lambda order=order, rules=rules: answer_as_helper(order, rules, _OneRound()))  # type: ignore[misc]
        helper_s.append(spent_s)
        answers.append(Answered(opener_id=opener_id, order=order, result=result))
    open_s, opened = _timed(lambda: bench.mode.opened(sealed_set, answers))
    scale = num_contributors / len(updates)
    order_bytes = len(encode_order(answers[0].order)) - len(sealed_set.directory)
    return HelpersCost(
        num_values=num_values,
        num_contributors=num_contributors,
        is_scaled=scale > 1,
        device_ms=1e3 * device_s / len(updates),
        coordinator_s=fold_s * scale + open_s,
        helper_s=max(helper_s) * scale,
        up_bytes=len(data[0]),
        helper_down_bytes=int(order_bytes * scale) + len(sealed_set.directory),
        helper_up_bytes=len(encode_result(answers[0].result)),
        is_exact=opened is not None and bool(np.array_equal(opened.total, plain)),
    )


class _OneRound:
    """A set book of one round, in memory: the disk is not measured."""

    def claim(self, context: bytes, set_digest: bytes) -> bool:
        """Takes any set."""
        del context, set_digest
        return True


class _HelperBench:
    """Everybody's keys, and the coordinator's side of a plan with helpers."""

    def __init__(self, num_values: int, num_contributors: int) -> None:
        self.device_ids = [f"d{index:05d}" for index in range(num_contributors)]
        self.trust = VirtualTrust("bench", self.device_ids)
        plan = TrainingPlan(
            batch_size=1, learning_rate=1.0, input_shape=(1,), num_classes=2, weights=(TensorSpec(shape=(num_values,)),),
            privacy=PrivacySpec(
                mode="distributed", clipping_norm=1.0, noise_multiplier=10.0, min_contributors=2, num_rounds=1,
                target_epsilon=8.0, grid_bits=12,
            ),
            confidentiality=self.trust.helper_sums(),
        )  # fmt: skip
        self.mode = HelperMode(plan)
        self.admission = SealedAdmission(
            mode=self.mode,
            population="bench",
            task_id="bench",
            plan_sha256=bytes(32),
            num_values=num_values,
            min_contributors=2,
            registered={name: keys.identity_key for name, keys in self.trust.directory.members.items()},
            directory=self.trust.directory_bytes,
        )

    def seal(self, device_id: str, values: "np.typing.NDArray[np.uint32]") -> bytes:
        """What a device sends."""
        order = SealingOrder(
            context=round_context(population="bench", task_id="bench", plan_sha256=bytes(32), round_id=1),
            device_id=device_id,
            min_contributors=2,
            helpers=tuple((one.device_id, one.box_key) for one in self.trust.helper_sums().helpers),
            num_needed=2,
        )
        sign = self.trust.members[device_id].identity.sign
        return encode_sealed_update(seal_to_helpers(values, order, sign=sign, random_bytes=os.urandom))

    def sealed_set(self, admitted: Mapping[str, SealedUpdate], total: "np.typing.NDArray[np.uint32]") -> SealedSet:
        """What is to be opened."""
        return SealedSet(
            population="bench",
            task_id="bench",
            plan_sha256=bytes(32),
            round_id=1,
            num_values=self.admission.num_values,
            headers=tuple(update.header(name) for name, update in sorted(admitted.items())),
            roster=tuple(self.device_ids),
            total=total,
            payload_of=lambda name: admitted[name].payload,
            directory=self.trust.directory_bytes,
        )


def _updates(
    num_values: int, num_contributors: int
) -> tuple[list["np.typing.NDArray[np.uint32]"], "np.typing.NDArray[np.uint32]"]:
    """The updates that are run, and their plain sum."""
    rng = np.random.default_rng(0)
    num_run = min(num_contributors, _MOST_RUN)
    updates = [rng.integers(-4000, 4000, num_values).astype(np.uint32) for _ in range(num_run)]
    plain = np.zeros(num_values, np.uint32)
    for update in updates:
        plain += update
    return updates, plain


def _timed(act: Callable[[], _T]) -> tuple[float, _T]:
    began = time.process_time()
    result = act()
    return time.process_time() - began, result
