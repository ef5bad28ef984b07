"""Rollouts: every change is one signed order, and stands in the book with its reason.

What is wanted is written into the book first, then signed; a death in between is mended by the next `step`, which
signs what the book's last entry asks for. Nothing here talks to a broker; `station` publishes what the repository holds.
"""

import dataclasses
import itertools
import secrets
from collections.abc import Callable, Sequence

import msgspec

from coordinator.errors import ReleaseError
from coordinator.releases.gates import (
    DEFAULT_STAGES,
    Decision,
    Evidence,
    GateRules,
    Verdict,
    compare_evaluations,
    decide,
    evidence_of,
)
from coordinator.releases.repository import ReleaseRepository
from coordinator.releases.rollout_book import Rollout, RolloutBook, RolloutStep
from coordinator.releases.rollout_table import RolloutEvent, RolloutState, next_state
from wire_protocol.release import WHOLE_FLEET_PERMILLE, RolloutOrder, is_in_share

__all__ = ["Rollouts", "check_stages"]


def check_stages(stages: Sequence[int]) -> tuple[int, ...]:
    """Stages in thousandths of the fleet, checked.

    Raises:
        ReleaseError: They do not rise to 1000.
    """
    found = tuple(stages)
    is_rising = all(low < high for low, high in itertools.pairwise(found))
    if not found or found[0] < 1 or found[-1] != WHOLE_FLEET_PERMILLE or not is_rising:
        raise ReleaseError("stages must rise and end with 100 %: for example 1,5,25,100")
    return found


class Rollouts:
    """What operators and the station do with rollouts.

    Args:
        repository: Signs orders.
        book: Remembers.
        now: Seconds since 1970 UTC.
    """

    def __init__(self, repository: ReleaseRepository, book: RolloutBook, *, now: Callable[[], float]) -> None:
        self._repository = repository
        self._book = book
        self._now = now

    def start(
        self,
        name: str,
        candidate: int,
        *,
        stages: Sequence[int] = DEFAULT_STAGES,
        rules: GateRules | None = None,
        tags: Sequence[str] = (),
    ) -> Rollout:
        """Begins a rollout: the first stage is ordered.

        Raises:
            ReleaseError: The release is not signed, is the baseline already, does worse in federated evaluation, or
                another rollout of the model is under way.
        """
        with self._repository.locked():
            rollout = self.plan(name, candidate, stages=stages, rules=rules, tags=tags)
            self._repository.check_can_order()
            self._book.add(rollout)
            self._sign(rollout)
            return rollout

    def plan(
        self,
        name: str,
        candidate: int,
        *,
        stages: Sequence[int] = DEFAULT_STAGES,
        rules: GateRules | None = None,
        tags: Sequence[str] = (),
    ) -> Rollout:
        """What ``start`` would do; raises as it does."""
        rules = rules or GateRules()
        manifest = self._repository.manifest(name, candidate)
        if self._book.open_rollout(name) is not None:
            raise ReleaseError(f"a rollout of {name} is under way: complete or abort it first")
        order = self._repository.orders().get(name)
        baseline = 0 if order is None else order.baseline
        if candidate == baseline:
            raise ReleaseError(f"the whole fleet is ordered to run {name} {candidate} already")
        forbidden = compare_evaluations(
            manifest, self._repository.manifest(name, baseline) if baseline else None, rules
        )
        if forbidden:
            raise ReleaseError(forbidden)
        stages = check_stages(stages)
        now = self._now()
        return Rollout(
            name=name,
            candidate=candidate,
            baseline=baseline,
            stages=stages,
            rules=rules,
            salt=secrets.token_hex(8),
            tags=tuple(tags),
            stage_began_at=now,
            steps=(RolloutStep(at=now, what="started", permille=stages[0]),),
        )

    def check(self, name: str, verb: str) -> Rollout:
        """What ``pause``, ``resume`` or ``abort`` would leave; raises as they do, and changes nothing."""
        event = {"pause": RolloutEvent.PAUSED, "resume": RolloutEvent.RESUMED, "abort": RolloutEvent.ABORTED}[verb]
        self._repository.check_can_order()
        _, rollout = self._open(name)
        return msgspec.structs.replace(rollout, state=next_state(rollout.state, event))

    def pause(self, name: str, reason: str = "by the operator") -> Rollout:
        """Stops a rollout where it is. Raises ReleaseError if none is running."""
        return self._change(name, RolloutEvent.PAUSED, reason)

    def resume(self, name: str, reason: str = "by the operator") -> Rollout:
        """Goes on with the present stage, whose time begins anew. Raises ReleaseError if none is paused."""
        return self._change(name, RolloutEvent.RESUMED, reason)

    def abort(self, name: str, reason: str = "by the operator") -> Rollout:
        """Orders everybody back to the baseline. Raises ReleaseError if none is under way."""
        return self._change(name, RolloutEvent.ABORTED, reason)

    def roll_back(self, name: str, number: int) -> Rollout:
        """Orders the whole fleet to run an earlier release, at once: a new order with old bytes.

        Raises:
            ReleaseError: It is not signed (or withdrawn).
        """
        with self._repository.locked():
            self._repository.manifest(name, number)
            self._repository.check_can_order()
            if self._book.open_rollout(name) is not None:
                self._change(name, RolloutEvent.ABORTED, f"rolled back to {number}")
            order, now = self._repository.orders().get(name), self._now()
            rollout = Rollout(
                name=name,
                candidate=number,
                baseline=0 if order is None else order.baseline,
                stages=(WHOLE_FLEET_PERMILLE,),
                rules=GateRules(),
                salt=secrets.token_hex(8),
                state=RolloutState.COMPLETE,
                stage_began_at=now,
                steps=(RolloutStep(at=now, what="rolled_back", permille=WHOLE_FLEET_PERMILLE),),
            )
            self._book.add(rollout)
            self._sign(rollout)
            return rollout

    def evidence(self, rollout: Rollout) -> Evidence:
        """What the fleet has said about a rollout's candidate."""
        reports = self._book.reports(rollout.name)
        found = evidence_of(list(reports.values()), candidate=rollout.candidate, baseline=rollout.baseline)
        if not rollout.stage:
            return found
        new = [report for device_id, report in reports.items() if _came_with_stage(rollout, device_id)]
        concluded = evidence_of(new, candidate=rollout.candidate, baseline=rollout.baseline).num_concluded
        # A small fleet's stage may have fewer devices than the rules want; who has a tag only the device knows.
        needed = rollout.rules.min_devices if rollout.tags else min(rollout.rules.min_devices, len(new))
        return dataclasses.replace(found, num_new_concluded=concluded, num_new_needed=needed)

    def step(self, name: str) -> Decision | None:
        """Does what the gates say about the rollout under way; None if none is running.

        Raises:
            ReleaseError: The order cannot be signed; what is wanted stands in the book, and the next step tries again.
        """
        with self._repository.locked():
            every = self._book.rollouts(name)
            if every:
                self._sign(every[-1][1])
            found = self._book.open_rollout(name)
            if found is None or found[1].state is not RolloutState.RUNNING:
                return None
            rollout = found[1]
            decision = decide(self.evidence(rollout), rollout.rules, stage_age_s=self._now() - rollout.stage_began_at)
            is_last = rollout.stage == len(rollout.stages) - 1
            match decision.verdict:
                case Verdict.ADVANCE:
                    event = RolloutEvent.LAST_STAGE_PASSED if is_last else RolloutEvent.STAGE_PASSED
                    self._change(name, event, decision.reason)
                case Verdict.PAUSE:
                    self._change(name, RolloutEvent.GATE_PAUSED, decision.reason)
                case Verdict.ABORT:
                    self._change(name, RolloutEvent.GATE_ABORTED, decision.reason)
                case Verdict.WAIT:
                    pass
            return decision

    def _change(self, name: str, event: RolloutEvent, reason: str) -> Rollout:
        with self._repository.locked():
            rollout_id, rollout = self._open(name)
            state = next_state(rollout.state, event)
            stage = rollout.stage + 1 if event is RolloutEvent.STAGE_PASSED else rollout.stage
            is_fresh = event in {RolloutEvent.STAGE_PASSED, RolloutEvent.RESUMED}
            changed = msgspec.structs.replace(
                rollout, state=state, stage=stage, stage_began_at=self._now() if is_fresh else rollout.stage_began_at
            )
            step = RolloutStep(at=self._now(), what=event.value, permille=changed.permille, reason=reason)
            changed = msgspec.structs.replace(changed, steps=(*rollout.steps, step))
            self._book.update(rollout_id, changed)
            self._sign(changed)
            return changed

    def _open(self, name: str) -> tuple[int, Rollout]:
        found = self._book.open_rollout(name)
        if found is None:
            raise ReleaseError(f"no rollout of {name} is under way; flockwise rollout status shows what was")
        return found

    def _sign(self, rollout: Rollout) -> None:
        """Signs the order that a rollout's state asks for, unless it is signed already."""
        is_over = not rollout.is_open
        baseline = rollout.candidate if rollout.state is RolloutState.COMPLETE else rollout.baseline
        known = self._repository.orders().get(rollout.name)
        wanted = RolloutOrder(
            name=rollout.name,
            serial=1 if known is None else known.serial,
            baseline=baseline,
            candidate=0 if is_over else rollout.candidate,
            permille=0 if is_over else rollout.permille,
            salt=rollout.salt,
            tags=rollout.tags,
            is_paused=rollout.state is RolloutState.PAUSED,
        )
        if known is not None and wanted == known:
            return
        serial = 1 if known is None else known.serial + 1
        self._repository.set_order(msgspec.structs.replace(wanted, serial=serial))


def _came_with_stage(rollout: Rollout, device_id: str) -> bool:
    """Whether a device is in a rollout's present stage, and was not in the one before."""
    before = rollout.stages[rollout.stage - 1]
    return is_in_share(rollout.salt, device_id, rollout.permille) and not is_in_share(rollout.salt, device_id, before)
