"""The auditor's page says what was recorded, what it costs, and what was measured."""

import json
import types

import pytest
from click.testing import CliRunner

from coordinator.errors import InvalidBundle
from coordinator.privacy_accounting import claimed_epsilon
from coordinator.privacy_record import RECORD_FILE, PrivacyRecord, read_privacy_record
from coordinator.private_task import PrivacyWish, made_private
from coordinator.question_files import KeptQuestion, keep_question
from coordinator.round_table import RoundState
from flockwise.cli import main
from simulators.privacy_report import as_html, make_report
from simulators.virtual_run import linear_task
from wire_protocol.query import Query

BUNDLE = made_private(
    linear_task(64, 10), PrivacyWish(epsilon=4.0, num_rounds=10, clipping_norm=0.5, min_contributors=20)
)


def _summary(round_id, state=RoundState.COMMITTED):
    return types.SimpleNamespace(round_id=round_id, state=state, num_reports=20, epsilon=0.5 * round_id)


@pytest.fixture
def run_dir(tmp_path):
    directory = tmp_path / "state" / BUNDLE.task_id
    record = PrivacyRecord(directory, BUNDLE.plan)
    record.note(_summary(1))
    PrivacyRecord(directory, BUNDLE.plan).note(_summary(2, RoundState.ABANDONED))  # after a restart
    (directory / "last_round_id").write_text("3\n")
    return tmp_path / "state"


def _report(run_dir, *more):
    return CliRunner().invoke(main, ["privacy", "report", str(run_dir), *more])


def test_the_page_names_rounds_price_audit_and_what_voids_it(run_dir, tmp_path):
    out = tmp_path / "page.html"
    result = _report(run_dir, "--out", str(out))
    assert result.exit_code == 0, result.output
    page = out.read_text()
    assert all(word in page for word in ("abandoned", "epsilon_by_rdp", "epsilon_by_pld", "least_mu", "What voids it"))
    assert "<script" not in page
    assert "http" not in page


def test_the_price_is_of_every_round_that_was_opened_not_of_those_that_were_recorded(run_dir):
    values = json.loads(_report(run_dir, "--json").output)
    assert len(values["rounds"]) == 2
    assert values["questions"] == []
    assert values["spent"]["epsilon_with_questions_at_most"] == pytest.approx(
        values["spent"]["epsilon_by_rdp"], rel=1e-6
    )
    assert values["spent"]["rounds_charged_at_most"] == 3
    assert values["spent"]["epsilon_by_rdp"] == pytest.approx(claimed_epsilon(BUNDLE.plan.privacy, 3))
    assert values["audit"]["holds"]
    assert values["audit"]["least_epsilon"] < values["spent"]["epsilon_by_rdp"]


def test_questions_to_the_same_fleet_are_on_the_page_and_in_the_price(run_dir):
    query = Query(name="sizes", period="2026-11", kind="count", edges=(0.0, 9.0), epsilon=0.5, min_contributors=20)
    keep_question(run_dir, KeptQuestion(query=query))
    report = make_report(run_dir)
    assert [(asked["name"], asked["is_answered"]) for asked in report.as_dict()["questions"]] == [("sizes", False)]
    assert report.epsilon_by_rdp == pytest.approx(claimed_epsilon(BUNDLE.plan.privacy, 3))
    assert report.epsilon_with_questions > report.epsilon_by_rdp + 0.01
    assert "sizes" in as_html(report)


def test_with_correlated_noise_parts_are_counted_and_not_rounds(tmp_path):
    wish = PrivacyWish(epsilon=4.0, num_rounds=16, clipping_norm=0.5, min_contributors=20, mode="central", num_bands=4)
    bundle = made_private(linear_task(200, 20), wish)
    record = PrivacyRecord(tmp_path / bundle.task_id, bundle.plan)
    for round_id in range(1, 6):
        record.note(_summary(round_id))
    values = json.loads(_report(tmp_path, "--json").output)
    assert (values["spent"]["rounds_charged_at_most"], values["spent"]["parts_taken_at_most"]) == (5, 2)
    assert (values["parameters"]["num_bands"], values["parameters"]["clip_follows_quantile"]) == (
        4,
        "none: it is fixed",
    )
    assert values["audit"]["holds"]
    assert 0.7 * values["spent"]["epsilon_by_pld_of_continuous_noise"] < values["audit"]["least_epsilon"]
    assert values["audit"]["least_epsilon"] < values["spent"]["epsilon_by_pld_of_continuous_noise"]


def test_a_line_that_a_crash_cut_off_is_left_out_and_damage_is_said(run_dir):
    path = run_dir / BUNDLE.task_id / RECORD_FILE
    path.write_bytes(path.read_bytes() + b'{"round_id": 3, "sta')
    assert len(read_privacy_record(path.parent)[2]) == 2
    path.write_bytes(b"no record\n")
    with pytest.raises(InvalidBundle):
        read_privacy_record(path.parent)
    assert _report(run_dir).exit_code == 1


def test_a_directory_without_a_private_task_says_what_to_do(tmp_path):
    result = _report(tmp_path)
    assert (result.exit_code, "serve --epsilon" in result.output) == (1, True)


def test_a_dry_run_writes_nothing(run_dir, tmp_path):
    out = tmp_path / "page.html"
    assert _report(run_dir, "--out", str(out), "--dry-run").exit_code == 0
    assert not out.exists()


def test_a_record_whose_last_line_a_crash_cut_off_goes_on_with_the_next(tmp_path):
    plan = BUNDLE.plan
    record = PrivacyRecord(tmp_path, plan)
    record.note(_summary(1))
    path = tmp_path / RECORD_FILE
    path.write_bytes(path.read_bytes() + b'{"round_id":2,"sta')
    assert [known.round_id for known in read_privacy_record(tmp_path)[2]] == [1]
    PrivacyRecord(tmp_path, plan).note(_summary(3))
    assert [known.round_id for known in read_privacy_record(tmp_path)[2]] == [1, 3]
