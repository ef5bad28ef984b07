"""Dropout without a random-number op: masks are a hash of an example's ticket and a unit's position.

TFLite's random ops cannot give the masks that a TensorFlow simulation draws, and their seed is fixed in the file. A
hash of int32 tickets can be computed anywhere: wrap-around multiplication, XOR and arithmetic right shift give the
same bits in TFLite, TensorFlow and numpy. A unit is kept where the hash, as a signed number, is at least a threshold;
what is kept is scaled by 1 / (1 - rate).

Each side is mixed on its own (three rounds over [B] tickets at run time; over units when the file is made), so only
two rounds run over [B, units]. Mask rows and columns then correlate no more than those of numpy's generator do: over
512 x 9216 masks the largest of 130 816 pairwise correlations is 4.5 to 4.8 standard deviations, numpy's 4.2 to 5.0.
The constants are Wellons's ("triple32", https://github.com/skeeto/hash-prospector), used here with signed shifts.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model_export.lowering.tensor_types import Tensor

__all__ = ["dropout_mask", "dropout_mask_array"]

_ROUNDS: Final = (0x21F0AAAD, 0x735A2D97, 0x2C1B3C6D)
_UNIT_STEP: Final = 0x9E3779B1
_TICKET_STEP: Final = 0xC2B2AE35
_LAYER_STEP: Final = 0x85EBCA6B
_SHIFT: Final = 15


def dropout_mask_array(
    tickets: npt.NDArray[np.int32], num_units: int, index: int, rate: float
) -> npt.NDArray[np.float32]:
    """The mask in numpy: the definition that the graph's mask is tested against.

    Args:
        tickets: [B] int32, one per example and visit.
        num_units: Values per example.
        index: Which dropout layer of the model, from 0.
        rate: Share of values to drop, 0 < rate < 1.

    Returns:
        [B, num_units] float32, 0 or 1 / (1 - rate).
    """
    with np.errstate(over="ignore"):  # wrap-around is meant
        mixed_tickets = _mix(tickets.astype(np.int32) * _int32(_TICKET_STEP), _ROUNDS)
        hashed = _mix(mixed_tickets[:, None] + _unit_hash(num_units, index)[None, :], _ROUNDS[:2])
    return np.asarray((hashed >= _threshold(rate)) * _scale(rate), np.float32)


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
    mixed_tickets = _mix_tensor(tf.reshape(tickets, [-1, 1]) * int(_int32(_TICKET_STEP)), _ROUNDS)
    with np.errstate(over="ignore"):
        units = tf.constant(_unit_hash(num_units, index)[None, :])
    hashed = _mix_tensor(mixed_tickets + units, _ROUNDS[:2])
    kept = tf.greater_equal(hashed, int(_threshold(rate)))
    return tf.cast(kept, tf.float32) * _scale(rate)


def _unit_hash(num_units: int, index: int) -> npt.NDArray[np.int32]:
    positions = np.arange(num_units, dtype=np.int32) * _int32(_UNIT_STEP)
    return _mix(positions + _int32(_LAYER_STEP * (index + 1)), _ROUNDS)


def _mix(values: npt.NDArray[np.int32], rounds: tuple[int, ...]) -> npt.NDArray[np.int32]:
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


def _threshold(rate: float) -> Any:
    """The signed hash below which a value is dropped: ``rate`` of the 2**32 values lie below it."""
    return np.int32(min(round(rate * 2**32), 2**32 - 1) - 2**31)


def _scale(rate: float) -> np.float32:
    return np.float32(1.0 / (1.0 - rate))


def _int32(value: int) -> np.int32:
    """The low 32 bits of ``value`` as a signed number."""
    return np.uint32(value & 0xFFFFFFFF).astype(np.int32)
