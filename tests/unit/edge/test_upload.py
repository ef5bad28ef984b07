"""A report goes out in bursts, is repeated unchanged, and stops at a final receipt."""

import math
import random

import numpy as np
import pytest

from edge_client.settings import UploadSettings
from edge_client.training import TrainingResult
from edge_client.upload import ReportUpload, make_report
from wire_protocol.blobs import BlobAssembler, split_blob
from wire_protocol.errors import BlobError
from wire_protocol.messages import (
    Assignment,
    Metrics,
    Piece,
    Receipt,
    ReceiptStatus,
    Report,
    RoundKind,
    encode_message,
)

REF = split_blob(b"x").ref
ASSIGNMENT = Assignment(
    round_id=3,
    nonce=b"n" * 16,
    check_in=b"c" * 16,
    kind=RoundKind.TRAIN,
    task_id="t",
    plan=REF,
    model=REF,
    checkpoint=REF,
    deadline_s=60.0,
)
RESULT = TrainingResult(
    model_delta=(np.arange(10_000, dtype=np.float32),),
    num_examples=5,
    aggregation_weight=10.0,
    metrics=Metrics(loss_sum=1.0, num_correct=1.0, weight_sum=10.0),
    duration_s=1.0,
)


def _upload(**fields):
    report, update = make_report(ASSIGNMENT, RESULT, piece_bytes=1024)
    uniform = random.Random(2).uniform
    return ReportUpload(report=report, update=update, settings=UploadSettings(**fields), uniform=uniform)


def _receipt(status, **fields):
    return Receipt(round_id=3, nonce=b"n" * 16, status=status, **fields)


def test_the_report_comes_first_and_pieces_follow_in_bursts_that_add_up_to_the_update():
    upload = _upload(pieces_per_burst=16, burst_interval_s=0.25)
    assembler = BlobAssembler(upload.report.update)
    assembler.set_piece_list(upload.report.piece_digests)
    now, bursts = 0.0, []
    while not assembler.is_complete:
        messages = upload.messages(now)
        bursts.append(len(messages))
        for message in messages:
            if isinstance(message, Piece):
                assert assembler.add(message.index, message.data)
        assert upload.messages(now) == []
        now = upload.next_wakeup()
    assert bursts == [17, 16, 8]
    assert len(assembler.result()) == upload.report.update.num_bytes


def test_a_repeated_report_is_the_same_bytes_and_brings_no_pieces():
    upload = _upload(pieces_per_burst=100)
    first = upload.messages(0.0)
    now = upload.next_wakeup()
    assert 10.0 <= now <= 20.0
    again = upload.messages(now)
    assert [encode_message(message) for message in again] == [encode_message(first[0])]


def test_repetitions_come_ever_more_seldom():
    upload = _upload(pieces_per_burst=100, retry_s=10.0, backoff_cap_s=100.0)
    waits, now = [], 0.0
    for _ in range(12):
        upload.messages(now)
        waits.append(upload.next_wakeup() - now)
        now = upload.next_wakeup()
    assert min(waits) >= 10.0
    assert 60.0 < max(waits) <= 110.0


def test_an_incomplete_receipt_brings_the_missing_pieces_and_ignores_impossible_ones():
    upload = _upload(pieces_per_burst=100)
    upload.messages(0.0)
    assert not upload.take_receipt(_receipt(ReceiptStatus.INCOMPLETE, missing=(7, 3, 3000)), 1.0)
    messages = upload.messages(1.0)
    assert [message.index for message in messages] == [3, 7]


def test_an_incomplete_receipt_with_nothing_to_send_is_no_reason_to_hurry():
    upload = _upload(pieces_per_burst=100)
    upload.messages(0.0)
    upload.take_receipt(_receipt(ReceiptStatus.INCOMPLETE, missing=()), 1.0)
    assert upload.messages(1.0) == []
    assert upload.next_wakeup() >= 11.0


def test_busy_stops_the_pieces_and_starts_again_after_the_wait():
    upload = _upload(pieces_per_burst=16)
    upload.messages(0.0)
    upload.take_receipt(_receipt(ReceiptStatus.BUSY, retry_after_s=4.0), 0.1)
    assert upload.messages(4.0) == []
    now = upload.next_wakeup()
    assert 4.1 <= now <= 8.1
    messages = upload.messages(now)
    assert isinstance(messages[0], Report)
    assert [message.index for message in messages[1:]] == list(range(16))


@pytest.mark.parametrize("status", [ReceiptStatus.ACCEPTED, ReceiptStatus.REJECTED])
def test_a_final_receipt_ends_the_sending(status):
    upload = _upload(pieces_per_burst=16)
    upload.messages(0.0)
    assert upload.take_receipt(_receipt(status), 0.1)
    assert upload.next_wakeup() == math.inf
    assert upload.messages(1e9) == []


def test_after_a_reconnection_the_report_is_said_again_and_the_rest_follows():
    upload = _upload(pieces_per_burst=16)
    upload.messages(0.0)
    upload.reconnect()
    messages = upload.messages(0.1)
    assert isinstance(messages[0], Report)
    assert [message.index for message in messages[1:]] == list(range(16, 32))


def test_an_update_of_too_many_pieces_is_refused_before_anything_is_sent():
    huge = (np.zeros(1024 * 800, np.float32),)
    result = TrainingResult(
        model_delta=huge, num_examples=1, aggregation_weight=1.0, metrics=RESULT.metrics, duration_s=0.0
    )
    with pytest.raises(BlobError, match="pieces"):
        make_report(ASSIGNMENT, result, piece_bytes=1024)
