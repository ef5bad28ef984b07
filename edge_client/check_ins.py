"""When a device checks in, and with what: the task it knows, its nonce, and how long it waits. No I/O."""

import math
from collections.abc import Callable

from broker_link.backoff import FullJitterBackoff
from edge_client.settings import AgentSettings
from wire_protocol.messages import CheckIn, Refusal, TaskAnnouncement
from wire_protocol.model_contract import CONTRACT_VERSION

__all__ = ["CheckIns"]


class CheckIns:
    """Pace steering as seen by one device.

    Args:
        settings: Waiting times.
        uniform: ``uniform(low, high)``: the randomness of the waiting times.
        token: Makes the 16 bytes of a nonce.
    """

    __slots__ = ("_failure_backoff", "_nonce", "_repeat_backoff", "_settings", "_token", "_uniform", "due_at", "task")

    def __init__(
        self, *, settings: AgentSettings, uniform: Callable[[float, float], float], token: Callable[[], bytes]
    ) -> None:
        self._settings = settings
        self._uniform = uniform
        self._token = token
        self._nonce = b""
        self._repeat_backoff = FullJitterBackoff(
            base_s=settings.answer_backoff_s, cap_s=settings.answer_backoff_cap_s, uniform=uniform
        )
        self._failure_backoff = FullJitterBackoff(
            base_s=settings.failure_backoff_s, cap_s=settings.failure_backoff_cap_s, uniform=uniform
        )
        self.task: TaskAnnouncement | None = None
        """What the population works on, if the coordinator has said so."""
        self.due_at = math.inf
        """When the next check-in, or its repetition, is due."""

    def is_answered_by(self, check_in: bytes) -> bool:
        """Whether this is the nonce of the last check-in."""
        return check_in == self._nonce

    def is_for_task(self, task_id: str) -> bool:
        """Whether this is the task announced last."""
        return self.task is not None and self.task.task_id == task_id

    def set_task(self, task: TaskAnnouncement | None, now: float) -> None:
        """Another task, or none any more: check in for it after a random wait in its window."""
        self.task = task
        self.due_at = math.inf if task is None else now + self._spread_s(task)

    def task_repeated(self, task: TaskAnnouncement, now: float) -> None:
        """The same task once more, after a reconnection: ours or the coordinator's, and either may have lost the check-in."""
        self.task = task
        self.due_at = min(self.due_at, now + self._spread_s(task))

    def message(self, task: TaskAnnouncement, now: float, *, client_version: str) -> CheckIn:
        """The check-in, and when to repeat it. ``renew`` first unless it is a repetition."""
        self.due_at = now + self._settings.answer_timeout_s + self._repeat_backoff.next_wait_s()
        return CheckIn(
            nonce=self._nonce,
            task_id=task.task_id,
            client_version=client_version,
            contract_version=CONTRACT_VERSION,
        )

    def renew(self) -> None:
        """Begins a new check-in with a new nonce."""
        self._nonce = self._token()
        self._repeat_backoff.reset()

    def refused(self, refusal: Refusal, now: float) -> None:
        """Waits a random time in the window that the coordinator named, within the device's own bounds."""
        wait_s = self._uniform(*sorted((refusal.retry_min_s, refusal.retry_max_s)))
        self._wait(now, max(wait_s, self._settings.min_refused_wait_s))

    def round_over(self, now: float, *, retry_after_s: float = 0.0) -> None:
        """Waits as long as the receipt asks, and a little random time."""
        self._wait(now, retry_after_s + self._uniform(*self._settings.rejoin_window_s))

    def report_counted(self) -> None:
        """This device can finish rounds after all."""
        self._failure_backoff.reset()

    def round_failed(self, now: float, *, retry_after_s: float = 0.0) -> None:
        """This device could not finish: waits longer each time, so that a misfit does not take every cohort's place."""
        self._wait(now, max(self._failure_backoff.next_wait_s(), self._settings.min_refused_wait_s, retry_after_s))

    def _wait(self, now: float, wait_s: float) -> None:
        self.due_at = now + min(wait_s, self._settings.max_wait_s)

    def _spread_s(self, task: TaskAnnouncement) -> float:
        return min(self._uniform(*sorted(task.check_in_after_s)), self._settings.max_wait_s)
