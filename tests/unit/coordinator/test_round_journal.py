"""The journal: what was synced survives, what was not does not, and nothing is ever counted twice."""

import shutil

import pytest

from coordinator.errors import JournalDamaged, JournalUnwritable
from coordinator.round_journal import Contribution, RoundJournal
from coordinator.round_table import Member, MemberState, RoundState
from wire_protocol.messages import Metrics, RejectionReason, RoundKind

METRICS = Metrics(loss_sum=1.5, num_correct=2.0, weight_sum=4.0)


def _contribution(device_id: str, delta: bytes | None = b"delta") -> Contribution:
    return Contribution(device_id=device_id, model_delta=delta, aggregation_weight=4.0, metrics=METRICS)


@pytest.fixture
def path(tmp_path):
    """Where the journal is."""
    return tmp_path / "task" / "journal.sqlite"


def _begin(journal: RoundJournal, round_id: int = 1) -> None:
    journal.open_round(round_id, RoundKind.TRAIN, base_commits=round_id - 1)
    journal.assign(round_id, {device: Member(nonce=device.encode() * 16) for device in "abc"})


def test_an_unfinished_round_is_read_back_with_its_members_and_contributions_in_order(path):
    with RoundJournal(path) as journal:
        _begin(journal)
        journal.add(1, _contribution("c", b"first"))
        journal.add(1, _contribution("a", b"second"))
        journal.mark(1, "b", MemberState.REJECTED, RejectionReason.NON_FINITE)
    with RoundJournal(path) as journal:
        (known,) = journal.rounds()
        assert (known.round_id, known.kind, known.base_commits) == (1, RoundKind.TRAIN, 0)
        assert known.state is RoundState.REPORTING
        assert {device: member.state for device, member in known.members.items()} == {
            "a": MemberState.FOLDED,
            "b": MemberState.REJECTED,
            "c": MemberState.FOLDED,
        }
        assert known.members["b"].rejection is RejectionReason.NON_FINITE
        assert [c.model_delta for c in journal.contributions(1)] == [b"first", b"second"]
        assert next(iter(journal.contributions(1))) == _contribution("c", b"first")


def test_what_was_not_synced_is_gone_whole_and_what_was_is_there_whole(path, tmp_path):
    journal = RoundJournal(path)
    _begin(journal)
    journal.add(1, _contribution("a"))
    journal.sync()
    journal.add(1, _contribution("b"))
    # A power cut: only what is in the files now survives.
    crashed = tmp_path / "after"
    shutil.copytree(path.parent, crashed)
    journal.close()
    with RoundJournal(crashed / path.name) as recovered:
        (known,) = recovered.rounds()
        assert [c.device_id for c in recovered.contributions(1)] == ["a"]
        assert known.members["a"].state is MemberState.FOLDED
        assert known.members["b"].state is MemberState.ASSIGNED


def test_a_device_cannot_be_counted_twice_in_a_round(path):
    with RoundJournal(path) as journal:
        _begin(journal)
        journal.add(1, _contribution("a"))
        with pytest.raises(JournalDamaged):
            journal.add(1, _contribution("a"))


def test_a_closed_round_keeps_its_members_and_drops_its_contributions(path):
    with RoundJournal(path) as journal:
        _begin(journal)
        journal.add(1, _contribution("a"))
        journal.close_round(1, RoundState.COMMITTED)
        (known,) = journal.rounds()
        assert known.state is RoundState.COMMITTED
        assert known.members["a"].state is MemberState.FOLDED
        assert list(journal.contributions(1)) == []


def test_the_journal_does_not_grow_with_the_number_of_rounds(path):
    with RoundJournal(path) as journal:
        for round_id in range(1, 41):
            _begin(journal, round_id)
            for device in "abc":
                journal.add(round_id, _contribution(device, bytes(10_000)))
            journal.close_round(round_id, RoundState.COMMITTED)
            journal.sync()
        assert [known.round_id for known in journal.rounds()] == list(range(25, 41))
    assert path.stat().st_size < 400_000


def test_evaluation_contributions_have_no_update(path):
    with RoundJournal(path) as journal:
        _begin(journal)
        journal.add(1, _contribution("a", None))
        assert [c.model_delta for c in journal.contributions(1)] == [None]


def test_two_coordinators_cannot_share_a_journal(path):
    with RoundJournal(path), pytest.raises(JournalDamaged, match="another coordinator"):
        RoundJournal(path)


def test_every_sync_reaches_the_disk(path):
    with RoundJournal(path) as journal:
        assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to be read" * 50, b"SQLite format 3\x00xx"]
)
def test_a_damaged_file_says_so_and_what_to_do(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(JournalDamaged, match="move it away"):
        RoundJournal(path)
    assert path.read_bytes() == content


def test_a_full_disk_raises_and_loses_nothing_that_was_synced(path):
    journal = RoundJournal(path)
    _begin(journal)
    journal.add(1, _contribution("a"))
    journal.sync()
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalUnwritable, match="make room"):
        journal.add(1, _contribution("b", bytes(1_000_000)))
    journal._db.close()
    with RoundJournal(path) as again:
        assert [c.device_id for c in again.contributions(1)] == ["a"]
