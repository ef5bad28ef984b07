"""Asks a fleet over a real broker, once per name and period, and keeps the answer.

Question and answer are a file in the state directory: whoever asks the same again gets the same numbers, and no device is
charged a second time. What was asked under a name and period can afterwards not be asked differently.
"""

import dataclasses
import threading
from pathlib import Path

from coordinator.errors import InvalidConfig
from coordinator.private_sum import check_private_rounds
from coordinator.query_round import answer_in, query_aggregator
from coordinator.question_files import KeptQuestion, keep_question, question_file, read_question
from coordinator.round_loop import RoundSchedule, RoundSummary
from coordinator.server import ServerConfig, open_task_state, run_rounds
from coordinator.task_bundle import TaskBundle
from wire_protocol.query import Query
from wire_protocol.query_answer import QueryAnswer

__all__ = ["AskedOnce", "QueryOutcome", "query_schedule"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QueryOutcome:
    """What came of a question."""

    answer: QueryAnswer | None
    """None if too few devices answered, or the run was stopped."""
    is_over: bool
    """Whether the round has ended; a run that was stopped goes on when it is started again."""
    abandon_reason: str | None
    """Why there is no answer."""
    was_known: bool
    """Whether the answer was there before: no device was asked."""


def query_schedule() -> RoundSchedule:
    """One round, and no second try: devices that answered the first would refuse it."""
    return RoundSchedule(num_commits=1, max_abandoned_in_a_row=1)


class AskedOnce:
    """One question and its answer's file.

    Args:
        query: The question.
        state_dir: The coordinator's state directory.

    Raises:
        InvalidConfig: Something else was asked under this name and period, or the file is damaged.
    """

    def __init__(self, query: Query, state_dir: Path) -> None:
        self._query = query
        self._state_dir = state_dir
        self.path = question_file(state_dir, query)
        self.known = self._read()
        """The answer, if it was given before."""

    def ask(self, config: ServerConfig, *, bundle: TaskBundle, stop: threading.Event) -> QueryOutcome:
        """Runs the round, or returns the answer that is known.

        Args:
            config: Broker, population, policy; its schedule is ``query_schedule()``.
            bundle: The question's task: ``query_bundle``, made confidential or not.
            stop: Set from anywhere to end early.

        Raises:
            InvalidConfig: The round could end with too few answers for the noise, or too many for the sum's words.
            CoordinatorError: State or journal cannot be used.
            OSError: Question or answer cannot be written; started again, the answer is taken from the stored state.
        """
        if self.known is not None:
            return QueryOutcome(answer=self.known, is_over=True, abandon_reason=None, was_known=True)
        check_private_rounds(bundle.plan, config.policy)
        keep_question(self._state_dir, KeptQuestion(query=self._query))
        abandoned: list[str] = []

        def on_round(summary: RoundSummary, _state: object) -> None:
            if summary.abandon_reason is not None:
                abandoned.append(summary.abandon_reason)

        loop = run_rounds(
            config,
            bundle=bundle,
            aggregator=query_aggregator(bundle.plan),
            task=open_task_state(self._state_dir, bundle),
            on_round=on_round,
            stop=stop,
        )
        if not loop.num_commits:
            # A loop that opened no round at all was abandoned in an earlier life.
            reason = abandoned[0] if abandoned else "asked before, without an answer" if loop.is_done else None
            return QueryOutcome(answer=None, is_over=loop.is_done, abandon_reason=reason, was_known=False)
        answer = answer_in(loop.state, self._query)
        keep_question(self._state_dir, KeptQuestion(query=self._query, answer=answer))
        return QueryOutcome(answer=answer, is_over=True, abandon_reason=None, was_known=False)

    def _read(self) -> QueryAnswer | None:
        if not self.path.exists():
            return None
        kept = read_question(self.path)
        if kept.query != self._query:
            raise InvalidConfig(
                f"{self._query.name!r} of {self._query.period} was asked with other settings ({self.path}): "
                "ask under another --name or --period"
            )
        return kept.answer
