"""Who may report: every way to be somebody else is refused before anything is decoded, and counted by its reason."""

import collections
import json
import logging
import os
import struct

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_link.link import Incoming, LinkUp
from broker_link.memory_broker import MemoryBroker
from coordinator.device_guard import OpenGuard, RosterGuard
from coordinator.enrolment_tokens import make_token
from coordinator.refusals import GuardRefusal
from coordinator.roster import DeviceState, Roster
from edge_client.enrolment import enrolment_request
from edge_client.identity import DeviceIdentity
from flockwise.cli import main
from wire_protocol.enrolment import EnrolmentOutcome, EnrolmentToken
from wire_protocol.errors import MalformedMessage
from wire_protocol.messages import (
    DeviceStatus,
    Enrolled,
    PieceRequest,
    decode_message,
    encode_message,
)
from wire_protocol.signed import SIGNED_OVERHEAD_BYTES, bytes_to_sign, frame_signed, parse_signed
from wire_protocol.topics import device_down, device_status, device_up, status_filter, up_filter

POPULATION = "p"
MESSAGE = encode_message(PieceRequest(sha256=bytes(32), indices=(0,)))
TOPIC = device_up(POPULATION, "dev-1", "piece-request")
START = 1_000_000.0


class Post:
    """A guard at an in-memory broker, with an operator's hand on its roster."""

    def __init__(self, path) -> None:
        self.path = path
        self.now = START
        self.broker = MemoryBroker(schedule=lambda _, deliver: deliver())
        self.passed: list[Incoming] = []
        self.answers: list[tuple[str, Enrolled]] = []
        self.open()
        filters = (up_filter(POPULATION), status_filter(POPULATION))
        self.link = self.broker.link(subscriptions=filters, sink=self._take)
        self.link.start()

    def open(self) -> None:
        self.guard = RosterGuard(
            Roster(self.path), population=POPULATION, publish=self._answer, wall_clock=lambda: self.now
        )

    def _answer(self, topic, payload) -> None:
        self.answers.append((topic, decode_message(payload, Enrolled)))

    def _take(self, event) -> None:
        event = self.guard.screen(event)
        if isinstance(event, Incoming):
            self.passed.append(event)

    def send(self, topic, payload):
        """Publishes; returns what came through of it."""
        before = len(self.passed)
        self.broker.publish(topic, payload)
        return self.passed[before:]

    @property
    def refusals(self):
        return dict(self.guard.refusals)

    def token(self, **changes) -> EnrolmentToken:
        values = {"device_id": None, "valid_s": 3600.0, "num_uses": 1} | changes
        token, record = make_token(population=POPULATION, now=self.now, random_bytes=os.urandom, **values)
        self.operator(lambda roster: roster.add_token(record))
        return token

    def operator(self, act) -> None:
        """What another process does to the roster."""
        roster = Roster(self.path)
        act(roster)
        roster.close()

    def enrol(self, device_id, identity, token, *, population=POPULATION) -> EnrolmentOutcome:
        request = enrolment_request(
            token, population=population, device_id=device_id, public_key=identity.public_key, nonce=bytes(16)
        )
        topic = device_up(POPULATION, device_id, "enrol")
        assert self.send(topic, identity.seal(topic, encode_message(request))) == []
        answer_topic, answer = self.answers[-1]
        assert answer_topic == device_down(POPULATION, device_id, "enrolled")
        assert answer.nonce == request.nonce
        return answer.outcome


def _identity(epoch=1) -> DeviceIdentity:
    return DeviceIdentity(Ed25519PrivateKey.generate(), epoch=epoch)


def _again(identity, epoch) -> DeviceIdentity:
    """The same key in another epoch."""
    return DeviceIdentity(identity._key, epoch=epoch)


@pytest.fixture
def post(tmp_path):
    post = Post(tmp_path / "roster.sqlite")
    yield post
    post.guard.close()


@pytest.fixture
def dev_1(post):
    identity = _identity()
    assert post.enrol("dev-1", identity, post.token()) is EnrolmentOutcome.ACCEPTED
    return identity


def test_what_an_enrolled_device_signed_comes_through_without_its_envelope(post, dev_1):
    assert post.send(TOPIC, dev_1.seal(TOPIC, MESSAGE)) == [Incoming(topic=TOPIC, payload=MESSAGE)]
    assert post.refusals == {}


def test_each_forgery_is_refused_and_counted(post, dev_1):
    other = _identity()
    assert post.enrol("dev-2", other, post.token()) is EnrolmentOutcome.ACCEPTED
    good = dev_1.seal(TOPIC, MESSAGE)
    elsewhere = device_up(POPULATION, "dev-1", "report")
    attacks = [
        (TOPIC, MESSAGE, GuardRefusal.UNSIGNED),
        (TOPIC, b"", GuardRefusal.UNSIGNED),
        (TOPIC, good[: SIGNED_OVERHEAD_BYTES - 1], GuardRefusal.MALFORMED),
        (TOPIC, good[:2] + b"\x02" + good[3:], GuardRefusal.MALFORMED),
        (TOPIC, bytes(2_000_000).replace(b"\0\0\0", b"FS\1", 1), GuardRefusal.MALFORMED),
        (TOPIC, other.seal(TOPIC, MESSAGE), GuardRefusal.BAD_SIGNATURE),
        (elsewhere, good, GuardRefusal.BAD_SIGNATURE),
        (device_up(POPULATION, "dev-2", "piece-request"), good, GuardRefusal.BAD_SIGNATURE),
        (device_status(POPULATION, "dev-1"), good, GuardRefusal.BAD_SIGNATURE),
        (device_up(POPULATION, "dev-3", "piece-request"), good, GuardRefusal.UNKNOWN_DEVICE),
        (device_up(POPULATION, "dev-10", "piece-request"), good, GuardRefusal.UNKNOWN_DEVICE),
    ]
    expected: collections.Counter = collections.Counter()
    for topic, payload, reason in attacks:
        assert post.send(topic, payload) == [], reason
        expected[reason] += 1
        assert post.refusals == expected
    assert post.send(TOPIC, good), "the forgeries have used up nothing"


def test_a_flipped_bit_anywhere_is_refused(post, dev_1):
    good = dev_1.seal(TOPIC, MESSAGE)
    for index in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[index] ^= 1 << bit
            assert post.send(TOPIC, bytes(bad)) == [], (index, bit)
    assert sum(post.guard.refusals.values()) == 8 * len(good)
    assert post.send(TOPIC, good)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_mutation_of_a_signed_message_is_accepted(data, tmp_path_factory):
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    good = DeviceIdentity(key, epoch=data.draw(st.integers(1, 2**32 - 1))).seal(TOPIC, MESSAGE)
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, len(good)))
    bad = good[:start] + data.draw(st.binary(max_size=80)) + good[stop:]
    topic = data.draw(st.sampled_from([TOPIC, TOPIC + "x", TOPIC.replace("dev-1", "dev-2")]))
    if (topic, bad) == (TOPIC, good):
        return
    try:
        signed = parse_signed(bad)
    except MalformedMessage:
        return
    except Exception as error:  # noqa: BLE001
        assert type(error).__name__ == "UnsupportedVersion"  # noqa: PT017
        return
    from coordinator.device_guard import _is_signed_by

    assert not _is_signed_by(key.public_key(), topic, signed)


@given(
    topics=st.tuples(st.text(max_size=9), st.text(max_size=9)),
    numbers=st.tuples(*[st.integers(0, 2**32 - 1)] * 4),
    messages=st.tuples(st.binary(max_size=9), st.binary(max_size=9)),
)
def test_two_different_messages_are_never_signed_as_the_same_bytes(topics, numbers, messages):
    first = bytes_to_sign(topics[0], epoch=numbers[0], counter=numbers[1], message=messages[0])
    second = bytes_to_sign(topics[1], epoch=numbers[2], counter=numbers[3], message=messages[1])
    same = (topics[0], *numbers[:2], messages[0]) == (topics[1], *numbers[2:], messages[1])
    assert (first == second) == same


@given(data=st.binary(max_size=200))
def test_an_envelope_that_parses_is_framed_to_the_same_bytes(data):
    data = b"FS\x01" + data
    try:
        signed = parse_signed(data)
    except MalformedMessage:
        assert len(data) < SIGNED_OVERHEAD_BYTES
        return
    assert frame_signed(signed) == data


def test_a_replay_a_double_delivery_and_an_old_message_are_refused(post, dev_1):
    first, second, third = (dev_1.seal(TOPIC, MESSAGE) for _ in range(3))
    assert post.send(TOPIC, second)
    assert post.send(TOPIC, second) == []
    assert post.send(TOPIC, first) == []
    assert post.send(TOPIC, third)
    assert post.refusals == {GuardRefusal.STALE: 2}


def _kept(post) -> dict[str, dict[str, int]]:
    """What the roster file says was refused."""
    found = {}
    post.operator(lambda roster: found.update(roster.refusals(POPULATION)))
    return {device: {reason: record.num for reason, record in reasons.items()} for device, reasons in found.items()}


def _alarm(post, device_id="dev-1") -> str:
    """The operator's view."""
    words = ("coordinator", "devices", "show", device_id, "--roster", str(post.path), "--population", POPULATION)
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    text = CliRunner().invoke(main, words).output
    alarm = json.loads(result.output)["clone_alarm"]
    assert ("CLONED: " in text, "CLONED? " in text) == (alarm == "proved", alarm == "possible")
    return alarm


def test_a_falling_epoch_is_refused_and_raises_the_clone_alarm(post, dev_1):
    restarted = _again(dev_1, epoch=2)
    assert post.send(TOPIC, restarted.seal(TOPIC, MESSAGE))
    assert post.send(TOPIC, dev_1.seal(TOPIC, MESSAGE)) == []
    assert post.refusals == {GuardRefusal.FALLING_EPOCH: 1}
    post.guard.refresh(now=0.0)
    assert _kept(post) == {"dev-1": {"falling_epoch": 1}}
    assert _alarm(post) == "possible"


def test_two_machines_that_count_in_the_same_epoch_are_found_out(post, dev_1):
    """A state directory was copied: both began the epoch at the same counter, and one has come much further."""
    original, copy = (_again(dev_1, epoch=2) for _ in range(2))
    for index in range(200):
        assert post.send(TOPIC, original.seal(TOPIC, MESSAGE + bytes([index])))
    assert post.send(TOPIC, copy.seal(TOPIC, MESSAGE + b"copy")) == []
    assert post.refusals == {GuardRefusal.CONFLICTING: 1}
    post.guard.close()
    assert _kept(post) == {"dev-1": {"conflicting": 1}}
    assert _alarm(post) == "proved"
    post.open()


def test_two_machines_side_by_side_in_one_epoch_are_found_out(post, dev_1):
    for _ in range(100):
        assert post.send(TOPIC, dev_1.seal(TOPIC, MESSAGE))
    copy = _again(dev_1, epoch=dev_1.epoch)
    copy._counter = dev_1._counter - 5
    assert post.send(TOPIC, copy.seal(TOPIC, MESSAGE + b"copy")) == []
    assert post.refusals == {GuardRefusal.CONFLICTING: 1}


def test_no_replay_however_often_looks_like_two_machines(post, dev_1):
    recorded = [dev_1.seal(TOPIC, MESSAGE + bytes([index])) for index in range(100)]
    status = device_status(POPULATION, "dev-1")
    presence = dev_1.seal(status, encode_message(DeviceStatus(presence="online", client_version="")))
    for data in recorded:
        assert post.send(TOPIC, data)
    assert post.send(status, presence)
    for _ in range(2):
        for data in recorded:
            assert post.send(TOPIC, data) == []
        assert post.send(status, presence), "the broker repeats presence"
    assert post.refusals == {GuardRefusal.STALE: 200}
    # Nor do the last messages of an epoch that come again after a restart of the device.
    assert post.send(TOPIC, _again(dev_1, epoch=2).seal(TOPIC, MESSAGE))
    assert post.send(TOPIC, recorded[-1]) == []
    assert post.refusals == {GuardRefusal.STALE: 201}
    post.guard.refresh(now=0.0)
    assert _alarm(post) == "none"


def test_presence_that_was_signed_twice_is_found_out_too(post, dev_1):
    topic = device_status(POPULATION, "dev-1")
    copy = _again(dev_1, epoch=dev_1.epoch)
    copy._counter = dev_1._counter
    online, offline = (encode_message(DeviceStatus(presence=word, client_version="")) for word in ("online", "offline"))
    assert post.send(topic, dev_1.seal(topic, online))
    assert post.send(topic, copy.seal(topic, offline)) == []
    assert post.refusals == {GuardRefusal.CONFLICTING: 1}


def test_refusals_are_kept_by_device_and_made_up_ids_cost_one_line(post, dev_1):
    good = dev_1.seal(TOPIC, MESSAGE)
    for _ in range(3):
        post.send(TOPIC, good[:-1] + b"x")
    for index in range(500):
        post.send(device_up(POPULATION, f"made-up-{index}", "report"), good)
    post.send(device_up(POPULATION, "made-up", "report"), MESSAGE)
    post.guard.refresh(now=0.0)
    expected = {"dev-1": {"bad_signature": 3}, "": {"unknown_device": 500, "unsigned": 1}}
    assert _kept(post) == expected
    post.send(TOPIC, MESSAGE)
    post.guard.refresh(now=1.0)
    assert _kept(post) == expected, "at most one write in two seconds, whatever comes"
    post.guard.refresh(now=2.0)
    expected["dev-1"]["unsigned"] = 1
    post.guard.refresh(now=4.0)
    assert _kept(post) == expected
    post.guard.close()
    post.open()
    assert post.refusals == {}
    assert _kept(post) == expected, "a restart forgets nothing"
    listed = CliRunner().invoke(
        main, ["coordinator", "devices", "list", "--roster", str(post.path), "--population", POPULATION, "--json"]
    )
    shown = json.loads(listed.output)
    assert shown["refusals_of_others"]["unknown_device"]["num"] == 500
    assert {reason: record["num"] for reason, record in shown["devices"][0]["refusals"].items()} == expected["dev-1"]


def test_a_new_key_begins_without_the_refusals_of_the_old_one(post, dev_1):
    post.send(TOPIC, MESSAGE)
    post.operator(lambda roster: roster.set_state(POPULATION, "dev-1", DeviceState.REVOKED, now=post.now))
    post.now += 1
    assert post.enrol("dev-1", _identity(), post.token(device_id="dev-1")) is EnrolmentOutcome.ACCEPTED
    post.guard.refresh(now=0.0)
    assert _kept(post) == {}


def test_an_id_whose_key_has_changed_is_named_to_be_expelled_however_fast_that_went(post, dev_1):
    assert post.guard.refresh(now=0.0) == []
    post.operator(lambda roster: roster.set_state(POPULATION, "dev-1", DeviceState.REVOKED, now=post.now))
    post.now += 1
    assert post.enrol("dev-1", _identity(), post.token(device_id="dev-1")) is EnrolmentOutcome.ACCEPTED
    assert post.guard.refresh(now=0.5) == ["dev-1"], "what the old key has half sent is not the new one's"
    assert post.guard.refresh(now=4.0) == []


def test_each_reason_is_logged_at_once_and_then_once_a_minute_at_most(post, dev_1, caplog):
    caplog.set_level(logging.WARNING, logger="coordinator.device_guard")
    for now in range(0, 120, 2):
        for _ in range(10):
            post.send(TOPIC, MESSAGE)
        post.guard.refresh(now=float(now))
    lines = [record.getMessage() for record in caplog.records if "messages_refused" in record.getMessage()]
    assert lines == [
        "messages_refused reason=unsigned num=10 num_total=10 last_device_id=dev-1",
        "messages_refused reason=unsigned num=300 num_total=310 last_device_id=dev-1",
    ]
    caplog.clear()
    post.send(device_up(POPULATION, "no-such", "report"), dev_1.seal(TOPIC, MESSAGE))
    post.guard.refresh(now=120.0)
    assert "reason=unknown_device num=1 num_total=1 last_device_id=(none" in caplog.text


def test_a_restarted_coordinator_still_refuses_what_it_had_written_down(post, dev_1):
    old = dev_1.seal(TOPIC, MESSAGE)
    assert post.send(TOPIC, old)
    post.guard.refresh(now=0.0)
    unwritten = dev_1.seal(TOPIC, MESSAGE)
    assert post.send(TOPIC, unwritten)
    post.open()  # killed: the guard before was not closed
    assert post.send(TOPIC, old) == []
    assert post.refusals == {GuardRefusal.STALE: 1}
    # The documented window: what came since the last refresh can come once more.
    assert post.send(TOPIC, unwritten)
    assert post.send(TOPIC, unwritten) == []


def test_a_coordinator_that_stops_in_order_leaves_no_window(post, dev_1):
    old = dev_1.seal(TOPIC, MESSAGE)
    assert post.send(TOPIC, old)
    post.guard.close()
    post.open()
    assert post.send(TOPIC, old) == []


def test_a_last_will_signed_before_its_time_is_believed_but_not_of_an_older_epoch(post, dev_1):
    topic = device_status(POPULATION, "dev-1")
    will = dev_1.seal(topic, encode_message(DeviceStatus(presence="offline", client_version="")))
    assert post.send(TOPIC, dev_1.seal(TOPIC, MESSAGE))
    assert post.send(topic, will)
    assert post.send(TOPIC, _again(dev_1, epoch=2).seal(TOPIC, MESSAGE))
    assert post.send(topic, will) == []
    assert post.refusals == {GuardRefusal.STALE: 1}


def test_a_revoked_device_is_refused_within_one_refresh_and_named_once(post, dev_1):
    assert post.guard.refresh(now=0.0) == []
    post.operator(lambda roster: roster.set_state(POPULATION, "dev-1", DeviceState.REVOKED, now=START))
    assert post.guard.refresh(now=1.0) == []
    assert post.guard.refresh(now=2.0) == ["dev-1"]
    assert post.guard.refresh(now=4.0) == []
    assert post.send(TOPIC, dev_1.seal(TOPIC, MESSAGE)) == []
    assert post.refusals == {GuardRefusal.REVOKED: 1}
    post.operator(lambda roster: roster.set_state(POPULATION, "dev-1", DeviceState.ACTIVE, now=START))
    post.guard.refresh(now=6.0)
    assert post.send(TOPIC, dev_1.seal(TOPIC, MESSAGE))


def test_a_restarted_coordinator_hears_of_all_that_are_revoked(post, dev_1):
    post.operator(lambda roster: roster.set_state(POPULATION, "dev-1", DeviceState.REVOKED, now=START))
    post.open()
    assert post.guard.refresh(now=0.0) == ["dev-1"]


# -- enrolment


def test_a_token_lets_in_one_device_once_and_its_repetition_gets_the_same_answer(post):
    token, identity = post.token(), _identity()
    assert post.enrol("dev-1", identity, token) is EnrolmentOutcome.ACCEPTED
    assert post.enrol("dev-1", identity, token) is EnrolmentOutcome.ACCEPTED
    assert post.enrol("dev-2", _identity(), token) is EnrolmentOutcome.TOKEN_USED
    assert post.enrol("dev-2", identity, token) is EnrolmentOutcome.TOKEN_USED


def test_each_bad_token_is_refused_with_its_reason(post, dev_1):
    expired = post.token(valid_s=10.0)
    named = post.token(device_id="dev-8")
    fresh = post.token()
    forged = EnrolmentToken(token_id=fresh.token_id, secret=bytes(32))
    unknown = EnrolmentToken(token_id="0" * 16, secret=fresh.secret)
    post.now += 10.0
    assert post.enrol("dev-7", _identity(), expired) is EnrolmentOutcome.TOKEN_EXPIRED
    assert post.enrol("dev-7", _identity(), named) is EnrolmentOutcome.OTHER_DEVICE
    assert post.enrol("dev-7", _identity(), forged) is EnrolmentOutcome.UNKNOWN_TOKEN
    assert post.enrol("dev-7", _identity(), unknown) is EnrolmentOutcome.UNKNOWN_TOKEN
    assert post.enrol("dev-7", _identity(), fresh, population="q") is EnrolmentOutcome.UNKNOWN_TOKEN
    assert post.enrol("coordinator", _identity(), fresh) is EnrolmentOutcome.OTHER_DEVICE
    assert post.enrol("dev-1", _identity(), fresh) is EnrolmentOutcome.ALREADY_ENROLLED
    assert post.enrol("dev-7", _identity(), fresh) is EnrolmentOutcome.ACCEPTED, "nothing has used it up"


def test_a_captured_enrolment_serves_no_other_key_and_no_other_device(post):
    token, victim, thief = post.token(), _identity(), _identity()
    request = enrolment_request(
        token, population=POPULATION, device_id="dev-1", public_key=victim.public_key, nonce=bytes(16)
    )
    topic = device_up(POPULATION, "dev-1", "enrol")
    import msgspec

    swapped = msgspec.structs.replace(request, public_key=thief.public_key)
    assert post.send(topic, thief.seal(topic, encode_message(request))) == []
    assert post.refusals == {GuardRefusal.BAD_SIGNATURE: 1}
    assert post.answers == []
    post.send(topic, thief.seal(topic, encode_message(swapped)))
    assert post.answers[-1][1].outcome is EnrolmentOutcome.UNKNOWN_TOKEN
    other = device_up(POPULATION, "dev-2", "enrol")
    post.send(other, victim.seal(other, encode_message(request)))
    assert post.answers[-1][1].outcome is EnrolmentOutcome.UNKNOWN_TOKEN


def test_a_revoked_id_comes_back_only_by_a_token_made_for_it_since_and_with_another_key(post, dev_1):
    reusable, early = post.token(num_uses=5), post.token(device_id="dev-1")
    post.now += 1
    post.operator(lambda roster: roster.set_state(POPULATION, "dev-1", DeviceState.REVOKED, now=post.now))
    post.now += 1
    late, new = post.token(device_id="dev-1"), _identity()
    assert post.enrol("dev-1", new, reusable) is EnrolmentOutcome.REVOKED
    assert post.enrol("dev-1", new, early) is EnrolmentOutcome.REVOKED
    assert post.enrol("dev-1", dev_1, late) is EnrolmentOutcome.REVOKED
    assert post.enrol("dev-1", new, late) is EnrolmentOutcome.ACCEPTED
    assert post.send(TOPIC, dev_1.seal(TOPIC, MESSAGE)) == []
    assert post.send(TOPIC, new.seal(TOPIC, MESSAGE))


def test_the_roster_holds_nothing_that_could_enrol(post):
    token = post.token()
    post.guard.close()
    for path in post.path.parent.iterdir():
        assert token.secret not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0, path
    post.open()


@given(text=st.text(max_size=80))
def test_what_is_no_token_is_refused_without_being_repeated(text):
    with pytest.raises(MalformedMessage) as caught:
        EnrolmentToken.parse("x" + text)
    assert len(text) < 5 or text not in str(caught.value)


def test_a_token_survives_its_text():
    token = EnrolmentToken(token_id="0123456789abcdef", secret=bytes(range(32)))  # noqa: S106
    assert EnrolmentToken.parse(f" {token.text}\n") == token
    assert "secret" not in repr(token)


def test_an_open_coordinator_takes_envelopes_off_and_lets_everything_else_be():
    guard, identity = OpenGuard(), _identity()
    assert guard.screen(Incoming(topic=TOPIC, payload=identity.seal(TOPIC, MESSAGE))).payload == MESSAGE
    for event in (LinkUp(), Incoming(topic=TOPIC, payload=MESSAGE), Incoming(topic=TOPIC, payload=b"FS")):
        assert guard.screen(event) == event


def test_the_envelope_is_as_the_document_says():
    signed = parse_signed(_identity(epoch=7).seal(TOPIC, MESSAGE))
    framed = frame_signed(signed)
    assert framed[:3] == b"FS\x01"
    assert struct.unpack(">II", framed[3:11]) == (7, 1)
    assert framed[75:] == MESSAGE
