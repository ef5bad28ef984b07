"""The session is a table: nothing moves outside it."""

import itertools

import pytest

from edge_client.errors import IllegalTransition
from edge_client.session import SESSION_TRANSITIONS, DeviceSession, SessionEvent, SessionState

ALL_MOVES = list(itertools.product(SessionState, SessionEvent))


@pytest.mark.parametrize(
    ("state", "event"), [move for move in ALL_MOVES if move not in SESSION_TRANSITIONS], ids=lambda part: part.name
)
def test_every_move_outside_the_table_raises_and_changes_nothing(state, event):
    session = DeviceSession()
    session.state = state
    with pytest.raises(IllegalTransition, match=event.name):
        session.move(event)
    assert session.state is state


def test_every_state_is_reached_from_idle_and_leads_back_to_it():
    def reach(start, arrows):
        seen, todo = {start}, [start]
        while todo:
            state = todo.pop()
            for source, target in arrows:
                if source is state and target not in seen:
                    seen.add(target)
                    todo.append(target)
        return seen

    arrows = [(source, target) for (source, _), target in SESSION_TRANSITIONS.items()]
    assert reach(SessionState.IDLE, arrows) == set(SessionState)
    assert reach(SessionState.IDLE, [(target, source) for source, target in arrows]) == set(SessionState)


def test_every_event_moves_something():
    assert {event for _, event in SESSION_TRANSITIONS} == set(SessionEvent)


def test_every_state_of_a_round_can_be_closed_and_superseded():
    working = {SessionState.ASSIGNED, SessionState.TRAINING, SessionState.REPORTING}
    for event in (SessionEvent.ROUND_CLOSED, SessionEvent.TASK_CHANGED):
        assert {state for state in working if SESSION_TRANSITIONS.get((state, event)) is SessionState.IDLE} == working
