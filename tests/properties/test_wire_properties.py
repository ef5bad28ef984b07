"""Decoders survive any bytes; encoders and decoders are inverses; pieces rebuild exactly one blob."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire_protocol.blobs import BlobAssembler, split_blob
from wire_protocol.errors import BlobError, NonFiniteTensor, WireError
from wire_protocol.local_order import local_steps, num_local_steps
from wire_protocol.messages import DeviceHealth, DeviceMode, Piece, Report, decode_message, encode_message
from wire_protocol.plan import TensorSpec, TrainingPlan, decode_plan, encode_plan
from wire_protocol.tensors import decode_tensors, encode_tensors

_SHAPES = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)


def _plan(**settings_):
    base = {
        "batch_size": 4,
        "learning_rate": 0.1,
        "input_shape": (3,),
        "num_classes": 2,
        "weights": (TensorSpec(shape=(3, 2)), TensorSpec(shape=(2,))),
    }
    return TrainingPlan(**(base | settings_))


@given(st.binary(max_size=400), st.sampled_from([Report, Piece, DeviceHealth]))
def test_any_bytes_either_decode_or_raise_a_wire_error(data, kind):
    for candidate in (data, b"FW\x01" + data):
        try:
            decode_message(candidate, kind)
        except WireError:
            continue


_HEALTHS = st.builds(
    DeviceHealth,
    mode=st.sampled_from(DeviceMode),
    reason=st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    bytes_written_last_hour=st.integers(0, 2**53 - 1),
    uptime_s=st.floats(0, 1e8),
    num_rounds_accepted=st.integers(0, 2**53 - 1),
)


@given(_HEALTHS)
def test_a_health_message_round_trips(health):
    assert decode_message(encode_message(health), DeviceHealth) == health


@given(_HEALTHS, st.data())
def test_a_damaged_health_message_is_another_valid_one_or_raises_a_wire_error(health, draw):
    wire = bytearray(encode_message(health))
    wire[draw.draw(st.integers(0, len(wire) - 1))] ^= draw.draw(st.integers(1, 255))
    try:
        decoded = decode_message(bytes(wire), DeviceHealth)
    except WireError:
        return
    assert len(decoded.reason) <= 200
    assert 0 <= decoded.uptime_s <= 1e8
    assert min(decoded.bytes_written_last_hour, decoded.num_rounds_accepted) >= 0


@given(st.binary(max_size=400))
def test_any_bytes_are_a_plan_or_raise_a_wire_error(data):
    try:
        decode_plan(data)
    except WireError:
        return


@given(_SHAPES, st.integers(0, 2**32 - 1))
def test_tensors_round_trip_bit_for_bit(shapes, seed):
    rng = np.random.default_rng(seed)
    tensors = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    specs = [TensorSpec(shape=shape) for shape in shapes]
    decoded = decode_tensors(encode_tensors(tensors), specs)
    assert all(np.array_equal(a, b) and a.shape == b.shape for a, b in zip(tensors, decoded, strict=True))


@given(_SHAPES, st.data())
def test_mutated_tensor_files_decode_to_the_right_shapes_or_raise_a_wire_error(shapes, data):
    wire = bytearray(encode_tensors([np.ones(shape, np.float32) for shape in shapes]))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    specs = [TensorSpec(shape=shape) for shape in shapes]
    try:
        decoded = decode_tensors(bytes(wire), specs)
    except WireError:
        return
    assert [tensor.shape for tensor in decoded] == [spec.shape for spec in specs]
    assert all(np.isfinite(tensor).all() for tensor in decoded)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_single_non_finite_value_is_refused(bad):
    tensor = np.zeros((3, 2), np.float32)
    tensor[2, 1] = bad
    with pytest.raises(NonFiniteTensor):
        decode_tensors(encode_tensors([tensor]), [TensorSpec(shape=(3, 2))])


@given(st.binary(min_size=1, max_size=6000), st.integers(1024, 2048), st.randoms(use_true_random=False))
def test_pieces_in_any_order_and_repeated_rebuild_the_blob(data, piece_bytes, rng):
    blob = split_blob(data, piece_bytes=piece_bytes)
    assembler = BlobAssembler(blob.ref)
    assembler.set_piece_list(blob.piece_digests)
    order = list(range(blob.ref.num_pieces)) * 2
    rng.shuffle(order)
    for index in order:
        assembler.add(index, blob.piece(index))
    assert assembler.result() == data


@given(st.binary(min_size=1500, max_size=4000), st.data())
def test_no_changed_piece_is_ever_taken(data, draw):
    blob = split_blob(data, piece_bytes=1024)
    assembler = BlobAssembler(blob.ref)
    assembler.set_piece_list(blob.piece_digests)
    index = draw.draw(st.integers(0, blob.ref.num_pieces - 1))
    piece = bytearray(blob.piece(index))
    piece[draw.draw(st.integers(0, len(piece) - 1))] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(BlobError):
        assembler.add(index, bytes(piece))
    assert assembler.num_pieces_held == 0


def test_a_forged_piece_list_is_refused():
    blob = split_blob(bytes(5000), piece_bytes=1024)
    with pytest.raises(BlobError):
        BlobAssembler(blob.ref).set_piece_list(random.Random(0).randbytes(len(blob.piece_digests)))


@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 3), st.integers(0, 20))
@settings(max_examples=60)
def test_every_epoch_visits_every_example_once(num_examples, batch_size, num_epochs, max_steps):
    plan = _plan(batch_size=batch_size, num_epochs=num_epochs, max_steps=max_steps)
    steps = list(local_steps(plan, num_examples=num_examples, round_id=3, device_id="d1"))
    assert len(steps) == num_local_steps(plan, num_examples)
    visits = np.concatenate([step.indices for step in steps])
    if not max_steps:
        for epoch in range(num_epochs):
            assert sorted(visits[epoch * num_examples : (epoch + 1) * num_examples]) == list(range(num_examples))
    assert all(len(step.tickets) == len(step.indices) <= batch_size for step in steps)


def test_the_order_is_pinned_so_that_another_numpy_visits_the_same_way():
    plan = _plan(batch_size=4, seed=5)
    steps = list(local_steps(plan, num_examples=6, round_id=1, device_id="pi-1"))
    assert [step.indices.tolist() for step in steps] == PINNED_ORDER
    assert [step.tickets.tolist() for step in steps] == PINNED_TICKETS


PINNED_ORDER = [[5, 4, 0, 2], [1, 3]]
PINNED_TICKETS = [[102062200, 857154444, 851567312, 1699143331], [728040627, 844758636]]


def test_another_round_or_device_visits_in_another_order():
    plan = _plan(batch_size=64)
    orders = {
        tuple(next(local_steps(plan, num_examples=40, round_id=round_id, device_id=device)).indices)
        for round_id in (1, 2)
        for device in ("a", "b")
    }
    assert len(orders) == 4


@given(st.integers(0, 2**63 - 1), st.floats(1e-6, 10))
def test_a_plan_round_trips(seed, learning_rate):
    plan = _plan(seed=seed, learning_rate=learning_rate)
    assert decode_plan(encode_plan(plan)) == plan
