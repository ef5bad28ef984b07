"""One model's releases on one device: from a verified order to a model in use, and back if it does not work.

Moves through `release_table`; what it needs of the world is given to it: slots on disk, a process that checks, the
clock's time. Nothing that arrives makes it raise, and whatever fails, the release in use stays in use.
"""

import collections
import logging
import math
from collections.abc import Callable

from edge_client.errors import CorruptState, ReleaseRefused, StorageError
from edge_client.releases.app_uses import clear_marks, num_broken_uses
from edge_client.releases.check_child import CheckVerdict
from edge_client.releases.compatibility import DeviceFacts, incompatibility
from edge_client.releases.fetch import ReleaseFetch
from edge_client.releases.news import ReleaseNews
from edge_client.releases.piece_file import PieceFile
from edge_client.releases.release_table import ReleaseEvent, ReleaseStage, next_stage
from edge_client.releases.settings import Checks, ReleaseSettings
from edge_client.releases.slots import MODEL_FILE, ModelSlots
from edge_client.releases.trusted import VerifiedModel
from edge_client.releases.unpacking import cheapest, unpack_model
from wire_protocol.release import PackedModel, ReleaseManifest, wanted_release
from wire_protocol.release_report import ReleaseCheck, ReleaseFailure, ReleaseReport, ReleaseState

__all__ = ["ReleaseAgent"]

_LOG = logging.getLogger(__name__)
_RETRY_S = 60.0


class ReleaseAgent:
    """Follows the orders for one model.

    Args:
        population: The population's name.
        device_id: The device's id.
        name: The model's.
        facts: What releases may ask of this device.
        slots: Where they are kept.
        checks: Tries them.
        uniform: ``uniform(low, high)``: spreads retries.
        settings: The owner's.
    """

    def __init__(
        self,
        *,
        population: str,
        device_id: str,
        name: str,
        facts: DeviceFacts,
        slots: ModelSlots,
        checks: Checks,
        uniform: Callable[[float, float], float],
        settings: ReleaseSettings,
    ) -> None:
        self._population = population
        self._device_id = device_id
        self._facts = facts
        self._slots = slots
        self._checks = checks
        self._uniform = uniform
        self._settings = settings
        self._verified: VerifiedModel | None = None
        self._manifest: ReleaseManifest | None = None
        self._packed: PackedModel | None = None
        self._files: tuple[PieceFile, ...] = ()
        self._fetch: ReleaseFetch | None = None
        self._trial_ends_at = math.inf
        self._broken: tuple[ReleaseFailure, str, ReleaseCheck | None] | None = None
        """What was found in the trial, while the disk does not let it be rolled back."""
        self._retry_at = -math.inf
        self._news = ReleaseNews(name)
        self.name = name
        self.stage = ReleaseStage.SETTLED
        self.counts: collections.Counter[str] = collections.Counter()
        """What happened how often, for people: checks, switches, roll-backs, bytes."""
        if slots.record.on_trial:
            # The process died in a trial, for whatever reason: the trial begins anew.
            self.stage = ReleaseStage.TRIAL
            self._trial_ends_at = -math.inf

    @property
    def current(self) -> int:
        """The release in use; 0 for none."""
        return self._slots.record.current

    @property
    def topics(self) -> frozenset[str]:
        """The topics of pieces to follow now."""
        return frozenset() if self._fetch is None else self._fetch.topics

    def next_wakeup(self) -> float:
        """When ``tick`` is due, on the clock of ``now``."""
        due = [self._checks.next_wakeup()]
        if self._fetch is not None:
            due.append(self._fetch.next_wakeup())
        if self.stage is ReleaseStage.TRIAL:
            due.append(self._trial_ends_at)
        if self.stage is ReleaseStage.SETTLED and self._verified is not None:
            due.append(self._retry_at if math.isfinite(self._retry_at) else math.inf)
        return min(due)

    def follow(self, verified: VerifiedModel, now: float) -> None:
        """Takes a verified order; one that is older than what was followed is left (its versions were checked before)."""
        if verified.order.serial < self._slots.record.serial:
            self.counts["old_orders"] += 1
            return
        self._verified = verified
        self._keep_serial(verified.order.serial)
        self._retry_at = -math.inf
        self._look(now)

    def reconnect(self, now: float) -> None:
        """After a new connection: transfers go on, and what was said last is said again."""
        self._news.repeat()
        if self._fetch is not None:
            self._fetch.reconnect(now)

    def take_piece(self, topic: str, payload: bytes, now: float) -> None:
        """Takes what came on a piece's topic."""
        if self._fetch is None:
            self.counts["stray_pieces"] += 1
            return
        self.counts["bytes"] += len(payload)
        try:
            self._fetch.take(topic, payload, now)
        except StorageError as error:
            self._not_kept(error, now)
            return
        if self._fetch.is_complete:
            self._fetched(now)
        else:
            self._fetch.tick(now)

    def tick(self, now: float) -> None:
        """Lets time pass."""
        if self._fetch is not None:
            self._fetch.tick(now)
            if self._fetch.is_complete:
                self._fetched(now)
        verdict = self._checks.poll()
        if verdict is not None:
            self._checked(verdict, now)
        if self.stage is ReleaseStage.TRIAL:
            self._watch(now)
        if self.stage is ReleaseStage.SETTLED and self._verified is not None and now >= self._retry_at:
            self._look(now)

    def pop_report(self) -> ReleaseReport | None:
        """What is to be said now, once."""
        return self._news.pop()

    def stop(self) -> None:
        """Ends what runs."""
        self._checks.stop()

    # -- what is wanted

    def _look(self, now: float) -> None:
        """Compares what is wanted with what is."""
        if self._verified is None:
            return
        order = self._verified.order
        wanted = wanted_release(order, self._device_id, self._facts.tags)
        if self.stage in {ReleaseStage.FETCHING, ReleaseStage.CHECKING}:
            if self._manifest is not None and wanted == self._manifest.number and not order.is_paused:
                return
            self._give_up()
        if self.stage is ReleaseStage.TRIAL:
            if wanted in {self.current, 0} or order.is_paused:
                return
            self._move(ReleaseEvent.WANTED_NO_MORE)
            self._checks.stop()
        self._retry_at = math.inf
        manifest = self._verified.manifests.get(wanted)
        if manifest is None or self._is_refused(wanted):
            return
        try:
            if self._slots.has(wanted) and not self._slots.is_whole(wanted, manifest):
                _LOG.error("release_damaged_on_disk name=%s number=%d", self.name, wanted)
                self.counts["damaged_on_disk"] += 1
                self._slots.drop_damaged(wanted)
        except StorageError as error:
            _LOG.error("release_not_mended name=%s error=%r", self.name, str(error))
            self._retry_at = now + _RETRY_S
            return
        if wanted == self.current and self._slots.record.on_trial:
            self._move(ReleaseEvent.STILL_ON_TRIAL)
            self._begin_trial(now)
        elif wanted == self.current:
            self._say(ReleaseState.SETTLED, wanted)
        elif not order.is_paused:
            self._begin(wanted, manifest, now)

    def _is_refused(self, wanted: int) -> bool:
        """Whether a release failed here before; says so again, also of one that is in use for want of another."""
        reason = self._slots.record.refused.get(str(wanted))
        if reason is None:
            return False
        failure, _, detail = reason.partition(": ")
        self._say(ReleaseState.FAILED, wanted, failure=ReleaseFailure(failure), detail=detail)
        return True

    def _begin(self, wanted: int, manifest: ReleaseManifest, now: float) -> None:
        self._manifest = manifest
        if self._slots.has(wanted):
            self._move(ReleaseEvent.ORDERED_AGAIN)
            self._checks.start(self._slots.path(wanted))
            return
        why = incompatibility(manifest, self._facts, current=self._slots.manifest(self.current))
        if why:
            # Not remembered: a new runtime or more memory may change it.
            self._say(ReleaseState.FAILED, wanted, failure=ReleaseFailure.INCOMPATIBLE, detail=why)
            return
        self._move(ReleaseEvent.ORDERED)
        self._say(ReleaseState.FETCHING, wanted)
        self._begin_fetch(manifest, now)

    def _begin_fetch(self, manifest: ReleaseManifest, now: float) -> None:
        # Damaged bytes would make a difference to them look like a bad release.
        own = self._slots.manifest(self.current) if self._slots.is_whole(self.current) else None
        own_sha256 = "" if own is None else own.model.sha256.hex()
        self._packed = cheapest(manifest, has_base=lambda sha256: sha256 == own_sha256)
        refs = (manifest.model if self._packed is None else self._packed.blob, manifest.golden.blob)
        try:
            self._files = tuple(PieceFile(self._slots.fetching / ref.sha256.hex(), ref) for ref in refs)
        except StorageError as error:
            self._not_kept(error, now)
            return
        self._fetch = ReleaseFetch(
            population=self._population,
            files=self._files,
            uniform=self._uniform,
            window=self._settings.window,
            max_bytes_per_s=self._settings.max_bytes_per_s,
        )
        if self._fetch.is_complete:
            self._fetched(now)
        else:
            self._fetch.tick(now)

    # -- what has come

    def _fetched(self, now: float) -> None:
        manifest, fetch = self._manifest, self._fetch
        if manifest is None or fetch is None:
            return
        self.counts["pieces_repeated"] += fetch.num_repeated
        self.counts["pieces_bad"] += fetch.num_bad
        self._fetch = None
        try:
            data, golden = (file.read() for file in self._files)
            if self._packed is not None:
                base = self._slots.path(self.current) / MODEL_FILE if self._packed.base_sha256 else None
                data = unpack_model(data, manifest.model, base=None if base is None else base.read_bytes())
            self._slots.put(manifest, model=data, golden=golden)
        except ReleaseRefused as error:
            self._move(ReleaseEvent.FETCHED)
            self._fail(ReleaseFailure.DAMAGED, str(error), None)
            return
        except (CorruptState, StorageError, OSError) as error:
            self._not_kept(error, now)
            return
        self._move(ReleaseEvent.FETCHED)
        self._slots.drop_fetched()
        self._checks.start(self._slots.path(manifest.number))

    def _checked(self, verdict: CheckVerdict, now: float) -> None:
        self.counts["checks"] += 1
        if self.stage is ReleaseStage.TRIAL:
            if verdict.failure is not None:
                self._roll_back(verdict.failure, verdict.detail, verdict.check, now)
            return
        manifest = self._manifest
        if self.stage is not ReleaseStage.CHECKING or manifest is None:
            return
        if verdict.failure is not None:
            self._fail(verdict.failure, verdict.detail, verdict.check)
            return
        try:
            clear_marks(self._slots.current_path.parent)
            self._slots.switch(manifest.number, on_trial=True)
        except StorageError as error:
            self._not_kept(error, now)
            return
        self.counts["switches"] += 1
        self._move(ReleaseEvent.CHECK_PASSED)
        self._begin_trial(now)
        self._say(ReleaseState.TRIAL, manifest.number, check=verdict.check)

    def _begin_trial(self, now: float) -> None:
        """Watches the release in use: once more through the stable path, then the apps, until its time is over."""
        self._trial_ends_at = now + self._settings.trial_s
        self._broken = None
        self._checks.start(self._slots.current_path)

    def _watch(self, now: float) -> None:
        if self._trial_ends_at == -math.inf:
            self._begin_trial(now)
        if self._broken is not None:
            if now >= self._trial_ends_at:
                self._roll_back(*self._broken, now)
            return
        broken = num_broken_uses(self._slots.current_path.parent, self.current)
        if broken >= self._settings.max_app_crashes:
            self._roll_back(ReleaseFailure.CRASHED, f"{broken} apps died on their first answers", None, now)
        elif now >= self._trial_ends_at:
            self._settle_trial(now)

    def _settle_trial(self, now: float) -> None:
        verdict = self._checks.poll()
        if verdict is not None and verdict.failure is not None:
            self._roll_back(verdict.failure, verdict.detail, verdict.check, now)
            return
        if math.isfinite(self._checks.next_wakeup()):
            self._trial_ends_at = now + 1.0  # its second check is not over
            return
        try:
            self._slots.settle()
        except StorageError as error:
            _LOG.error("release_not_settled name=%s error=%r", self.name, str(error))
            self._trial_ends_at = now + _RETRY_S
            return
        self._move(ReleaseEvent.TRIAL_PASSED)
        self._say(ReleaseState.SETTLED, self.current, check=self._news.last_check)

    def _roll_back(self, failure: ReleaseFailure, detail: str, check: ReleaseCheck | None, now: float) -> None:
        bad = self.current
        self._checks.stop()
        try:
            self._slots.roll_back(f"{failure.value}: {detail}")
        except StorageError as error:
            _LOG.error("release_not_rolled_back name=%s error=%r", self.name, str(error))
            self._broken = (failure, detail, check)
            self._trial_ends_at = now + _RETRY_S
            return
        self._broken = None
        clear_marks(self._slots.current_path.parent)
        self.counts["roll_backs"] += 1
        self._move(ReleaseEvent.TRIAL_FAILED)
        self._say(ReleaseState.FAILED, bad, failure=failure, detail=detail, check=check)

    def _fail(self, failure: ReleaseFailure, detail: str, check: ReleaseCheck | None) -> None:
        """The release does not work here; it never was in use."""
        number = 0 if self._manifest is None else self._manifest.number
        self._move(ReleaseEvent.CHECK_FAILED)
        self._slots.drop_fetched()
        try:
            if number != self.current:
                self._slots.refuse(number, f"{failure.value}: {detail}")
            self._slots.prune()
        except StorageError as error:
            _LOG.error("release_not_refused name=%s error=%r", self.name, str(error))
        self._say(ReleaseState.FAILED, number, failure=failure, detail=detail, check=check)

    def _not_kept(self, error: Exception, now: float) -> None:
        """The disk refuses: tried again later; nothing of what is in use has changed."""
        _LOG.error("release_not_kept name=%s error=%r", self.name, str(error))
        self._fetch = None
        self.counts["not_kept"] += 1
        self._move(ReleaseEvent.NOT_KEPT)
        self._retry_at = now + self._uniform(0.5 * _RETRY_S, _RETRY_S)

    def _give_up(self) -> None:
        self._fetch = None
        self._checks.stop()
        self._move(ReleaseEvent.WANTED_NO_MORE)

    def _keep_serial(self, serial: int) -> None:
        try:
            self._slots.note_serial(serial)
        except StorageError as error:
            _LOG.error("order_not_noted name=%s error=%r", self.name, str(error))

    def _move(self, event: ReleaseEvent) -> None:
        before, self.stage = self.stage, next_stage(self.stage, event)
        _LOG.info(
            "release_moved name=%s from=%s to=%s event=%s", self.name, before.value, self.stage.value, event.value
        )

    def _say(
        self,
        state: ReleaseState,
        number: int,
        *,
        failure: ReleaseFailure | None = None,
        detail: str = "",
        check: ReleaseCheck | None = None,
    ) -> None:
        if failure is not None:
            _LOG.error(
                "release_failed name=%s number=%d failure=%s detail=%r", self.name, number, failure.value, detail
            )
        serial = self._slots.record.serial
        self._news.say(state, number, serial=serial, current=self.current, failure=failure, detail=detail, check=check)
