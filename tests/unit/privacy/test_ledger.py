"""The device's privacy ledger: charged before published, never twice, never more than allowed, refusing when in doubt."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.errors import BudgetExceeded, LedgerDamaged, StorageError
from edge_client.privacy.accountant import cost_of, epsilon_of
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.rules import PrivacyBudget
from wire_protocol.privacy_spec import GaussianEvent, LaplaceEvent, SkellamEvent

EVENT = GaussianEvent(noise_multiplier=20.0, is_discrete=True)
BUDGET = PrivacyBudget(epsilon=2.0)


def _open(tmp_path, budget=BUDGET):
    return PrivacyLedger(tmp_path / "ledger.sqlite", budget=budget)


def test_the_same_release_is_charged_once_and_always_the_same_bytes(tmp_path):
    with _open(tmp_path) as ledger:
        first = ledger.release("r1", EVENT, lambda: b"noise")
        spent = ledger.spent_epsilon
        assert ledger.release("r1", EVENT, lambda: b"FRESH NOISE") == first == b"noise"
        assert ledger.spent_epsilon == spent
    with _open(tmp_path) as again:
        assert again.release("r1", EVENT, lambda: b"FRESH NOISE") == b"noise"
        assert again.spent_epsilon == spent


def test_a_release_beyond_the_budget_is_refused_before_any_noise_is_drawn(tmp_path):
    def never():
        raise AssertionError("noise was drawn for a release that is refused")

    with _open(tmp_path, PrivacyBudget(epsilon=0.5)) as ledger:
        released = 0
        while ledger.epsilon_with(EVENT) <= 0.5:
            ledger.release(f"r{released}", EVENT, lambda: b"x")
            released += 1
        assert released > 1
        with pytest.raises(BudgetExceeded, match=r"owner allows 0\.5"):
            ledger.release("one too many", EVENT, never)
        assert ledger.spent_epsilon <= 0.5
        assert len(ledger.entries) == released


@settings(max_examples=20, deadline=None)
@given(
    events=st.lists(
        st.one_of(
            st.floats(1, 100).map(lambda z: GaussianEvent(noise_multiplier=z, is_discrete=True)),
            st.floats(5, 100).map(lambda z: LaplaceEvent(noise_multiplier=z)),
            st.floats(1e3, 1e6).map(lambda v: SkellamEvent(variance_units=v, l2_units=10.0, l1_units=40.0)),
        ),
        max_size=12,
    ),
    epsilon=st.floats(0.0, 6.0),
)
def test_whatever_is_asked_the_filter_holds_and_is_the_same_after_reopening(tmp_path_factory, events, epsilon):
    directory = tmp_path_factory.mktemp("ledger")
    spent = None
    with _open(directory, PrivacyBudget(epsilon=epsilon)) as ledger:
        for index, event in enumerate(events):
            try:
                ledger.release(str(index), event, lambda: b"x")
                spent = cost_of(event) if spent is None else spent + cost_of(event)
            except BudgetExceeded:
                continue
        assert ledger.spent_epsilon <= epsilon + 1e-9
        assert ledger.spent_epsilon == (epsilon_of(spent, 1e-5) if spent else 0)
        kept = ledger.entries
    with _open(directory, PrivacyBudget(epsilon=epsilon)) as again:
        assert again.entries == kept


def test_a_budget_can_be_lowered_and_never_raised(tmp_path):
    with _open(tmp_path, PrivacyBudget(epsilon=2.0)) as ledger:
        assert ledger.budget.epsilon == 2.0
    with _open(tmp_path, PrivacyBudget(epsilon=99.0, target_delta=0.1)) as ledger:
        assert ledger.budget == PrivacyBudget(epsilon=2.0)
    with _open(tmp_path, PrivacyBudget(epsilon=1.0)) as ledger:
        assert ledger.budget.epsilon == 1.0
    with _open(tmp_path, PrivacyBudget(epsilon=2.0)) as ledger:
        assert ledger.budget.epsilon == 1.0


def test_rows_can_be_neither_deleted_nor_changed(tmp_path):
    with _open(tmp_path) as ledger:
        ledger.release("r1", EVENT, lambda: b"x")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        for statement in (
            "DELETE FROM entries",
            "UPDATE entries SET detail = '{}'",
            "UPDATE entries SET payload = x'00'",
            "UPDATE entries SET release_id = 'other'",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                database.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET detail = replace(detail, '20.0', '90.0') WHERE seq = 2",
        "DELETE FROM entries WHERE seq = 2",
        "DELETE FROM entries WHERE seq = 3",
        "UPDATE entries SET seq = 9 WHERE seq = 3",
        "UPDATE entries SET hash = zeroblob(32) WHERE seq = 3",
    ],
)
def test_a_ledger_that_was_tampered_with_releases_nothing_more(tmp_path, statement):
    with _open(tmp_path) as ledger:
        ledger.release("r1", EVENT, lambda: b"x")
        ledger.release("r2", EVENT, lambda: b"y")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute(statement)
    with pytest.raises(LedgerDamaged):
        _open(tmp_path)


def test_bytes_that_were_exchanged_under_their_charge_are_not_published(tmp_path):
    with _open(tmp_path) as ledger:
        ledger.release("r1", EVENT, lambda: b"x")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        database.execute("DROP TRIGGER payloads_are_only_dropped")
        database.execute("UPDATE entries SET payload = x'00' WHERE release_id = 'r1'")
    with _open(tmp_path) as ledger, pytest.raises(LedgerDamaged):
        ledger.release("r1", EVENT, lambda: b"x")


def _copy(source, target):
    for suffix in ("", "-wal", "-shm"):
        if (old := source.with_name(source.name + suffix)).exists():
            shutil.copy(old, target.with_name(target.name + suffix))


def test_an_old_copy_of_the_ledger_is_noticed(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with _open(tmp_path) as ledger:
        ledger.release("r1", EVENT, lambda: b"x")
    _copy(path, tmp_path / "old")
    with _open(tmp_path) as ledger:
        ledger.release("r2", EVENT, lambda: b"y")
    _copy(tmp_path / "old", path)
    with pytest.raises(LedgerDamaged, match="had come to 3"):
        _open(tmp_path)


def test_a_ledger_that_is_gone_or_begun_anew_is_noticed(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with _open(tmp_path) as ledger:
        ledger.release("r1", EVENT, lambda: b"x")
    path.unlink()
    with pytest.raises(LedgerDamaged, match="there was one"):
        _open(tmp_path)
    path.touch()
    with pytest.raises(LedgerDamaged):
        _open(tmp_path)


def test_a_mark_that_is_one_behind_is_a_crash_and_in_order(tmp_path):
    with _open(tmp_path) as ledger:
        ledger.release("r1", EVENT, lambda: b"x")
        mark = (tmp_path / "ledger.sqlite.mark").read_bytes()
        ledger.release("r2", EVENT, lambda: b"y")
    (tmp_path / "ledger.sqlite.mark").write_bytes(mark)
    with _open(tmp_path) as ledger:
        assert [entry.release_id for entry in ledger.entries] == ["r1", "r2"]


@pytest.mark.parametrize("content", [b"", b"{}", b"garbage", b'{"seq": "x", "hash": ""}'])
def test_a_mark_that_cannot_be_read_refuses(tmp_path, content):
    with _open(tmp_path) as ledger:
        ledger.release("r1", EVENT, lambda: b"x")
    (tmp_path / "ledger.sqlite.mark").write_bytes(content)
    with pytest.raises(LedgerDamaged):
        _open(tmp_path)


def test_a_file_that_is_no_database_refuses(tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database, whatever it was" * 100)
    with pytest.raises(LedgerDamaged):
        _open(tmp_path)


def test_a_release_whose_bytes_cannot_be_made_costs_nothing(tmp_path):
    with _open(tmp_path) as ledger:
        with pytest.raises(ZeroDivisionError):
            ledger.release("r1", EVENT, lambda: bytes(1 // 0))
        assert ledger.spent_epsilon == 0
        assert ledger.release("r1", EVENT, lambda: b"x") == b"x"


def test_a_charge_that_the_disk_refuses_publishes_nothing(tmp_path):
    with _open(tmp_path) as ledger:
        ledger._database.execute("PRAGMA query_only = ON")
        with pytest.raises(StorageError):
            ledger.release("r1", EVENT, lambda: b"x")
        ledger._database.execute("PRAGMA query_only = OFF")
        assert ledger.entries == ()
        assert ledger.release("r1", EVENT, lambda: b"x") == b"x"


def test_a_dropped_payload_is_never_made_again(tmp_path):
    with _open(tmp_path) as ledger:
        ledger.release("r1", EVENT, lambda: b"x")
        ledger.release("r2", EVENT, lambda: b"y")
        ledger.drop_payloads_but("r2")
        assert ledger.release("r2", EVENT, lambda: b"FRESH NOISE") == b"y"
        with pytest.raises(LedgerDamaged, match="no longer kept"):
            ledger.release("r1", EVENT, lambda: b"FRESH NOISE")
    with _open(tmp_path) as ledger:
        assert len(ledger.entries) == 2


def test_a_ledger_whose_mark_is_gone_releases_nothing(tmp_path):
    with _open(tmp_path) as ledger:
        ledger.release("r1", EVENT, lambda: b"x")
    (tmp_path / "ledger.sqlite.mark").unlink()
    with pytest.raises(LedgerDamaged, match="is gone"):
        _open(tmp_path)


def test_a_mark_that_a_crash_left_behind_is_mended_at_the_next_opening(tmp_path):
    mark = tmp_path / "ledger.sqlite.mark"
    with _open(tmp_path) as ledger:
        behind = mark.read_bytes()
        ledger.release("r1", EVENT, lambda: b"x")
        ahead = mark.read_bytes()
    mark.write_bytes(behind)
    with _open(tmp_path):
        assert mark.read_bytes() == ahead
    # A crash before the very first mark: one entry, the budget, and no mark.
    (tmp_path / "new").mkdir()
    _open(tmp_path / "new").close()
    (tmp_path / "new" / "ledger.sqlite.mark").unlink()
    with _open(tmp_path / "new") as ledger:
        ledger.release("r1", EVENT, lambda: b"x")
    with _open(tmp_path / "new") as ledger:
        assert len(ledger.entries) == 1


def test_two_processes_with_one_ledger_never_spend_more_than_one_could(tmp_path):
    with _open(tmp_path) as one, _open(tmp_path) as other:
        assert one.release("r1", EVENT, lambda: b"x") == b"x"
        with pytest.raises(StorageError):
            other.release("r2", EVENT, lambda: b"y")
        assert one.release("r3", EVENT, lambda: b"z") == b"z"
    with _open(tmp_path) as ledger:
        assert [entry.release_id for entry in ledger.entries] == ["r1", "r3"]


_RELEASES_FOR_EVER = """
import os, sys
from pathlib import Path
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.rules import PrivacyBudget
from wire_protocol.privacy_spec import GaussianEvent
with PrivacyLedger(Path(sys.argv[1]), budget=PrivacyBudget(epsilon=100.0)) as ledger:
    index = len(ledger.entries)
    print("ready", flush=True)
    while True:
        payload = ledger.release(f"r{index}", GaussianEvent(noise_multiplier=20.0, is_discrete=True),
                                 lambda: os.urandom(20_000))
        print(f"r{index} {payload[:8].hex()}", flush=True)
        index += 1
"""


@pytest.mark.parametrize("delay_lines", [1, 2, 5, 9, 14])
def test_killed_anywhere_nothing_was_published_that_is_not_charged(tmp_path, delay_lines):
    path, published = tmp_path / "ledger.sqlite", {}
    for life in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", _RELEASES_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(delay_lines + life):
            line = child.stdout.readline().split()
            if len(line) == 2:
                published[line[0]] = line[1]
        os.kill(child.pid, signal.SIGKILL)
        for line in child.stdout.read().splitlines():
            if len(line.split()) == 2:
                published[line.split()[0]] = line.split()[1]
        child.wait()
        child.stdout.close()
    with PrivacyLedger(path, budget=PrivacyBudget(epsilon=100.0)) as ledger:
        charged = {entry.release_id for entry in ledger.entries}
        assert published.keys() <= charged
        assert len(charged) <= len(published) + 2
        for release_id, beginning in published.items():
            assert ledger.release(release_id, EVENT, lambda: b"FRESH").hex().startswith(beginning)
