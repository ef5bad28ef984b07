"""The talk with openers: lost, doubled, cut and forged messages; who refuses, is silent, or not ready."""

import msgspec
import numpy as np
import pytest

from coordinator.blob_shelf import BlobShelf
from coordinator.errors import InvalidConfig
from coordinator.fleet_transport import FleetTransport
from coordinator.opening import OpeningExchange, OpeningSettings
from secure_sum.openings import HelperAsk, OpeningOrder, OpeningResult, decode_order, encode_result
from wire_protocol.blobs import split_blob
from wire_protocol.messages import (
    OpeningAnswer,
    OpeningRefusal,
    OpeningRequest,
    Piece,
    Receipt,
    ReceiptStatus,
    decode_message,
)
from wire_protocol.topics import parse_device_topic

ORDER = OpeningOrder(
    population="p",
    task_id="t",
    plan_sha256=bytes(32),
    round_id=3,
    num_values=900,
    contributors=(),
    ask=HelperAsk(parts=(0,)),
)
OTHER = msgspec.structs.replace(ORDER, ask=HelperAsk(parts=(0, 1)))
RESULT = OpeningResult(context=ORDER.context, set_digest=ORDER.set_digest(), data=np.arange(900, dtype="<u4").tobytes())
SETTINGS = OpeningSettings(retry_s=10.0, patience_s=60.0, give_up_s=600.0)


class Talk:
    def __init__(self):
        self.shelf = BlobShelf()
        self.exchange = OpeningExchange(population="p", shelf=self.shelf, settings=SETTINGS, max_result_bytes=4096)

    def ask(self, now, **orders):
        return [self.read(action) for action in self.exchange.ask(3, orders, now=now)]

    def answer(self, result=RESULT, *, opener="h1", nonce=None, now=1.0, **changes):
        blob = split_blob(encode_result(result), piece_bytes=1024)
        answer = OpeningAnswer(round_id=3, nonce=nonce or self.nonce, answer=blob.ref, piece_digests=blob.piece_digests)
        said = self.exchange.take_answer(opener, msgspec.structs.replace(answer, **changes), now=now)
        return blob, [self.read(action)[1] for action in said]

    def refuse(self, cause, *, opener="h1", now=1.0):
        answer = OpeningAnswer(round_id=3, nonce=self.nonce, answer=None, refusal=cause)
        return [self.read(action)[1] for action in self.exchange.take_answer(opener, answer, now=now)]

    def piece(self, blob, index, *, data=None, opener="h1"):
        piece = Piece(sha256=blob.ref.sha256, index=index, data=data or blob.piece(index))
        said = self.exchange.take_piece(opener, piece, now=2.0)
        return None if said is None else [self.read(action)[1] for action in said]

    def read(self, action):
        topic = parse_device_topic(action.topic)
        kind = OpeningRequest if topic.kind == "opening-request" else Receipt
        message = decode_message(action.payload, kind)
        if kind is OpeningRequest:
            self.nonce = message.nonce
        return topic.device_id, message


@pytest.fixture
def talk():
    made = Talk()
    made.ask(0.0, h1=ORDER)
    return made


def test_a_request_is_repeated_by_the_same_name_until_it_is_answered(talk):
    first = talk.nonce
    assert talk.ask(5.0, h1=ORDER) == []
    ((opener, again),) = talk.ask(10.0, h1=ORDER)
    assert (opener, again.nonce) == ("h1", first)
    pieces = talk.shelf.pieces(again.request.sha256, tuple(range(again.request.num_pieces)))
    assert decode_order(b"".join(piece.data for piece in pieces), max_bytes=10_000) == ORDER
    ((_, other),) = talk.ask(11.0, h1=OTHER)
    assert other.nonce != first
    assert talk.shelf.piece_list(again.request.sha256) is None, "an order that nobody needs is no longer offered"
    later = Talk()
    later.ask(0.0, h1=ORDER)
    assert later.nonce == first, "a coordinator that was restarted asks the same by the same name"


def test_an_answer_is_taken_once_however_often_and_in_whatever_order_it_comes(talk):
    blob, said = talk.answer()
    assert said == []
    assert talk.piece(blob, 3) == []
    assert talk.piece(blob, 3) == []
    _, (missing,) = talk.answer()
    assert (missing.status, missing.missing) == (ReceiptStatus.INCOMPLETE, (0, 1, 2))
    for index in (2, 0):
        assert talk.piece(blob, index) == []
    (done,) = talk.piece(blob, 1)
    assert done.status is ReceiptStatus.ACCEPTED
    assert [one.result for one in talk.exchange.answers] == [RESULT]
    assert talk.piece(blob, 1) is None
    _, (again,) = talk.answer()
    assert again.status is ReceiptStatus.ACCEPTED
    assert len(talk.exchange.answers) == 1


@pytest.mark.parametrize("changes", [{"context": bytes(32)}, {"set_digest": bytes(32)}], ids=str)
def test_an_answer_about_another_round_or_set_is_none_and_its_opener_is_not_asked_again(talk, changes):
    blob, _ = talk.answer(msgspec.structs.replace(RESULT, **changes))
    said = [talk.piece(blob, index) for index in range(blob.ref.num_pieces)]
    assert said[-1][0].status is ReceiptStatus.REJECTED
    assert not talk.exchange.answers
    assert talk.exchange.refusals == {"h1": OpeningRefusal.MALFORMED}
    assert talk.exchange.counts["bad_answer"] == 1


def test_a_forged_piece_an_oversized_answer_and_digests_that_do_not_fit_are_refused():
    for spoil in ("piece", "size", "digests"):
        talk = Talk()
        talk.ask(0.0, h1=ORDER)
        if spoil == "size":
            _, said = talk.answer(msgspec.structs.replace(RESULT, data=bytes(5000)))
        elif spoil == "digests":
            _, said = talk.answer(piece_digests=bytes(32))
        else:
            blob, _ = talk.answer()
            said = talk.piece(blob, 0, data=bytes(1024))
        assert said[0].status is ReceiptStatus.REJECTED
        assert "h1" in talk.exchange.refusals


def test_an_answer_to_what_nobody_asks_is_refused_and_changes_nothing(talk):
    for opener, nonce in (("h2", talk.nonce), ("h1", bytes(16))):
        _, (said,) = talk.answer(opener=opener, nonce=nonce)
        assert said.status is ReceiptStatus.REJECTED
    assert not talk.exchange.refusals
    assert talk.exchange.take_piece("h1", Piece(sha256=bytes(32), index=0, data=b"x"), now=1.0) is None


def test_a_refusal_is_final_but_one_that_is_not_ready_is_asked_again_and_counts_as_silent(talk):
    (said,) = talk.refuse(OpeningRefusal.NOT_READY, now=59.0)
    assert said.status is ReceiptStatus.ACCEPTED
    assert not talk.exchange.refusals
    assert len(talk.ask(60.0, h1=ORDER)) == 1
    assert talk.exchange.silent(now=60.0) == {"h1"}
    talk.refuse(OpeningRefusal.TOO_FEW)
    assert talk.exchange.refusals == {"h1": OpeningRefusal.TOO_FEW}
    assert talk.exchange.silent(now=1000.0) == frozenset()


def test_who_sends_pieces_is_not_silent(talk):
    blob, _ = talk.answer(now=50.0)
    talk.exchange.take_piece("h1", Piece(sha256=blob.ref.sha256, index=0, data=blob.piece(0)), now=70.0)
    assert talk.exchange.silent(now=100.0) == frozenset()
    assert talk.exchange.silent(now=131.0) == {"h1"}


def test_a_reset_forgets_the_round(talk):
    talk.answer()
    talk.exchange.reset()
    assert not talk.exchange.answers
    assert talk.exchange.next_wakeup() == float("inf")
    assert not talk.shelf._blobs


def test_patience_that_makes_no_sense_is_refused():
    for changes in ({"retry_s": 0.0}, {"patience_s": 5.0}, {"give_up_s": float("inf")}):
        with pytest.raises(ValueError, match="need 0 < retry_s"):
            OpeningSettings(**changes)


def test_a_tff_program_is_not_given_a_task_whose_updates_nobody_may_see():
    class Fleet:
        plan = type("Plan", (), {"confidentiality": "helpers"})

    with pytest.raises(InvalidConfig, match="given each update"):
        FleetTransport(fleet=Fleet(), connect=lambda sink: None)
