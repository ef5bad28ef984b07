"""The outbox: what was stored comes back byte for byte or not at all, and nothing on disk makes it raise."""

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.checked_file import seal, unseal
from edge_client.counts import DeviceCount, RoundEnding
from edge_client.errors import CorruptState, StorageError
from edge_client.events import DropReport, Publish, ReportNotStored, StoreReport
from edge_client.outbox import Outbox
from edge_client.pending_report import PendingReport, decode_pending, encode_pending
from edge_client.session import SessionState
from edge_client.settings import AgentSettings, UploadSettings
from edge_client.state_writer import StateWriter
from wire_protocol.blobs import split_blob
from wire_protocol.messages import (
    CheckIn,
    Metrics,
    Piece,
    ReceiptStatus,
    RejectionReason,
    Report,
    RoundClosed,
    Withdrawal,
    WithdrawalReason,
    encode_message,
)


def _pending(num_bytes=3000, **fields):
    update = split_blob(np.random.default_rng(1).bytes(num_bytes), piece_bytes=1024) if num_bytes else None
    report = Report(
        round_id=7,
        nonce=b"n" * 16,
        update=update.ref if update else None,
        piece_digests=update.piece_digests if update else b"",
        num_examples=5,
        aggregation_weight=5.0,
        metrics=Metrics(loss_sum=1.0, num_correct=2.0, weight_sum=5.0),
    )
    return PendingReport(
        **({"population": "p", "device_id": "d1", "task_id": "t1"} | fields), report=report, update=update
    )


PENDING = _pending()
WIRE = encode_pending(PENDING)


def _outbox(tmp_path):
    return Outbox(tmp_path / "outbox", writer=StateWriter())


def _load(outbox):
    return outbox.load(population="p", device_id="d1")


@pytest.mark.parametrize("pending", [PENDING, _pending(0)])
def test_a_stored_report_comes_back_byte_for_byte_until_it_is_dropped(tmp_path, pending):
    _outbox(tmp_path).store(pending)
    loaded = _load(_outbox(tmp_path))
    assert encode_message(loaded.report) == encode_message(pending.report)
    assert (loaded.update.data if loaded.update else None) == (pending.update.data if pending.update else None)
    assert loaded == pending
    _outbox(tmp_path).drop(7)
    assert _load(_outbox(tmp_path)) is None


def test_an_empty_outbox_holds_nothing_and_may_be_dropped(tmp_path):
    assert _load(_outbox(tmp_path)) is None
    _outbox(tmp_path).drop(1)


@pytest.mark.parametrize("field", ["population", "device_id"])
def test_a_report_made_under_another_name_is_never_sent_under_this_one(tmp_path, field):
    _outbox(tmp_path).store(_pending(**{field: "another"}))
    assert _load(_outbox(tmp_path)) is None
    assert list((tmp_path / "outbox").iterdir()) == []


@given(st.integers(0, len(WIRE) - 1), st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_any_flipped_bit_is_found(position, bit):
    damaged = bytearray(WIRE)
    damaged[position] ^= 1 << bit
    with pytest.raises(CorruptState):
        decode_pending(bytes(damaged))


def test_every_truncation_is_found():
    for length in range(len(WIRE)):
        with pytest.raises(CorruptState):
            decode_pending(WIRE[:length])


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_a_stored_report_or_corrupt_even_under_a_right_checksum(data, is_sealed):
    with pytest.raises(CorruptState):
        decode_pending(seal(b"OB", data) if is_sealed else data)


def test_a_file_of_another_kind_is_not_taken_for_a_report():
    body = bytes(unseal(b"OB", WIRE, max_bytes=10**6))
    with pytest.raises(CorruptState):
        decode_pending(seal(b"XX", body))


def _flip_all_over(path):
    data = path.read_bytes()
    for position in range(0, len(data), 64):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        yield


def _other_damage(path):
    for length in (0, 1, 40, 44, 100):
        path.write_bytes(WIRE[:length])
        yield
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"x")
    yield


@pytest.mark.parametrize("damage", [_flip_all_over, _other_damage])
def test_whatever_stands_in_the_place_of_the_report_is_put_aside_and_the_next_one_can_be_stored(tmp_path, damage):
    outbox = _outbox(tmp_path)
    outbox.store(PENDING)
    path = tmp_path / "outbox" / "report"
    for _ in damage(path):
        assert _load(outbox) is None
        assert not path.exists()
        assert (tmp_path / "outbox" / "report.corrupt").exists()
        outbox.store(PENDING)
        assert _load(outbox) == PENDING


def test_a_file_in_the_place_of_the_outbox_is_put_aside(tmp_path):
    (tmp_path / "outbox").write_bytes(b"not a directory")
    outbox = _outbox(tmp_path)
    assert _load(outbox) is None
    outbox.drop(1)
    outbox.store(PENDING)
    assert _load(outbox) == PENDING


def test_a_disk_that_refuses_keeps_what_was_stored_before(tmp_path, monkeypatch):
    outbox = _outbox(tmp_path)
    outbox.store(PENDING)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        outbox.store(_pending(5000))
    outbox.drop(7)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "outbox").iterdir()] in (["report.over"], ["report"])


# -- in the session


def _kinds(actions):
    return [type(action) for action in actions]


def test_a_report_is_stored_before_anything_of_it_is_published(bench):
    bench.reach_training()
    actions = bench.finish()
    assert _kinds(actions)[0] is StoreReport
    assert set(_kinds(actions)[1:]) == {Publish}
    assert actions[0].pending.report == bench.sent[0]


@pytest.mark.parametrize("end", ["accepted", "rejected", "closed", "deadline", "task"])
def test_the_stored_report_goes_when_the_round_is_over_and_not_before(bench, end):
    assignment = bench.reach_training(deadline_s=50.0)
    bench.finish()
    bench.receipt(assignment, ReceiptStatus.BUSY, retry_after_s=1.0)
    assert bench.stored is not None
    match end:
        case "accepted":
            actions = bench.receipt(assignment)
        case "rejected":
            actions = bench.receipt(assignment, ReceiptStatus.REJECTED, reason=RejectionReason.LATE)
        case "closed":
            actions = bench.tell(RoundClosed(round_id=1))
        case "deadline":
            actions = bench.tick(51.0)
        case "task":
            actions = bench.announce(task_id="t2")
    assert DropReport(round_id=1) in actions
    assert bench.stored is None


def test_a_report_that_cannot_be_stored_is_given_back_and_never_sent(bench):
    assignment = bench.reach_training()
    bench.finish()
    bench.sent.clear()  # what the daemon leaves out: everything after the store that failed
    bench.handle(ReportNotStored(round_id=1))
    assert bench.sent == [Withdrawal(round_id=1, nonce=assignment.nonce, reason=WithdrawalReason.NOT_ELIGIBLE)]
    assert bench.agent.counts[DeviceCount.REPORT_NOT_STORED] == 1
    bench.tick(7200.0)
    assert bench.take(Report) == bench.take(Piece) == []


def _restart(make_bench, first, **fields):
    return make_bench(pending=first.stored, **fields)


def test_a_restarted_device_sends_the_same_bytes_before_it_checks_in(make_bench):
    first = make_bench()
    assignment = first.reach_training()
    first.finish()
    sent = [encode_message(message) for message in first.take(Report) + first.take(Piece)]
    first.perform(first.agent.shut_down())
    assert first.stored is not None
    second = _restart(make_bench, first)
    assert second.agent.state is SessionState.REPORTING
    second.connect()
    second.announce()
    assert [encode_message(message) for message in second.take(Report) + second.take(Piece)] == sent
    assert second.take(CheckIn) == []
    second.receipt(assignment)
    assert second.stored is None
    assert second.agent.last_outcome.ending is RoundEnding.ACCEPTED
    second.tick_when_due()
    assert len(second.take(CheckIn)) == 1


def test_a_resumed_report_of_another_task_is_dropped_unsent(make_bench):
    first = make_bench()
    first.reach_training()
    first.finish()
    second = _restart(make_bench, first)
    second.announce(task_id="t2")
    assert second.stored is None
    second.connect()
    assert second.take(Report) == []


def test_a_resumed_report_that_nobody_answers_is_given_up_after_the_attempts_allowed(make_bench):
    first = make_bench()
    first.reach_training()
    first.finish()
    patience = AgentSettings(upload=UploadSettings(max_resumed_attempts=3))
    second = _restart(make_bench, first, settings=patience)
    second.connect()
    for _ in range(4):
        second.tick_when_due()
    assert len(second.take(Report)) == 3
    assert second.agent.last_outcome.ending is RoundEnding.UNANSWERED
    assert second.stored is None


def test_a_pending_report_that_announces_another_update_cannot_be_made():
    with pytest.raises(ValueError, match="another update"):
        dataclasses.replace(PENDING, update=None)
