"""Dropout without a random-number op: masks are a hash of an example's ticket and a unit's position.

TFLite's random ops cannot give the masks that a TensorFlow simulation draws, and their seed is fixed in the file. A
hash of int32 tickets can be computed anywhere, with the same bits in TFLite, TensorFlow and numpy.

The units of a layer lie in a table of rows and columns. Two steps make a unit's number, 0 .. 4095:

1. integers: a hash of (ticket, row) gives four whole numbers in -2048 .. 2047. Wrap-around multiplication, XOR and
   arithmetic right shift leave XNNPACK, but they run over [B, rows * 4] only, a twenty-fourth of the units of a 96 x 96
   table. The ticket is mixed in three rounds, the row when the file is made, both together in two; the constants are
   Wellons's ("triple32", https://github.com/skeeto/hash-prospector), used here with signed shifts.
2. floats, all inside XNNPACK: the four numbers times four whole numbers of the column, added, modulo 4096. No sum
   exceeds 2^24, so float32 is exact in any order of adding.

A sum of products with random factors is the classic universal hash (Carter and Wegman 1979, "Universal Classes of Hash
Functions"). A unit is kept where its number is at least a threshold: ``rate * 4096``, rounded up or down by a draw of
the example, so that each unit is dropped with probability ``rate`` to 2^-23. What is kept is scaled by 1 / (1 - rate).
Tests hold that units, tickets and layers look independent by twos, and units by threes. It is no cryptographic hash.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model_export.lowering.tensor_types import Tensor

__all__ = ["dropout_mask", "dropout_mask_array"]

_ROUNDS: Final = (0x21F0AAAD, 0x735A2D97, 0x2C1B3C6D)
_ROW_STEP: Final = 0x9E3779B1
_COLUMN_STEP: Final = 0x27D4EB2F
_TICKET_STEP: Final = 0xC2B2AE35
_LAYER_STEP: Final = 0x85EBCA6B
_SHIFT: Final = 15

_LEVELS: Final = 4096
_NUM_FACTORS: Final = 4
_TO_FACTOR: Final = 20
"""Right shift from a hash to a number in -2048 .. 2047."""
_DITHER_BITS: Final = 11
_DITHERS: Final = 1 << _DITHER_BITS
_TO_DITHER: Final = 32 - _DITHER_BITS
"""Right shift from a hash to a number in -1024 .. 1023."""

_Ints = npt.NDArray[np.int32]


def dropout_mask_array(tickets: _Ints, num_units: int, index: int, rate: float) -> npt.NDArray[np.float32]:
    """The mask in numpy: the definition that the graph's mask is tested against. It adds in integers.

    Args:
        tickets: [B] int32, one per example and visit.
        num_units: Values per example.
        index: Which dropout layer of the model, from 0.
        rate: Share of values to drop, 0 < rate < 1.

    Returns:
        [B, num_units] float32, 0 or 1 / (1 - rate).
    """
    num_rows, num_columns = _table(num_units)
    with np.errstate(over="ignore"):  # wrap-around is meant
        mixed_tickets = _mix(tickets.astype(np.int32) * _int32(_TICKET_STEP), _ROUNDS)
        hashed = _mix(mixed_tickets[:, None] + _row_hash(num_rows, index)[None, :], _ROUNDS[:2])
    factors = (hashed[:, :-1] >> _TO_FACTOR).reshape(-1, num_rows, _NUM_FACTORS)
    numbers = (factors @ _column_factors(num_columns, index)) % _LEVELS
    thresholds = ((hashed[:, -1:] >> _TO_DITHER) + _dithered_rate(rate)) >> _DITHER_BITS
    kept = numbers.reshape(len(tickets), -1)[:, :num_units] >= thresholds
    return np.asarray(kept * _scale(rate), np.float32)


def dropout_mask(tickets: Tensor, num_units: int, index: int, rate: float) -> Tensor:
    """The mask in a TensorFlow graph, of ops that are TFLite builtins; the same bits as ``dropout_mask_array``.

    Args:
        tickets: [B] int32; B may be unknown.
        num_units: Values per example.
        index: Which dropout layer of the model, from 0.
        rate: Share of values to drop, 0 < rate < 1.

    Returns:
        [B, num_units] float32.
    """
    num_rows, num_columns = _table(num_units)
    mixed_tickets = _mix_tensor(tf.reshape(tickets, [-1, 1]) * int(_int32(_TICKET_STEP)), _ROUNDS)
    hashed = _mix_tensor(mixed_tickets + tf.constant(_row_hash(num_rows, index)[None, :]), _ROUNDS[:2])
    factors = tf.cast(tf.bitwise.right_shift(hashed[:, :-1], tf.constant([[_TO_FACTOR]])), tf.float32)
    columns = tf.constant(_column_factors(num_columns, index).astype(np.float32) / _LEVELS)
    # Numbers over 4096, exactly: the integer part is what the modulus takes away.
    sums = tf.matmul(tf.reshape(factors, [1, -1, _NUM_FACTORS]), columns[None])
    shares = tf.reshape(sums - tf.floor(sums), [-1, num_rows, num_columns])
    dithers = tf.cast(tf.bitwise.right_shift(hashed[:, -1:], tf.constant([[_TO_DITHER]])), tf.float32)
    thresholds = tf.floor((dithers + float(_dithered_rate(rate))) * (1.0 / _DITHERS)) * (1.0 / _LEVELS)
    # 0 below the threshold, at least 1 / 4096 from it on.
    above = tf.nn.relu(shares - tf.reshape(thresholds - 1.0 / _LEVELS, [-1, 1, 1]))
    scale = _scale(rate)
    mask = tf.reshape(tf.minimum(above * (2.0 * _LEVELS * float(scale)), scale), [-1, num_rows * num_columns])
    return mask if num_rows * num_columns == num_units else mask[:, :num_units]


def _table(num_units: int) -> tuple[int, int]:
    """Rows and columns that hold the units; about as many of each, and without places left over if that is possible."""
    side = math.isqrt(num_units - 1) + 1
    for num_columns in range(side, 2 * side + 1):
        if num_units % num_columns == 0:
            return num_units // num_columns, num_columns
    return -(-num_units // side), side


def _row_hash(num_rows: int, index: int) -> _Ints:
    """[num_rows * 4 + 1]: what the ticket is mixed with; the last is the threshold's."""
    return _spread(num_rows * _NUM_FACTORS + 1, _ROW_STEP, index)


def _column_factors(num_columns: int, index: int) -> _Ints:
    """[4, num_columns] in -2048 .. 2047; the first of each column is odd, which makes every number equally likely."""
    factors = (_spread(_NUM_FACTORS * num_columns, _COLUMN_STEP, index) >> _TO_FACTOR).reshape(_NUM_FACTORS, -1)
    factors[0] |= 1
    return factors


def _spread(count: int, step: int, index: int) -> _Ints:
    with np.errstate(over="ignore"):
        return _mix(np.arange(1, count + 1, dtype=np.int32) * _int32(step) + _int32(_LAYER_STEP * (index + 1)), _ROUNDS)


def _mix(values: _Ints, rounds: tuple[int, ...]) -> _Ints:
    for constant in rounds:
        values = (values ^ (values >> np.int32(_SHIFT))) * _int32(constant)
    return values


def _mix_tensor(values: Tensor, rounds: tuple[int, ...]) -> Tensor:
    # A constant of the same rank: TFLite broadcasts it, and the file does not hold one shift per value.
    shift = tf.constant([[_SHIFT]], tf.int32)
    for constant in rounds:
        shifted = tf.bitwise.right_shift(values, shift)
        values = tf.bitwise.bitwise_xor(values, shifted) * int(_int32(constant))
    return values


def _dithered_rate(rate: float) -> int:
    """The threshold times 2048, raised so that rounding down after a draw from -1024 .. 1023 gives it on average."""
    return round(rate * _LEVELS * _DITHERS) + _DITHERS // 2


def _scale(rate: float) -> np.float32:
    return np.float32(1.0 / (1.0 - rate))


def _int32(value: int) -> np.int32:
    """The low 32 bits of ``value`` as a signed number."""
    return np.uint32(value & 0xFFFFFFFF).astype(np.int32)
