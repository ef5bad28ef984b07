"""An opener's session and book: one set per round for ever, the same answer however often it is asked."""

import itertools
import os
import random
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

from broker_link.link import Incoming, LinkDown, LinkUp
from edge_client.channel import DeviceChannel
from edge_client.errors import StorageError
from edge_client.events import Tick
from edge_client.opener.committee_desk import CommitteeDesk
from edge_client.opener.opener_session import MAX_ORDER_BYTES, OpenerSession
from edge_client.opener.set_book import SqliteSetBook
from secure_sum.errors import OpeningRefused, OtherAuthority, RefusalCause
from secure_sum.openings import decode_result, encode_order
from simulators.masked_round import MaskedRoundInMemory
from wire_protocol.blobs import BlobAssembler, BlobRef, split_blob
from wire_protocol.messages import (
    OpeningAnswer,
    OpeningRefusal,
    OpeningRequest,
    Piece,
    PieceList,
    PieceListRequest,
    PieceRequest,
    Receipt,
    ReceiptStatus,
    decode_message,
    encode_message,
    message_kind,
)
from wire_protocol.topics import device_down

NONCE = b"o" * 16
KINDS = {message_kind(kind): kind for kind in (OpeningAnswer, PieceRequest, PieceListRequest, Piece)}


class Wire:
    """The coordinator's end of a session, which answers piece requests and keeps what the opener says."""

    def __init__(self, answer, *, order=b"", ref=None, device_id="m000"):
        self.blob = split_blob(order or b"-", piece_bytes=1024)
        self.ref = ref or self.blob.ref
        channel = DeviceChannel(population="virtual", device_id=device_id, client_version="")
        self.session = OpenerSession(channel, answer=answer, uniform=random.Random(1).uniform)
        self.device_id = device_id
        self.now = 0.0
        self.heard = []
        self._say(LinkUp())

    def down(self, message):
        topic = device_down("virtual", self.device_id, message_kind(message))
        self._say(Incoming(topic=topic, payload=encode_message(message)))

    def request(self, nonce=NONCE):
        self.down(OpeningRequest(round_id=1, nonce=nonce, request=self.ref))

    def pass_time(self, seconds):
        end = self.now + seconds
        while self.session.next_wakeup() <= end:
            self.now = max(self.now, self.session.next_wakeup())
            self._say(Tick())
        self.now = end

    def lose_link(self):
        self._say(LinkDown(reason="gone"))
        self._say(LinkUp())

    def receipt(self, status, missing=()):
        self.down(Receipt(round_id=1, nonce=NONCE, status=status, missing=missing))

    def _say(self, event):
        for published in self.session.handle(event, self.now):
            message = decode_message(published.payload, KINDS[published.topic.rpartition("/")[2]])
            self.heard.append(message)
            match message:
                case PieceListRequest():
                    self.down(PieceList(sha256=self.ref.sha256, digests=self.blob.piece_digests))
                case PieceRequest():
                    for index in message.indices:
                        self.down(Piece(sha256=self.ref.sha256, index=index, data=self.blob.piece(index)))

    def of(self, kind):
        return [message for message in self.heard if isinstance(message, kind)]


@pytest.fixture(scope="module")
def masked():
    round_ = MaskedRoundInMemory(num_devices=5, num_members=3)
    sealed = {name: round_.seal(name, np.zeros(3, np.uint32)) for name in round_.roster[:4]}
    return round_, encode_order(round_.order(round_.opening(sealed), sealed, "m000"))


def _wire(masked, **kwargs):
    round_, order = masked
    return Wire(lambda order: round_.ask(order, "m000"), order=order, **kwargs)


def test_a_request_is_fetched_answered_and_repeated_until_it_is_taken(masked):
    round_, _ = masked
    wire = _wire(masked)
    wire.request()
    (answer,) = wire.of(OpeningAnswer)
    assembler = BlobAssembler(answer.answer)
    for piece in wire.of(Piece):
        assembler.add(piece.index, piece.data)
    assert decode_result(assembler.result(), max_bytes=10**6).context == round_.context
    wire.pass_time(60.0)
    repeated = wire.of(OpeningAnswer)
    assert len(repeated) > 1
    assert all(message == answer for message in repeated)
    wire.receipt(ReceiptStatus.ACCEPTED)
    num_sent = len(wire.heard)
    wire.pass_time(600.0)
    assert len(wire.heard) == num_sent


def test_pieces_that_were_lost_are_sent_again(masked):
    wire = _wire(masked)
    wire.request()
    before = len(wire.of(Piece))
    wire.receipt(ReceiptStatus.INCOMPLETE, missing=(0,))
    assert [piece.index for piece in wire.of(Piece)[before:]] == [0]


def test_a_coordinator_that_has_lost_the_answer_gets_the_same_bytes_again(masked):
    wire = _wire(masked)
    wire.request()
    wire.receipt(ReceiptStatus.ACCEPTED)
    wire.request()
    wire.receipt(ReceiptStatus.INCOMPLETE, missing=(0,))
    one, other = wire.of(OpeningAnswer)
    assert one == other
    assert wire.session.num_answered == 1
    assert len({piece.data for piece in wire.of(Piece)}) == 1


def test_a_lost_connection_costs_no_more_than_time(masked):
    wire = _wire(masked)
    wire.request()
    wire.lose_link()
    assert len(wire.of(OpeningAnswer)) == 2


def test_a_refusal_names_the_rule_and_the_device(masked):
    def refuse(order):
        raise OpeningRefused(RefusalCause.BAD_BOX, "no", device_id="d00001")

    wire = Wire(refuse, order=masked[1])
    wire.request()
    (answer,) = wire.of(OpeningAnswer)
    assert (answer.refusal, answer.device_id, answer.answer) == (OpeningRefusal.BAD_BOX, "d00001", None)
    assert wire.of(Piece) == []


def test_an_opener_that_cannot_write_its_book_says_that_it_is_not_ready_and_can_be_asked_again(masked):
    round_, order = masked
    faults = itertools.chain([StorageError("disk full")], itertools.repeat(None))

    def answer(order):
        fault = next(faults)
        if fault is not None:
            raise fault
        return round_.ask(order, "m000")

    wire = Wire(answer, order=order)
    wire.request()
    assert [message.refusal for message in wire.of(OpeningAnswer)] == [OpeningRefusal.NOT_READY]
    wire.receipt(ReceiptStatus.ACCEPTED)
    wire.request()
    assert wire.of(OpeningAnswer)[-1].refusal is None


def test_bytes_that_are_no_order_are_refused_as_malformed():
    wire = Wire(lambda order: pytest.fail("looked at"), order=b"no order at all")
    wire.request()
    assert [message.refusal for message in wire.of(OpeningAnswer)] == [OpeningRefusal.MALFORMED]


def test_an_order_that_is_too_large_is_not_fetched():
    ref = BlobRef(sha256=bytes(32), num_bytes=MAX_ORDER_BYTES + 1, piece_bytes=2**20, pieces_sha256=bytes(32))
    wire = Wire(lambda order: pytest.fail("looked at"), ref=ref)
    wire.request()
    assert wire.of(PieceListRequest) == wire.of(PieceRequest) == []
    assert [message.refusal for message in wire.of(OpeningAnswer)] == [OpeningRefusal.MALFORMED]


def test_a_newer_request_replaces_the_one_under_way(masked):
    wire = _wire(masked)
    wire.request()
    wire.request(nonce=b"p" * 16)
    assert {message.nonce for message in wire.of(OpeningAnswer)} == {NONCE, b"p" * 16}
    assert wire.session.num_answered == 2


def test_what_is_said_to_another_device_is_not_heard(masked):
    wire = _wire(masked)
    message = OpeningRequest(round_id=1, nonce=NONCE, request=wire.ref)
    topic = device_down("virtual", "m001", message_kind(message))
    assert wire.session.handle(Incoming(topic=topic, payload=encode_message(message)), 0.0) == []


# -- the book


def test_a_book_keeps_the_first_set_of_a_round_also_after_a_restart(tmp_path):
    path = tmp_path / "sets.sqlite"
    with SqliteSetBook(path) as book:
        assert book.claim(b"c" * 32, b"1" * 32)
        assert book.claim(b"c" * 32, b"1" * 32)
        assert not book.claim(b"c" * 32, b"2" * 32)
    with SqliteSetBook(path) as book:
        assert not book.claim(b"c" * 32, b"2" * 32)
        assert book.claim(b"c" * 32, b"1" * 32)
        assert book.claim(b"d" * 32, b"2" * 32)


def test_a_member_that_is_killed_after_it_has_written_its_set_knows_it_again(tmp_path):
    path = tmp_path / "sets.sqlite"
    program = (
        "import os, sys; from pathlib import Path; from edge_client.opener.set_book import SqliteSetBook\n"
        "book = SqliteSetBook(Path(sys.argv[1])); book.claim(b'c' * 32, b'1' * 32); os.kill(os.getpid(), 9)"
    )
    died = subprocess.run([sys.executable, "-c", program, str(path)], check=False, env=os.environ)
    assert died.returncode == -9
    with SqliteSetBook(path) as book:
        assert not book.claim(b"c" * 32, b"2" * 32)
        assert book.claim(b"c" * 32, b"1" * 32)


def test_a_book_that_one_thread_opened_serves_another(tmp_path):
    # A daemon is made by one thread and serves in another.
    claimed = []
    with SqliteSetBook(tmp_path / "sets.sqlite") as book:
        thread = threading.Thread(target=lambda: claimed.append(book.claim(b"c" * 32, b"1" * 32)))
        thread.start()
        thread.join()
    assert claimed == [True]


def test_nothing_in_a_book_can_be_changed_or_taken_out(tmp_path):
    path = tmp_path / "sets.sqlite"
    with SqliteSetBook(path) as book:
        book.claim(b"c" * 32, b"1" * 32)
    database = sqlite3.connect(path)
    for statement in ("DELETE FROM sets", "UPDATE sets SET set_digest = x'00'"):
        with pytest.raises(sqlite3.IntegrityError, match="for ever"):
            database.execute(statement)


def test_a_book_that_is_no_database_answers_nothing(tmp_path):
    path = tmp_path / "sets.sqlite"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StorageError, match="cannot be used"):
        SqliteSetBook(path)


def test_a_book_whose_disk_is_full_raises_instead_of_answering(tmp_path):
    book = SqliteSetBook(tmp_path / "sets.sqlite")
    book._database.execute("PRAGMA max_page_count = 1")

    def claim_many():
        for number in range(10_000):
            book.claim(number.to_bytes(32, "big"), b"1" * 32)

    with pytest.raises(StorageError, match="cannot be written"):
        claim_many()


# -- the desk


def _desk(round_, *, directory=None, key=None, **settings):
    party = round_._parties["m000"]

    def accept(data):
        if directory is None:
            raise OtherAuthority("not the authority that was pinned")
        return directory

    return CommitteeDesk(
        population="virtual",
        device_id="m000",
        key=key or party.sealing,
        book=round_.books["m000"],
        accept_directory=accept,
        **{"min_contributors": 2} | settings,
    )


def _order(round_):
    sealed = {name: round_.seal(name, np.zeros(3, np.uint32)) for name in round_.roster}
    return round_.order(round_.opening(sealed), sealed, "m000")


def test_a_member_answers_with_the_keys_of_the_directory_that_it_has_pinned():
    round_ = MaskedRoundInMemory(num_devices=4, num_members=3)
    order = _order(round_)
    assert _desk(round_, directory=round_.directory())(order) == round_.ask(order, "m000")


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"directory": None}, RefusalCause.UNREGISTERED),
        ({"is_on_mains": lambda: False}, RefusalCause.NOT_READY),
        ({"min_contributors": 5}, RefusalCause.TOO_FEW),
    ],
)
def test_a_member_refuses_what_its_owner_or_its_pin_does_not_allow(settings, cause):
    round_ = MaskedRoundInMemory(num_devices=4, num_members=3)
    desk = _desk(round_, **{"directory": round_.directory()} | settings)
    with pytest.raises(OpeningRefused) as caught:
        desk(_order(round_))
    assert caught.value.cause is cause


def test_a_member_whose_key_is_not_the_directorys_refuses():
    round_ = MaskedRoundInMemory(num_devices=4, num_members=3)
    desk = _desk(round_, directory=round_.directory(), key=round_._parties["m001"].sealing)
    with pytest.raises(OpeningRefused, match="another sealing key"):
        desk(_order(round_))
