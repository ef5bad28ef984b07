"""The coordinator without I/O: link events and time in, actions out.

Runs one round at a time over the devices of one population: check-ins wait, a cohort is drawn, assignments go out,
reports come in and are admitted or rejected, the round ends. What is *done* with admitted updates is its owner's
(``round_loop``, or a TFF context): it folds them, and says so.
"""

import collections
import random
from collections.abc import Callable, Mapping

from broker_link.link import Incoming, LinkEvent, LinkUp
from coordinator.actions import Action, CohortAssigned, Publish, RoundEnded, RoundOrder, to_device
from coordinator.admission import AdmissionPolicy
from coordinator.assignments import Assignments
from coordinator.blob_shelf import BlobShelf
from coordinator.completion import CompletionHistory
from coordinator.errors import IllegalTransition
from coordinator.intake import Answer, ReportIntake
from coordinator.population import Population, Waiting
from coordinator.round_policy import RoundPolicy
from coordinator.round_table import MemberState, Round, RoundEvent, RoundState
from coordinator.task_bundle import TaskBundle
from coordinator.uploads import Uploads
from wire_protocol.errors import OversizedMessage, UnsupportedVersion, WireError
from wire_protocol.identifiers import checked_identifier
from wire_protocol.messages import (
    CheckIn,
    DeviceHealth,
    DeviceStatus,
    Message,
    Piece,
    PieceListRequest,
    PieceRequest,
    Refusal,
    RefusalReason,
    RejectionReason,
    Report,
    RoundClosed,
    TaskAnnouncement,
    Withdrawal,
    decode_message,
    encode_message,
    message_kind,
)
from wire_protocol.model_contract import CONTRACT_VERSION
from wire_protocol.plan import TrainingPlan
from wire_protocol.topics import parse_device_topic, population_round, population_task, status_filter, up_filter

__all__ = ["FleetCoordinator"]

_UP_TYPES: tuple[type[Message], ...] = (
    CheckIn,
    PieceListRequest,
    PieceRequest,
    Piece,
    Report,
    Withdrawal,
    DeviceHealth,
)
_UP_KINDS: Mapping[str, type[Message]] = {message_kind(kind): kind for kind in _UP_TYPES}
_LONG_RETRY_S = (3600.0, 7200.0)


class FleetCoordinator:
    """Everything the coordinator says to and hears from one population.

    Args:
        population: Its name; part of every topic.
        bundle: The exported task: plan and model file.
        policy: Goals and time limits of rounds.
        admission: Bounds on one device's contribution.
        upload_budget_bytes: Memory for updates on their way in.
        rng: Draws cohorts: ``random.SystemRandom()`` in production.
        token: Makes 16-byte nonces: ``os.urandom`` in production.
    """

    def __init__(
        self,
        *,
        population: str,
        bundle: TaskBundle,
        policy: RoundPolicy,
        rng: random.Random,
        token: Callable[[int], bytes],
        admission: AdmissionPolicy | None = None,
        upload_budget_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        self._population_name = checked_identifier(population, kind="population")
        self._bundle = bundle
        self._policy = policy
        self._rng = rng
        self._token = token
        self.population = Population(policy)
        self.completion = CompletionHistory(policy)
        self.shelf = BlobShelf()
        self.uploads = Uploads(budget_bytes=upload_budget_bytes)
        self.intake = ReportIntake(plan=bundle.plan, policy=admission or AdmissionPolicy(), uploads=self.uploads)
        self.num_undecodable: collections.Counter[str] = collections.Counter()
        self._assignments = Assignments(population, bundle, self.shelf)
        self._round: Round | None = None
        self._only: frozenset[str] | None = None
        self._wanted = 0
        self._last_round_s = policy.report_timeout_s

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The topic filters the coordinator listens to."""
        return up_filter(self._population_name), status_filter(self._population_name)

    @property
    def policy(self) -> RoundPolicy:
        """Goals and time limits of rounds."""
        return self._policy

    @property
    def plan(self) -> TrainingPlan:
        """What devices are asked to run."""
        return self._bundle.plan

    @property
    def current_round(self) -> Round | None:
        """The round under way, if any."""
        return self._round

    def next_wakeup(self) -> float | None:
        """When ``tick`` must be called at the latest, on the clock of ``now``."""
        return None if self._round is None or self._round.state is RoundState.AGGREGATING else self._round.deadline

    def open_round(self, order: RoundOrder, *, now: float) -> list[Action]:
        """Opens a round; assignments go out as soon as there are enough devices.

        Raises:
            IllegalTransition: A round is still under way.
        """
        if self._round is not None:
            raise IllegalTransition(f"round {self._round.round_id} is still {self._round.state.value}")
        self._round = Round(round_id=order.round_id, kind=order.kind, policy=self._policy, now=now)
        self._only = order.only
        # Fixed here: it is asked for at every check-in, and costs more than handling one.
        self._wanted = len(order.only) if order.only is not None else self._cohort_size()
        self._assignments.offer(order.checkpoint, order.clipping_norm)
        return self._select(now)

    def remember(self, round_: Round) -> None:
        """Takes back a finished round of an earlier life, so that its devices get the same answers again."""
        self.intake.add_round(round_)

    def restore_round(
        self, round_: Round, checkpoint: bytes, *, now: float, clipping_norm: float | None = None
    ) -> list[Action]:
        """Goes on with a round of an earlier life, its cohort and counted reports as they were.

        Raises:
            IllegalTransition: A round is under way.
        """
        if self._round is not None:
            raise IllegalTransition(f"round {self._round.round_id} is still {self._round.state.value}")
        self._round = round_
        self._only = None
        self.intake.add_round(round_)
        self._assignments.offer(checkpoint, clipping_norm)
        return self._settle(now)

    def handle(self, event: LinkEvent, *, now: float) -> list[Action]:
        """Takes one link event. Never raises for what a device sent."""
        if isinstance(event, LinkUp):
            return [self._announcement()]
        if isinstance(event, Incoming):
            return self._incoming(event, now)
        return []

    def tick(self, *, now: float) -> list[Action]:
        """Lets time pass: deadlines of selection and reporting."""
        round_ = self._round
        if round_ is None or now < round_.deadline:
            return []
        if round_.state is RoundState.SELECTING:
            return self._select(now)
        return self._settle(now)

    def folded(self, device_id: str, *, now: float) -> list[Action]:
        """Notes that an update handed out by ``Fold`` or ``FoldMetrics`` counts; answers its device."""
        round_ = self._require_round()
        round_.mark(device_id, MemberState.FOLDED)
        if round_.assigned_at is not None:
            self.completion.note_report(now - round_.assigned_at)
        receipt = self.intake.accepted(device_id, round_)
        return [to_device(self._population_name, device_id, receipt), *self._settle(now)]

    def close_round(self, event: RoundEvent, *, now: float) -> list[Action]:
        """Ends the round: its result is stored, or it is given up.

        Args:
            event: RESULT_STORED, AGGREGATION_FAILED or CANCELLED (or any, if the round is over already).
            now: Monotonic time in seconds.

        Returns:
            A notice to those who still train for it, unless they have been told.

        Raises:
            IllegalTransition: No round is under way, or it cannot end so.
        """
        round_ = self._require_round()
        was_reporting = round_.state is RoundState.REPORTING
        if not round_.is_over:
            round_.move(event)
        self.completion.note(round_)
        self._last_round_s = max(1.0, now - round_.opened_at)
        self.uploads.clear()
        self._round = None
        return [self._closed(round_)] if was_reporting else []

    def expel(self, device_id: str, *, now: float) -> list[Action]:
        """Drops a device whose identity has been revoked: its check-in, its assignment, and what came of its report.

        A report that has been handed out to be folded counts: it is in the journal, and a sum gives nothing back.
        """
        self.population.note_presence(device_id, is_online=False)
        self.uploads.discard(device_id)
        round_ = self._round
        if round_ is None or round_.state is not RoundState.REPORTING:
            return []
        member = round_.cohort.get(device_id)
        if member is None or member.state is not MemberState.ASSIGNED:
            return []
        round_.mark(device_id, MemberState.WITHDRAWN)
        return self._settle(now)

    def dismiss(self) -> list[Action]:
        """Refuses everyone that waits: there will be no round for a while."""
        return [self._refuse(waiting, RefusalReason.NO_ROUND) for waiting in self.population.drain()]

    # -- messages from devices

    def _incoming(self, event: Incoming, now: float) -> list[Action]:
        try:
            topic = parse_device_topic(event.topic)
            if topic.direction == "status":
                status = decode_message(event.payload, DeviceStatus)
                self.population.note_presence(topic.device_id, is_online=status.presence == "online")
                return []
            kind = _UP_KINDS.get(topic.kind)
            if kind is None:
                self.num_undecodable["unknown_kind"] += 1
                return []
            message = decode_message(event.payload, kind)
        except WireError as error:
            self._count_undecodable(event.topic, error)
            return []
        return self._dispatch(topic.device_id, message, now)

    def _count_undecodable(self, topic: str, error: WireError) -> None:
        """Bytes that are no message: counted, and as a rejection if they were meant to be a report or its pieces."""
        self.num_undecodable[type(error).__name__] += 1
        if not topic.endswith((f"/{message_kind(Report)}", f"/{message_kind(Piece)}")):
            return
        if isinstance(error, OversizedMessage):
            self.intake.count(RejectionReason.OVERSIZED)
        elif isinstance(error, UnsupportedVersion):
            self.intake.count(RejectionReason.UNSUPPORTED_VERSION)
        else:
            self.intake.count(RejectionReason.MALFORMED)

    def _dispatch(self, device_id: str, message: Message, now: float) -> list[Action]:
        match message:
            case CheckIn():
                return self._check_in(device_id, message, now)
            case Report():
                return self._answer(device_id, self.intake.take_report(device_id, message, now=now), now)
            case Piece():
                return self._answer(device_id, self.intake.take_piece(device_id, message, now=now), now)
            case PieceRequest():
                pieces = self.shelf.pieces(message.sha256, message.indices)
                return [to_device(self._population_name, device_id, piece) for piece in pieces]
            case PieceListRequest():
                piece_list = self.shelf.piece_list(message.sha256)
                return [] if piece_list is None else [to_device(self._population_name, device_id, piece_list)]
            case Withdrawal():
                return self._withdraw(device_id, message, now)
            case DeviceHealth():
                self.population.note_health(device_id, message)
        return []

    def _check_in(self, device_id: str, message: CheckIn, now: float) -> list[Action]:
        waiting = Waiting(device_id=device_id, check_in=message.nonce, since=now)
        if message.contract_version != CONTRACT_VERSION:
            return [self._refuse(waiting, RefusalReason.INCOMPATIBLE_CLIENT)]
        if message.task_id != self._bundle.task_id:
            return [self._refuse(waiting, RefusalReason.UNKNOWN_TASK)]
        if not self.intake.may_report(device_id):
            # On a roster it would keep every other device from sealing.
            return [self._refuse(waiting, RefusalReason.INCOMPATIBLE_CLIENT)]
        round_ = self._round
        if round_ is not None and round_.state is RoundState.REPORTING:
            member = round_.cohort.get(device_id)
            if member is not None and member.state is MemberState.ASSIGNED:
                # The assignment was lost on the way, or the device restarted: it gets the same one again.
                return [self._assignments.message(round_, waiting, member.nonce, now)]
        if not self.population.enqueue(device_id, message.nonce, now=now):
            return [self._refuse(waiting, RefusalReason.POPULATION_FULL)]
        if round_ is not None and round_.state is RoundState.SELECTING:
            return self._select(now)
        return []

    def _withdraw(self, device_id: str, message: Withdrawal, now: float) -> list[Action]:
        round_ = self._round
        member = round_.cohort.get(device_id) if round_ is not None else None
        if round_ is None or member is None or round_.state is not RoundState.REPORTING:
            return []
        if member.nonce != message.nonce or member.state is not MemberState.ASSIGNED:
            return []
        round_.mark(device_id, MemberState.WITHDRAWN)
        self.uploads.discard(device_id)
        return self._settle(now)

    def _answer(self, device_id: str, answer: Answer, now: float) -> list[Action]:
        actions: list[Action] = []
        if answer.receipt is not None:
            actions.append(to_device(self._population_name, device_id, answer.receipt))
        if answer.action is not None:
            actions.append(answer.action)
        return actions + self._settle(now)

    # -- the round

    def _select(self, now: float) -> list[Action]:
        """Draws the cohort if there are enough devices, or if selection has taken long enough."""
        round_ = self._require_round()
        available = self.population.num_eligible(self._only)
        is_late = now >= round_.deadline
        if available < self._wanted and not is_late:
            return []
        if available < self._policy.min_reports:
            round_.move(RoundEvent.SELECTION_FAILED)
            return [RoundEnded(round=round_)]
        drawn = self.population.draw_cohort(self._wanted, rng=self._rng, only=self._only)
        nonces = {waiting.device_id: self._token(16) for waiting in drawn}
        round_.assign(nonces, now=now, report_timeout_s=self.completion.report_timeout_s())
        self.intake.add_round(round_)
        nonces = {device_id: member.nonce for device_id, member in round_.cohort.items()}
        assignments = [self._assignments.message(round_, waiting, nonces[waiting.device_id], now) for waiting in drawn]
        return [CohortAssigned(round=round_), *assignments]

    def _cohort_size(self) -> int:
        """Devices to ask; never more than may wait at a time, or selection could only end by its time-out."""
        return min(self.completion.cohort_size(), self._policy.max_waiting)

    def _settle(self, now: float) -> list[Action]:
        """Ends the round if it can be ended, and tells those still training that it is over."""
        round_ = self._round
        if round_ is None or round_.state is not RoundState.REPORTING:
            return []
        round_.settle(now=now)
        if round_.state is RoundState.REPORTING:
            return []
        return [self._closed(round_), RoundEnded(round=round_)]

    def _require_round(self) -> Round:
        if self._round is None:
            raise IllegalTransition("no round is under way")
        return self._round

    # -- messages to devices

    def _closed(self, round_: Round) -> Publish:
        notice = RoundClosed(round_id=round_.round_id)
        return Publish(topic=population_round(self._population_name), payload=encode_message(notice))

    def _announcement(self) -> Publish:
        offer = self._assignments
        task = TaskAnnouncement(task_id=self._bundle.task_id, plan=offer.plan, model=offer.model)
        return Publish(topic=population_task(self._population_name), payload=encode_message(task), retain=True)

    def _refuse(self, waiting: Waiting, reason: RefusalReason) -> Publish:
        if reason in {RefusalReason.INCOMPATIBLE_CLIENT, RefusalReason.UNKNOWN_TASK}:
            window_s = _LONG_RETRY_S
        else:
            window_s = self.population.retry_window_s(wanted_in_s=self._last_round_s)
        message = Refusal(check_in=waiting.check_in, reason=reason, retry_min_s=window_s[0], retry_max_s=window_s[1])
        return to_device(self._population_name, waiting.device_id, message)
