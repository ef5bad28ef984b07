"""Recurrent layers, unrolled over time, with backpropagation through time by formula.

The input's product with its kernel is one matrix product over all steps, and so are all three weight gradients: only
the recurrent products are made step by step. Gates as in Keras: LSTM i, f, g, o (Hochreiter and Schmidhuber 1997);
GRU z, r, n with the reset gate after the product (Cho et al. 2014; Keras's ``reset_after=True``).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import tensorflow as tf

from model_export.lowering.tensor_types import Tensor, concatenate, plus

__all__ = ["RecurrentPullback", "run_recurrent"]

RecurrentPullback: TypeAlias = Callable[[Tensor], tuple[Tensor | None, Tensor, Tensor, Tensor | None]]
"""Gradient of the result -> gradients of the input (``None`` if not wanted), kernel, recurrent kernel and bias."""

_State: TypeAlias = tuple[Tensor, ...]
"""[1, B, U] each; the first is what the layer gives."""

_Gradients: TypeAlias = tuple[Tensor | None, ...]
"""Of a state; ``None`` is zero."""
_CellPullback: TypeAlias = Callable[[_State], tuple[Tensor, Tensor, _Gradients]]
"""Gradients of the new state -> of what came from the input, from the recurrent product, and of the old state but
for its way through that product (``None``: it has no other)."""


_Cell: TypeAlias = Callable[[Tensor, Tensor, _State], tuple[_State, _CellPullback]]
"""What came from the input, from the recurrent product, and the state -> the new state and its pullback."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    state_before: _State
    pullback: _CellPullback


def run_recurrent(
    kind: str,
    x: Tensor,
    kernel: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    *,
    order: Sequence[int],
    gives_in_order: bool,
    return_sequences: bool,
    needs_dx: bool,
) -> tuple[Tensor, RecurrentPullback]:
    """Runs a recurrent layer from a state of zeros.

    Args:
        kind: ``"gru"``, ``"lstm"`` or ``"simple"``.
        x: [B, T, I].
        kernel: [I, G * U], G gates of U units.
        recurrent: [U, G * U].
        bias: [G * U], for a GRU [2, G * U], or ``None``.
        order: The steps in the order in which they are taken.
        gives_in_order: Whether a sequence is given in order of time, and not in that order.
        return_sequences: Whether the result is a sequence [B, T, U], or the last [B, U].
        needs_dx: Whether anything trainable lies before this layer.
    """
    batch, length, num_in = x.shape
    units, width = recurrent.shape
    rows = tf.reshape(x, [1, batch * length, num_in])
    kernel_3d, recurrent_3d = tf.reshape(kernel, [1, num_in, width]), tf.reshape(recurrent, [1, units, width])
    of_input, of_state = _split_bias(kind, bias, width)
    products = tf.reshape(_add(tf.matmul(rows, kernel_3d), of_input), [batch, length, width])
    zeros = tf.reshape(tf.slice(products, [0, 0, 0], [batch, 1, units]) * 0.0, [1, batch, units])
    state: _State = (zeros, zeros) if kind == "lstm" else (zeros,)
    steps, outputs = [], []
    for t in order:
        from_input = tf.reshape(tf.slice(products, [0, t, 0], [batch, 1, width]), [1, batch, width])
        new_state, pullback = _CELLS[kind](from_input, _add(tf.matmul(state[0], recurrent_3d), of_state), state)
        steps.append(_Step(state_before=state, pullback=pullback))
        state = new_state
        outputs.append(state[0])
    # Where in the result each step's output stands.
    places = list(order) if gives_in_order else list(range(length))
    y = (
        _stack([outputs[places.index(t)] for t in range(length)])
        if return_sequences
        else tf.reshape(outputs[-1], [batch, units])
    )

    def pull_back(dy: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        of_products, of_recurrent = _through_time(steps, dy, recurrent_3d, places if return_sequences else None)
        # Back in order of time, as the rows of x are.
        in_time = [of_products[list(order).index(t)] for t in range(length)]
        d_products = tf.reshape(_stack(in_time), [1, batch * length, width])
        d_recurrent = tf.reshape(_stack(of_recurrent), [1, batch * length, width])
        states = tf.reshape(_stack([step.state_before[0] for step in steps]), [1, batch * length, units])
        dx = tf.reshape(tf.matmul(d_products, kernel_3d, transpose_b=True), x.shape) if needs_dx else None
        return (
            dx,
            tf.reshape(tf.matmul(rows, d_products, transpose_a=True), kernel.shape),
            tf.reshape(tf.matmul(states, d_recurrent, transpose_a=True), recurrent.shape),
            None if bias is None else _bias_gradient(kind, d_products, d_recurrent),
        )

    return y, pull_back


def _through_time(
    steps: Sequence[_Step], dy: Tensor, recurrent: Tensor, places: Sequence[int] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of what came from the input and from the recurrent product at each step, in order of the steps.

    Args:
        steps: In the order in which they were taken.
        dy: Gradient of the result.
        recurrent: [1, U, G * U].
        places: Where in the result each step stands; ``None``: the result is the last step alone.
    """
    batch, units = dy.shape[0], dy.shape[-1]
    of_products: list[Tensor] = []
    of_recurrent: list[Tensor] = []
    blank = steps[0].state_before[0] * 0.0
    last = None if places is not None else tf.reshape(dy, [1, batch, units])
    carried: list[Tensor | None] = [last, *[None] * (len(steps[0].state_before) - 1)]
    for index in reversed(range(len(steps))):
        if places is not None:
            here = tf.reshape(tf.slice(dy, [0, places[index], 0], [batch, 1, units]), [1, batch, units])
            carried[0] = plus(carried[0], here)
        of_new = tuple(blank if gradient is None else gradient for gradient in carried)
        d_input, d_state, of_old = steps[index].pullback(of_new)
        of_products.insert(0, d_input)
        of_recurrent.insert(0, d_state)
        through = tf.matmul(d_state, recurrent, transpose_b=True)
        carried = [plus(of_old[0], through), *of_old[1:]]
    return of_products, of_recurrent


def _simple(from_input: Tensor, from_state: Tensor, _: _State) -> tuple[_State, _CellPullback]:
    h = tf.tanh(from_input + from_state)

    def pullback(of_new: _State) -> tuple[Tensor, Tensor, _Gradients]:
        dz = of_new[0] * (1.0 - h * h)
        return dz, dz, (None,)

    return (h,), pullback


def _lstm(from_input: Tensor, from_state: Tensor, state: _State) -> tuple[_State, _CellPullback]:
    i, f, g, o = _split_gates(from_input + from_state, 4)
    i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
    before = state[1]
    c = f * before + i * g
    squashed = tf.tanh(c)

    def pullback(of_new: _State) -> tuple[Tensor, Tensor, _Gradients]:
        dh, dc = of_new
        dc = dc + dh * o * (1.0 - squashed * squashed)
        gates = [dc * g * (i * (1.0 - i)), dc * before * (f * (1.0 - f)), dc * i * (1.0 - g * g)]
        dz = concatenate([*gates, dh * squashed * (o * (1.0 - o))], 2)
        return dz, dz, (None, dc * f)

    return (o * squashed, c), pullback


def _gru(from_input: Tensor, from_state: Tensor, state: _State) -> tuple[_State, _CellPullback]:
    input_z, input_r, input_n = _split_gates(from_input, 3)
    state_z, state_r, state_n = _split_gates(from_state, 3)
    z, r = tf.sigmoid(input_z + state_z), tf.sigmoid(input_r + state_r)
    n = tf.tanh(input_n + r * state_n)
    before = state[0]

    def pullback(of_new: _State) -> tuple[Tensor, Tensor, _Gradients]:
        (dh,) = of_new
        dn = dh * (1.0 - z) * (1.0 - n * n)
        dz = dh * (before - n) * (z * (1.0 - z))
        dr = dn * state_n * (r * (1.0 - r))
        return concatenate([dz, dr, dn], 2), concatenate([dz, dr, dn * r], 2), (dh * z,)

    return (z * before + (1.0 - z) * n,), pullback


_CELLS: Final[dict[str, _Cell]] = {"gru": _gru, "lstm": _lstm, "simple": _simple}


def _split_gates(values: Tensor, count: int) -> list[Tensor]:
    _, batch, width = values.shape
    size = width // count
    return [tf.slice(values, [0, 0, k * size], [1, batch, size]) for k in range(count)]


def _split_bias(kind: str, bias: Tensor | None, width: int) -> tuple[Tensor | None, Tensor | None]:
    """What is added to the input's product and to the recurrent one."""
    if bias is None or kind != "gru":
        return bias, None
    return tuple(tf.reshape(tf.slice(bias, [row, 0], [1, width]), [width]) for row in (0, 1))


def _bias_gradient(kind: str, d_products: Tensor, d_recurrent: Tensor) -> Tensor:
    if kind != "gru":
        return tf.reduce_sum(d_products, [0, 1])
    return concatenate([tf.reduce_sum(d_products, 1), tf.reduce_sum(d_recurrent, 1)], 0)


def _add(value: Tensor, bias: Tensor | None) -> Tensor:
    return value if bias is None else value + bias


def _stack(values: Sequence[Tensor]) -> Tensor:
    """T of [1, B, U] -> [B, T, U]."""
    _, batch, size = values[0].shape
    return concatenate([tf.reshape(value, [batch, 1, size]) for value in values], 1)
