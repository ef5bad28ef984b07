"""Fetching keeps its window, survives loss and forgery, and asks for nothing twice without need."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.fetch import BlobFetcher, Taken
from edge_client.settings import FetchSettings
from wire_protocol.blobs import BlobRef, split_blob
from wire_protocol.errors import BlobError
from wire_protocol.messages import Piece, PieceList, PieceListRequest

BIG = split_blob(bytes(range(256)) * 120, piece_bytes=1024)
SMALL = split_blob(b"plan", piece_bytes=1024)


def _fetcher(*blobs, **fields):
    uniform = random.Random(1).uniform
    return BlobFetcher([blob.ref for blob in blobs], settings=FetchSettings(**fields), uniform=uniform)


def _answers(requests, *blobs):
    by_hash = {blob.ref.sha256: blob for blob in blobs}
    for request in requests:
        blob = by_hash[request.sha256]
        if isinstance(request, PieceListRequest):
            yield PieceList(sha256=request.sha256, digests=blob.piece_digests)
        else:
            for index in request.indices:
                yield Piece(sha256=request.sha256, index=index, data=blob.piece(index))


@pytest.mark.parametrize("window", [1, 2, 8, 64])
def test_no_more_pieces_than_the_window_are_ever_under_way(window):
    fetcher = _fetcher(SMALL, BIG, window=window)
    done, most = {}, 0
    answers = list(_answers(fetcher.requests(0.0), SMALL, BIG))
    while answers:
        most = max(most, fetcher.num_in_flight)
        fetcher.take(answers.pop(0), 0.0)
        if (blob := fetcher.pop_blob()) is not None:
            done[blob[0].sha256] = blob[1]
        answers += _answers(fetcher.requests(0.0), SMALL, BIG)
    assert done == {SMALL.ref.sha256: SMALL.data, BIG.ref.sha256: BIG.data}
    assert fetcher.is_done
    assert most == min(window, BIG.ref.num_pieces + 1)


def test_a_blob_of_one_piece_needs_no_list():
    fetcher = _fetcher(SMALL)
    [request] = fetcher.requests(0.0)
    assert request.indices == (0,)


def test_no_request_is_repeated_before_its_time_and_all_are_after_it():
    fetcher = _fetcher(BIG, timeout_s=20.0)
    [list_request] = fetcher.requests(0.0)
    fetcher.take(next(_answers([list_request], BIG)), 5.0)
    [first] = fetcher.requests(5.0)
    assert fetcher.next_wakeup() == 25.0
    assert fetcher.requests(24.9) == []
    [again] = fetcher.requests(25.0)
    assert again == first


def test_a_piece_that_arrives_keeps_the_others_of_a_slow_link_from_being_asked_again():
    fetcher = _fetcher(BIG, timeout_s=20.0, window=4)
    fetcher.take(next(_answers(fetcher.requests(0.0), BIG)), 0.0)
    [request] = fetcher.requests(0.0)
    answers = list(_answers([request], BIG))
    fetcher.take(answers[0], 19.0)
    assert fetcher.requests(30.0) == []
    assert fetcher.next_wakeup() == 39.0


def test_unanswered_requests_wait_longer_and_longer_up_to_the_cap():
    fetcher = _fetcher(SMALL, timeout_s=10.0, backoff_cap_s=60.0)
    now, waits = 0.0, []
    for _ in range(12):
        assert fetcher.requests(now)
        waits.append(fetcher.next_wakeup() - now)
        now = fetcher.next_wakeup()
    assert waits[0] == 10.0
    assert max(waits) > 30.0
    assert max(waits) <= 70.0


def test_forged_pieces_and_lists_are_counted_and_change_nothing():
    fetcher = _fetcher(BIG)
    fetcher.requests(0.0)
    sha256 = BIG.ref.sha256
    assert fetcher.take(Piece(sha256=sha256, index=0, data=BIG.piece(0)), 0.0) is Taken.BAD  # no list yet
    assert fetcher.take(PieceList(sha256=sha256, digests=b"\0" * len(BIG.piece_digests)), 0.0) is Taken.BAD
    assert fetcher.take(PieceList(sha256=sha256, digests=BIG.piece_digests), 0.0) is Taken.USEFUL
    assert fetcher.take(PieceList(sha256=sha256, digests=BIG.piece_digests), 0.0) is Taken.USELESS
    assert fetcher.take(Piece(sha256=sha256, index=0, data=b"x" * 1024), 0.0) is Taken.BAD
    assert fetcher.take(Piece(sha256=sha256, index=99, data=BIG.piece(0)), 0.0) is Taken.BAD
    assert fetcher.take(Piece(sha256=b"?" * 32, index=0, data=b"x"), 0.0) is Taken.USELESS
    assert fetcher.num_bad_pieces == 4


def test_a_reference_that_contradicts_itself_is_told_apart_from_a_bad_piece():
    pieces = hashlib.sha256(BIG.piece_digests).digest()
    lie = BlobRef(
        sha256=hashlib.sha256(b"other").digest(), num_bytes=len(BIG.data), piece_bytes=1024, pieces_sha256=pieces
    )
    fetcher = BlobFetcher([lie], settings=FetchSettings(), uniform=random.Random(1).uniform)
    fetcher.take(PieceList(sha256=lie.sha256, digests=BIG.piece_digests), 0.0)
    for index in range(lie.num_pieces):
        assert fetcher.take(Piece(sha256=lie.sha256, index=index, data=BIG.piece(index)), 0.0) is Taken.USEFUL
    with pytest.raises(BlobError, match="does not match its hash"):
        fetcher.pop_blob()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), loss=st.floats(0, 0.6), window=st.integers(1, 16))
def test_blobs_arrive_whole_through_loss_duplication_and_reordering(seed, loss, window):
    rng = random.Random(seed)
    fetcher = BlobFetcher([SMALL.ref, BIG.ref], settings=FetchSettings(window=window), uniform=rng.uniform)
    done, wire, now = {}, [], 0.0
    for _ in range(10_000):
        wire += [a for a in _answers(fetcher.requests(now), SMALL, BIG) for _ in range(2) if rng.random() >= loss]
        if fetcher.is_done:
            break
        if wire and rng.random() < 0.9:
            fetcher.take(wire.pop(rng.randrange(len(wire))), now)
        elif rng.random() < 0.05:
            fetcher.reconnect()
        else:
            now = max(now, fetcher.next_wakeup())
        while (blob := fetcher.pop_blob()) is not None:
            assert blob[0].sha256 not in done
            done[blob[0].sha256] = blob[1]
        assert fetcher.num_in_flight <= window
    assert done == {SMALL.ref.sha256: SMALL.data, BIG.ref.sha256: BIG.data}
