"""An answer is given once per name and period, and never changes; the command checks before anybody is asked."""

import json
import threading

import msgspec
import pytest
from click.testing import CliRunner

from coordinator.errors import InvalidConfig, StateInUse
from coordinator.private_sum import check_private_rounds
from coordinator.query_round import query_bundle
from coordinator.query_run import AskedOnce
from coordinator.question_files import KeptQuestion, keep_question, read_questions
from coordinator.round_policy import RoundPolicy
from coordinator.state_lock import sole_coordinator
from flockwise.cli import main
from wire_protocol.query import Query
from wire_protocol.query_answer import answer_query

QUERY = Query(
    name="sizes", period="2026-11", kind="histogram", edges=(0.0, 10.0, 20.0), epsilon=0.5, min_contributors=5
)
WORDS = ("--population", "p", "--state-dir", "state", "--name", "sizes", "--period", "2026-11", "--epsilon", "0.5",
         "--min-contributors", "5", "--broker", "mqtt://127.0.0.1:9")  # fmt: skip


@pytest.fixture
def answered(tmp_path):
    answer = answer_query(QUERY, [300, -40], num_reports=6)
    keep_question(tmp_path, KeptQuestion(query=QUERY, answer=answer))
    return tmp_path, answer


def test_an_answer_that_is_known_is_given_again_and_nobody_is_asked(answered):
    state_dir, answer = answered
    outcome = AskedOnce(QUERY, state_dir).ask(None, bundle=None, stop=threading.Event())
    assert outcome.answer == answer
    assert outcome.was_known


@pytest.mark.parametrize("change", [{"epsilon": 0.6}, {"edges": (0.0, 10.0, 21.0)}, {"min_contributors": 6}])
def test_what_was_asked_cannot_be_asked_differently_under_the_same_name(answered, change):
    keep_question(answered[0], KeptQuestion(query=msgspec.structs.replace(QUERY, name="unanswered")))
    with pytest.raises(InvalidConfig, match="other settings"):
        AskedOnce(msgspec.structs.replace(QUERY, name="unanswered", **change), answered[0])
    assert AskedOnce(msgspec.structs.replace(QUERY, name="unanswered"), answered[0]).known is None
    with pytest.raises(InvalidConfig, match="other settings"):
        AskedOnce(msgspec.structs.replace(QUERY, **change), answered[0])
    assert AskedOnce(msgspec.structs.replace(QUERY, period="2026-12", **change), answered[0]).known is None


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"[" * 5000, b"\xff", b'{"query": 1}', b" " * (2 << 20)],
    ids=["empty", "no fields", "deep", "no text", "wrong type", "large"],
)
def test_a_damaged_answer_is_one_clear_error_and_is_kept(answered, damage):
    path = answered[0] / "questions" / "sizes.2026-11.json"
    path.write_bytes(damage)
    with pytest.raises(InvalidConfig, match="move it away"):
        AskedOnce(QUERY, answered[0])
    assert path.read_bytes() == damage


def test_an_answer_to_another_question_is_none(answered):
    other = msgspec.structs.replace(QUERY, epsilon=0.25)
    with pytest.raises(ValueError, match="another question"):
        KeptQuestion(query=other, answer=answered[1])
    keep_question(answered[0], KeptQuestion(query=msgspec.structs.replace(QUERY, name="first")))
    assert [(kept.query.name, kept.answer is None) for kept in read_questions(answered[0])] == [
        ("first", True),
        ("sizes", False),
    ]


def test_a_round_that_could_end_with_too_few_answers_is_refused():
    check_private_rounds(query_bundle(QUERY).plan, RoundPolicy(report_goal=100, min_reports=5, over_selection=1.0))
    with pytest.raises(InvalidConfig, match="needs 5 reports"):
        check_private_rounds(query_bundle(QUERY).plan, RoundPolicy(report_goal=100, min_reports=4, over_selection=1.0))
    with pytest.raises(InvalidConfig, match="32-bit"):
        check_private_rounds(
            query_bundle(QUERY).plan, RoundPolicy(report_goal=10**8, min_reports=5, over_selection=1.0)
        )


@pytest.mark.parametrize(
    ("kind", "settings", "num_cells"),
    [
        ("count", ("--low", "1", "--high", "9"), 1),
        ("mean", ("--low", "1", "--high", "9", "--of", "input_mean", "--column", "3"), 2),
        ("histogram", ("--edges", "0,1,5"), 2),
        ("quantiles", ("--low", "1", "--high", "9", "--bins", "16", "--quantile", "0.9"), 30),
    ],
)
def test_a_dry_run_says_what_an_answer_costs_and_asks_nobody(tmp_path, monkeypatch, kind, settings, num_cells):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["query", kind, *settings, *WORDS, "--dry-run"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert said["num_cells"] == num_cells
    assert said["query"]["epsilon"] == 0.5
    assert said["mechanism"]["noise_multiplier"] == 2.0
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        (("histogram", "--edges", "0,one"), 2, "--edges must be numbers"),
        (("count", "--low", "9", "--high", "1"), 1, "edges must be finite and rise"),
        (("quantiles", "--low", "0", "--high", "1", "--bins", "100"), 1, "power of 2"),
        (
            ("count", "--low", "0", "--high", "1", "--open", "--broker", "mqtt://broker.example:1883"),
            1,
            "allow-plaintext",
        ),
        (("count", "--low", "0", "--high", "1", "--broker", "mqtts://broker.example"), 2, "no roster"),
        (("count", "--low", "0", "--high", "1", "--confidentiality", "helpers"), 2, "needs --directory"),
        (("count", "--low", "0", "--high", "1", "--broker", "embedded"), 2, "name the fleet's --broker"),
    ],
)
def test_a_question_that_cannot_be_asked_so_is_one_clear_line(tmp_path, monkeypatch, words, exit_code, text):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["query", *words[:1], *WORDS, *words[1:], "--dry-run"])
    assert result.exit_code == exit_code, result.output
    assert text in result.output


def test_nobody_is_asked_while_another_coordinator_of_the_population_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    question = ("query", "count", *WORDS, "--low", "0", "--high", "1")
    with sole_coordinator(tmp_path / "state", "p"):
        with pytest.raises(StateInUse, match="stop it first"), sole_coordinator(tmp_path / "state", "p"):
            pass
        with sole_coordinator(tmp_path / "state", "q"):
            pass
        result = CliRunner().invoke(main, question)
    assert (result.exit_code, "another coordinator of 'p'" in result.output) == (1, True), result.output
    with sole_coordinator(tmp_path / "state", "p"):
        pass


@pytest.mark.parametrize(
    ("lines", "exit_code", "text"),
    [
        ("5\n15\n15\n\n5\n5\n", 0, '"origin": "rehearsed"'),
        ("5\n15\n", 3, "of 2 devices fewer than 5 answered"),
        ("5\n\nwarm\n", 2, "line 3: 'warm' is no number"),
        ("", 2, "has 0 lines"),
    ],
)
def test_a_rehearsal_says_what_a_fleet_with_these_values_would_answer_and_touches_nothing(
    tmp_path, monkeypatch, lines, exit_code, text
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "values.txt").write_text(lines)
    words = ("query", "count", *WORDS, "--low", "0", "--high", "9", "--rehearse", "values.txt", "--json")
    result = CliRunner().invoke(main, words)
    assert result.exit_code == exit_code, result.output
    assert text in result.output
    assert not (tmp_path / "state").exists()
