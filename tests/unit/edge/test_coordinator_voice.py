"""A device with a pinned key believes what its coordinator signed, and nothing that a broker makes of it."""

import pytest

from broker_link.link import Incoming, LinkUp
from coordinator.down_signing import load_signer
from coordinator.errors import InvalidConfig, ReleaseError
from coordinator.releases.signing_keys import read_key
from edge_client.coordinator_voice import CoordinatorVoice
from edge_client.state_writer import StateWriter
from wire_protocol.signed import SignedMessage, bytes_to_sign, frame_signed, parse_signed
from wire_protocol.topics import device_down, population_round, population_task

TASK = population_task("digits")
ASSIGNMENT = device_down("digits", "pi-1", "assignment")


@pytest.fixture
def signer(tmp_path):
    return load_signer(tmp_path / "coordinator")


def _voice(tmp_path, key, device_id="pi-1"):
    return CoordinatorVoice(
        population="digits", device_id=device_id, key=key, position_path=tmp_path / "position", writer=StateWriter()
    )


@pytest.mark.parametrize("topic", [TASK, ASSIGNMENT, population_round("digits")])
def test_what_the_coordinator_signed_is_heard_without_its_envelope(tmp_path, signer, topic):
    voice = _voice(tmp_path, signer.public_key)
    sealed = signer.seal(topic, b"FW message")
    assert voice.screen(Incoming(topic=topic, payload=sealed)) == Incoming(topic=topic, payload=b"FW message")
    assert not voice.refused


@pytest.mark.parametrize("topic", [TASK, ASSIGNMENT, population_round("digits")])
def test_what_nobody_signed_is_not_heard(tmp_path, signer, topic):
    voice = _voice(tmp_path, signer.public_key)
    assert voice.screen(Incoming(topic=topic, payload=b"FW message")) is None
    assert voice.refused["unsigned"] == 1


def test_an_altered_message_another_topic_and_another_key_are_not_heard(tmp_path, signer):
    voice = _voice(tmp_path, signer.public_key)
    sealed = signer.seal(ASSIGNMENT, b"FW message")
    other = load_signer(tmp_path / "another")
    for topic, payload in (
        (ASSIGNMENT, sealed[:-1] + b"!"),
        (device_down("digits", "pi-1", "receipt"), sealed),
        (ASSIGNMENT, signer.seal(device_down("digits", "pi-2", "assignment"), b"FW message")),
        (ASSIGNMENT, other.seal(ASSIGNMENT, b"FW message")),
        (ASSIGNMENT, b"FS" + bytes(30)),
    ):
        assert voice.screen(Incoming(topic=topic, payload=payload)) is None
    assert voice.refused["bad_signature"] == 5


def test_a_devices_own_signature_does_not_pass_for_the_coordinators(tmp_path, signer):
    """The same key, the same bytes, the domain of devices."""
    statement = bytes_to_sign(ASSIGNMENT, epoch=1, counter=1, message=b"FW message")
    forged = frame_signed(
        SignedMessage(epoch=1, counter=1, signature=signer._key.sign(statement), message=b"FW message")
    )
    assert _voice(tmp_path, signer.public_key).screen(Incoming(topic=ASSIGNMENT, payload=forged)) is None


def test_an_older_task_is_not_heard_again_after_a_restart_of_the_device(tmp_path, signer):
    first, second = signer.seal(TASK, b"FW first"), signer.seal(TASK, b"FW second")
    voice = _voice(tmp_path, signer.public_key)
    for sealed in (first, second, second):
        assert voice.screen(Incoming(topic=TASK, payload=sealed)) is not None
    restarted = _voice(tmp_path, signer.public_key)
    assert restarted.screen(Incoming(topic=TASK, payload=first)) is None
    assert restarted.refused["old_task"] == 1
    assert restarted.screen(Incoming(topic=TASK, payload=second)) is not None


def test_a_restarted_coordinator_is_newer_than_it_was(tmp_path, signer):
    old = [signer.seal(TASK, b"FW old") for _ in range(5)][-1]
    new = load_signer(tmp_path / "coordinator").seal(TASK, b"FW new")
    assert parse_signed(new).position > parse_signed(old).position
    voice = _voice(tmp_path, signer.public_key)
    voice.screen(Incoming(topic=TASK, payload=new))
    assert voice.screen(Incoming(topic=TASK, payload=old)) is None


def test_without_a_pinned_key_envelopes_are_taken_off_and_everything_is_heard(tmp_path, signer):
    voice = _voice(tmp_path, None)
    assert voice.screen(Incoming(topic=TASK, payload=signer.seal(TASK, b"FW x"))).payload == b"FW x"
    assert voice.screen(Incoming(topic=TASK, payload=b"FW y")).payload == b"FW y"


def test_pieces_and_other_topics_and_events_pass(tmp_path, signer):
    voice = _voice(tmp_path, signer.public_key)
    piece = device_down("digits", "pi-1", "piece")
    assert signer.seal(piece, b"FW piece") == b"FW piece"
    for event in (
        Incoming(topic=piece, payload=b"FW piece"),
        Incoming(topic="fw/v1/digits/release/timestamp.json", payload=b"{}"),
        LinkUp(),
        Incoming(topic=TASK, payload=b""),
    ):
        assert voice.screen(event) == event


def test_a_key_file_that_is_no_key_is_an_error_that_says_which(tmp_path):
    (tmp_path / "coordinator.key").write_text("nonsense")
    with pytest.raises(InvalidConfig, match=r"coordinator\.key"):
        load_signer(tmp_path)


def test_a_key_of_a_kind_that_nobody_knows_is_an_error_that_says_which(tmp_path):
    """Found by scripts/fuzz: one bit of the object identifier away from Ed25519."""
    unknown = (
        b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VsBCIEIPnDDPIC+KyJutQV+YnOiByGT8TF6/GL+y90crppz/Cu\n"
        b"-----END PRIVATE KEY-----\n"
    )
    (tmp_path / "coordinator.key").write_bytes(unknown)
    with pytest.raises(InvalidConfig, match=r"coordinator\.key"):
        load_signer(tmp_path)
    (tmp_path / "targets.pem").write_bytes(unknown)
    with pytest.raises(ReleaseError, match=r"targets\.pem"):
        read_key(tmp_path / "targets.pem")
