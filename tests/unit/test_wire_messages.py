"""Messages keep their bytes, and nothing that is not exactly one message is accepted."""

import importlib.util
from pathlib import Path

import msgspec
import pytest

from wire_protocol.errors import InvalidIdentifier, MalformedMessage, OversizedMessage, UnsupportedVersion
from wire_protocol.limits import DEFAULT_PIECE_BYTES, MAX_CONTROL_BYTES
from wire_protocol.messages import CheckIn, Piece, Report, decode_message, encode_message
from wire_protocol.topics import device_down, device_up, parse_device_topic, up_filter

_SPEC = importlib.util.spec_from_file_location("wire_v1", Path(__file__).parents[1] / "golden" / "wire_v1.py")
golden = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden)

_INDICES = range(len(golden.MESSAGES))


@pytest.mark.parametrize("index", _INDICES)
def test_every_message_encodes_to_its_golden_bytes_and_back(index):
    message, wire = golden.MESSAGES[index], golden.golden_path(index).read_bytes()
    assert encode_message(message) == wire
    assert decode_message(wire, type(message)) == message


def test_the_golden_files_are_those_of_the_messages_and_no_others():
    assert {path.name for path in golden.DIRECTORY.iterdir()} == {golden.golden_path(i).name for i in _INDICES}


@pytest.mark.parametrize("index", _INDICES)
def test_no_prefix_and_no_extension_of_a_message_is_a_message(index):
    message, wire = golden.MESSAGES[index], golden.golden_path(index).read_bytes()
    for broken in [wire[:cut] for cut in range(len(wire))] + [wire + b"\x00"]:
        with pytest.raises((MalformedMessage, UnsupportedVersion)):
            decode_message(broken, type(message))


@pytest.mark.parametrize("index", _INDICES)
def test_a_message_is_refused_where_another_kind_is_expected(index):
    message, wire = golden.MESSAGES[index], golden.golden_path(index).read_bytes()
    for other in {type(known) for known in golden.MESSAGES} - {type(message)}:
        with pytest.raises((MalformedMessage, OversizedMessage)):
            decode_message(wire, other)


def test_an_unknown_field_is_refused():
    fields = msgspec.to_builtins(golden.MESSAGES[0], builtin_types=(bytes,)) | {"type": "check-in", "extra": 1}
    with pytest.raises(MalformedMessage, match="extra"):
        decode_message(b"FW\x01" + msgspec.msgpack.encode(fields), CheckIn)


def test_another_version_is_named_as_such():
    wire = golden.golden_path(0).read_bytes()
    with pytest.raises(UnsupportedVersion, match="version 2"):
        decode_message(b"FW\x02" + wire[3:], CheckIn)


def test_the_length_is_checked_before_anything_is_parsed():
    with pytest.raises(OversizedMessage):
        decode_message(b"\xff" * (MAX_CONTROL_BYTES + 1), CheckIn)


def test_metrics_that_are_not_finite_are_refused():
    report = golden.MESSAGES[4]
    fields = msgspec.to_builtins(report, builtin_types=(bytes,)) | {"type": "report"}
    fields["metrics"] = fields["metrics"] | {"loss_sum": float("nan")}
    with pytest.raises(MalformedMessage):
        decode_message(b"FW\x01" + msgspec.msgpack.encode(fields), Report)


def test_a_default_piece_with_topic_and_envelope_stays_below_128_kib():
    wire = encode_message(Piece(sha256=bytes(32), index=2047, data=bytes(DEFAULT_PIECE_BYTES)))
    topic = device_down("p" * 64, "d" * 64, "piece")
    assert len(wire) + len(topic) + 16 < 128 * 1024


def test_topics_have_at_most_seven_slashes_and_round_trip():
    topic = device_up("fleet", "pi-1", "report")
    assert topic.count("/") <= 7
    parsed = parse_device_topic(topic)
    assert (parsed.population, parsed.device_id, parsed.direction, parsed.kind) == ("fleet", "pi-1", "up", "report")


@pytest.mark.parametrize("bad", ["", "a/b", "+", "#", "a#", "../x", "-x", "é", "a" * 65, "a\x00b", "a b"])
def test_an_id_that_could_be_a_wildcard_or_a_path_is_refused(bad):
    with pytest.raises(InvalidIdentifier):
        up_filter(bad)
    with pytest.raises((InvalidIdentifier, MalformedMessage)):
        parse_device_topic(f"fw/v1/fleet/d/{bad}/up/report")
