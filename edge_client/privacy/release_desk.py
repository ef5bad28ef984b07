"""The last stop before an update may leave: the owner's rules, the ledger, and the mechanism, in this order.

A result goes in; what comes out may be published. With a private plan that is an integer update, and figures that say
nothing: counts and losses of local data would be a second, unpriced release.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Final

import msgspec

from edge_client.errors import PrivacyRefused
from edge_client.privacy.integer_update import ClipRule, make_integer_update
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.rules import PrivacyRules
from edge_client.privacy.sealing import UpdateSealer, confidentiality_of
from edge_client.training import TrainingJob, TrainingResult
from integer_noise.secure_random import SecureRandom
from wire_protocol.band_matrix import band_price
from wire_protocol.integer_updates import IntegerUpdate, encode_integer_update, flatten_tensors
from wire_protocol.messages import RoundKind
from wire_protocol.plan import TrainingPlan, encode_plan
from wire_protocol.privacy_spec import PrivacySpec
from wire_protocol.private_reports import PRIVATE_METRICS, PRIVATE_NUM_EXAMPLES, PRIVATE_WEIGHT
from wire_protocol.query import Query

__all__ = ["ReleaseDesk", "release_id"]

_ID_HEX: Final = 16
_ROUND: Final = "round/"


class ReleaseDesk:
    """Lets results out, or not.

    Args:
        open_ledger: Opens the ledger; called when the first private job comes, so that a device without any has none.
        rules: The owner's.
        sealer: Seals what goes into a confidential sum; None of a device that cannot, and so takes part in none.
    """

    __slots__ = ("_ledger", "_open_ledger", "_rules", "sealer")

    def __init__(
        self, open_ledger: Callable[[], PrivacyLedger], rules: PrivacyRules, *, sealer: UpdateSealer | None = None
    ) -> None:
        self._open_ledger = open_ledger
        self._ledger: PrivacyLedger | None = None
        self._rules = rules
        self.sealer = sealer

    def check(self, job: TrainingJob) -> None:
        """Refuses a job whose result could not be let out, before it is run.

        Raises:
            PrivacyRefused: The owner's rules do not allow it, or its openers are not to be trusted.
            BudgetExceeded: There is not enough left of the budget.
            StorageError: The ledger cannot be opened, or is damaged.
        """
        spec = job.plan.privacy
        self._check_confidentiality(job)
        if spec is None:
            if self._rules.is_required:
                raise PrivacyRefused("the task has no differential privacy, and privacy.required is set")
            return
        if job.kind is not RoundKind.TRAIN:
            raise PrivacyRefused("figures of a private task's evaluation would be an unpriced release")
        self._check_rules(spec)
        _clip_of(job, spec)
        ledger = self._opened()
        if job.plan.query is not msgspec.UNSET:
            self._check_query(job, job.plan.query, ledger)
        if not ledger.knows(release_id(job)):
            self._check_distance(job, spec)
            self._check_masked_once(job, ledger)
            ledger.refuse_beyond_budget(release_id(job), spec.event(job.plan.num_parameters))

    def release(self, job: TrainingJob, result: TrainingResult) -> TrainingResult:
        """What may be published of a job's result. The same job always gives the same bytes.

        Raises:
            PrivacyRefused: The owner's rules do not allow it.
            BudgetExceeded: There is not enough left of the budget.
            NonFiniteUpdate: The update holds NaN or infinity.
            StorageError: The charge could not be made durable, or the ledger is damaged: nothing may be published.
        """
        self.check(job)
        spec, model_delta = job.plan.privacy, result.model_delta
        if spec is None or model_delta is None:
            return result
        vector = flatten_tensors(model_delta)
        # An answer to a question is of length 1 by itself: the owner's cap is about what was learnt.
        owners_cap = self._rules.max_clipping_norm if job.plan.query is msgspec.UNSET else math.inf
        clip = ClipRule(clipping_norm=_clip_of(job, spec), owners_cap=owners_cap)
        ledger = self._opened()
        payload = ledger.release(
            release_id(job),
            spec.event(len(vector)),
            lambda: self._final_bytes(job, make_integer_update(vector, spec, SecureRandom(), clip)),
        )
        # A device has one assignment at a time: the bytes of an earlier one are asked for no more.
        ledger.drop_payloads_but(release_id(job))
        return TrainingResult(
            model_delta=None,
            private_update=payload,
            num_examples=PRIVATE_NUM_EXAMPLES,
            aggregation_weight=PRIVATE_WEIGHT,
            metrics=PRIVATE_METRICS,
            duration_s=result.duration_s,
        )

    def _check_distance(self, job: TrainingJob, spec: PrivacySpec) -> None:
        """Correlated noise is sized for devices that are rarely enough in it; abandoned rounds count, as everywhere."""
        of_this_plan = f"{_ROUND}{_plan_id(job.plan)}/"
        for entry in self._opened().entries if spec.num_bands > 1 else ():
            if not entry.release_id.startswith(of_this_plan):
                continue
            taken = int(entry.release_id.removeprefix(of_this_plan).partition("/")[0])
            if abs(job.round_id - taken) < spec.num_bands:
                raise PrivacyRefused(
                    f"round {job.round_id} is too near to round {taken}: this task's noise protects a device that takes "
                    f"part in every {spec.num_bands}th round at most"
                )

    def _check_masked_once(self, job: TrainingJob, ledger: PrivacyLedger) -> None:
        """Two updates of one round would be under the same pairwise masks, and their difference under none of these."""
        if confidentiality_of(job.plan) != "masks":
            return
        this_round = f"{_ROUND}{_plan_id(job.plan)}/{job.round_id}/"
        if any(entry.release_id.startswith(this_round) for entry in ledger.entries):
            raise PrivacyRefused(
                f"round {job.round_id} of this task has been masked for before: a coordinator that lost its state begins a "
                "new task"
            )

    def _final_bytes(self, job: TrainingJob, update: IntegerUpdate) -> bytes:
        """What is published: sealed in a confidential task. Made inside the ledger's transaction, once."""
        if job.plan.confidentiality is msgspec.UNSET:
            return encode_integer_update(update)
        return self._sealer().seal(job, update)

    def _sealer(self) -> UpdateSealer:
        if self.sealer is None:
            raise PrivacyRefused(
                "this device has no identity to seal with: enrol it, and have it put into the directory"
            )
        return self.sealer

    def _check_confidentiality(self, job: TrainingJob) -> None:
        way = confidentiality_of(job.plan)
        if way not in self._rules.confidentiality:
            raise PrivacyRefused(
                f"confidentiality {way!r} is not one of privacy.confidentiality {sorted(self._rules.confidentiality)}"
            )
        if way != "none":
            self._sealer().check(job)

    def _opened(self) -> PrivacyLedger:
        if self._ledger is None:
            self._ledger = self._open_ledger()
        return self._ledger

    def _check_query(self, job: TrainingJob, query: Query, ledger: PrivacyLedger) -> None:
        """A question is answered once: two answers with fresh noise would be twice as near the truth."""
        if not self._rules.allow_queries:
            raise PrivacyRefused(f"the query {query.name!r} is not answered: privacy.allow_queries is false")
        given = _answer_id(query)
        if any(entry.release_id.startswith(given) and entry.release_id != release_id(job) for entry in ledger.entries):
            raise PrivacyRefused(f"the query {query.name!r} of {query.period} has been answered before")

    def _check_rules(self, spec: PrivacySpec) -> None:
        rules = self._rules
        if spec.mode not in rules.modes:
            raise PrivacyRefused(f"privacy mode {spec.mode!r} is not one of privacy.modes {sorted(rules.modes)}")
        if spec.mode == "distributed" and spec.min_contributors < rules.min_contributors:
            raise PrivacyRefused(
                f"the task hides a device among {spec.min_contributors}; privacy.min_contributors is "
                f"{rules.min_contributors}"
            )
        effective = spec.noise_multiplier / math.sqrt(band_price(spec.num_bands))
        if not effective >= rules.min_noise_multiplier:
            raise PrivacyRefused(
                f"the task's noise multiplier {effective:g} is below privacy.min_noise_multiplier "
                f"{rules.min_noise_multiplier:g}"
            )


def _clip_of(job: TrainingJob, spec: PrivacySpec) -> float:
    """The clip of a job's round.

    Raises:
        PrivacyRefused: The task's clip is fixed and the assignment names one, or it adapts and the assignment names none,
            or one that the task does not allow.
    """
    adaptive = spec.adaptive_clip
    if adaptive is msgspec.UNSET:
        if job.clipping_norm is not None:
            raise PrivacyRefused("the assignment names a clip, and the task's is fixed")
        return spec.clipping_norm
    if job.clipping_norm is None or not adaptive.allows(job.clipping_norm):
        raise PrivacyRefused(
            f"the assignment names the clip {job.clipping_norm}; this task's is from {adaptive.min_clipping_norm:g} to "
            f"{adaptive.max_clipping_norm:g}"
        )
    return job.clipping_norm


def release_id(job: TrainingJob) -> str:
    """Names what a job releases: one assignment of a round of a plan, or of a question in its period.

    The nonce belongs to it. A coordinator that lost its state begins with round 1 again; were it given the bytes of the
    first round 1, the same share of noise would be in two published sums, and their difference would be rid of it.
    Under a new nonce the device draws new noise and charges it.
    """
    query = job.plan.query
    what = _ROUND if query is msgspec.UNSET else _answer_id(query)
    return f"{what}{_plan_id(job.plan)}/{job.round_id}/{job.nonce.hex()}"


def _answer_id(query: Query) -> str:
    """How the ids of all answers to a question begin, whatever else a plan may say of it."""
    return f"query/{query.name}/{query.period}/"


def _plan_id(plan: TrainingPlan) -> str:
    return hashlib.sha256(encode_plan(plan)).hexdigest()[:_ID_HEX]
