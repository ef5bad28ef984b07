"""The reference of the protocol model: what was promised, counted and committed, kept apart from the system itself.

It is told what the real parts do, at the moment they do it, and compares. It shares no code with the coordinator: the
mean is computed here in float64 from the bytes that devices made and the journal's rows.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from coordinator.aggregation import ClientUpdate, ServerState
from coordinator.round_journal import Contribution
from simulators.trials.errors import ProtocolMismatch
from wire_protocol.messages import Assignment, Receipt, ReceiptStatus, RejectionReason, Report
from wire_protocol.tensors import Tensors

__all__ = ["Key", "ProtocolReference"]

Key: TypeAlias = tuple[str, int, bytes]
"""Device, round, nonce: what names one report."""

_TOLERANCE = 1e-6
_MAY_BE_COUNTED = frozenset({RejectionReason.WRONG_ROUND})
"""A round no longer remembered refuses also what it has counted (docs/wire-protocol.md)."""


class ProtocolReference:
    """Keeps the exact account of one run.

    Args:
        initial: The weights before the first round.
    """

    def __init__(self, initial: Tensors) -> None:
        self.weights = [weight.astype(np.float64) for weight in initial]
        self._state_bytes = _raw(initial)
        self.made: dict[Key, bytes] = {}
        """The encoded update that a device made, by key; empty for an evaluation."""
        self._sent: dict[Key, bytes] = {}
        self._by_delta: dict[bytes, Key] = {}
        self._noted: dict[int, dict[str, Key]] = {}
        self._durable: dict[int, dict[str, Key]] = {}
        self._rejected: set[Key] = set()
        self.accepted: set[Key] = set()
        self.committed: dict[int, frozenset[Key]] = {}
        self.abandoned: set[int] = set()
        self._ending: set[int] = set()
        self.num_commits = 0
        self.last_round_id = 0
        self.max_error = 0.0
        self.nonces: dict[bytes, tuple[str, int]] = {}

    # -- devices

    def report_made(self, key: Key, encoded: bytes, delta: Tensors | None) -> None:
        """A device has fixed the bytes of a report, and stored them."""
        known = self.made.setdefault(key, encoded)
        _require(known == encoded, f"{key[0]} made other bytes for round {key[1]} and the same nonce")
        if delta is not None:
            self._by_delta[_raw(delta)] = key

    def report_sent(self, device_id: str, report: Report, payload: bytes) -> None:
        """A device publishes a report."""
        key = (device_id, report.round_id, report.nonce)
        _require(key in self.made, f"{device_id} published a report of round {key[1]} that it has not stored")
        _require(self._sent.setdefault(key, payload) == payload, f"{device_id} changed the report of round {key[1]}")

    # -- the coordinator

    def round_opened(self, round_id: int) -> None:
        """A round id is used for the first time."""
        _require(round_id > self.last_round_id, f"round id {round_id} after {self.last_round_id}")
        self.last_round_id = round_id

    def assigned(self, device_id: str, message: Assignment, checkpoint: bytes) -> None:
        """An assignment is published, with the weights that it names."""
        holder = self.nonces.setdefault(message.nonce, (device_id, message.round_id))
        _require(holder == (device_id, message.round_id), "one nonce was given out twice")
        _require(checkpoint == self._state_bytes, f"round {message.round_id} starts from weights that are not durable")

    def noted(self, round_id: int, contribution: Contribution) -> None:
        """The journal takes a contribution; it is not durable yet."""
        device_id = contribution.device_id
        counted = self._noted.setdefault(round_id, {})
        _require(device_id not in counted, f"{device_id} was noted twice in round {round_id}")
        nonce = next((nonce for nonce, holder in self.nonces.items() if holder == (device_id, round_id)), b"")
        key = (device_id, round_id, nonce)
        _require(key in self.made, f"{device_id} was counted in round {round_id} for a report that it never made")
        _require(self.made[key] == (contribution.model_delta or b""), f"{device_id} was counted with other bytes")
        _require(key not in self._rejected, f"{device_id} was rejected in round {round_id}, and then counted")
        counted[device_id] = key

    def synced(self) -> None:
        """Everything noted so far is durable."""
        _require(not self._ending & self.committed.keys(), f"committed and then abandoned: {self._ending}")
        self.abandoned |= self._ending
        self._ending.clear()
        for round_id, counted in self._noted.items():
            self._durable.setdefault(round_id, {}).update(counted)

    def lost(self) -> None:
        """The coordinator died: what was not durable never was."""
        self._ending.clear()
        self._noted = {round_id: dict(counted) for round_id, counted in self._durable.items()}

    def receipt_sent(self, device_id: str, receipt: Receipt) -> None:
        """A receipt is published: a promise."""
        key = (device_id, receipt.round_id, receipt.nonce)
        counted = self._durable.get(key[1], {}).get(device_id)
        if receipt.status is ReceiptStatus.ACCEPTED:
            _require(counted == key, f"{device_id} was told accepted in round {key[1]}, which is not durable")
            self.accepted.add(key)
        elif receipt.status is ReceiptStatus.REJECTED and receipt.reason not in _MAY_BE_COUNTED:
            _require(counted != key, f"{device_id} was told rejected in round {key[1]}, but had been counted")
            self._rejected.add(key)

    def folded(self, current: Sequence[ClientUpdate]) -> None:
        """The updates in the accumulator: each is a device's, none is there twice, and they are the journal's first."""
        keys = [self._by_delta.get(_raw(update.model_delta)) for update in current]
        _require(None not in keys, "an update was folded that no device made")
        _require(len(set(keys)) == len(keys), "an update was folded twice")
        counted = [list(of_round.values()) for of_round in self._durable.values()]
        in_order = any(keys == known[: len(keys)] for known in counted)
        _require(in_order, "an update was folded before it was durable, or not in the journal's order")

    def committed_round(self, state: ServerState, rows: Sequence[Contribution], round_id: int) -> None:
        """A new state is durable: the mean of exactly what the journal counted."""
        keys = frozenset(self._noted[round_id][row.device_id] for row in rows)
        _require(keys == set(self._durable.get(round_id, {}).values()), f"round {round_id} counted what is not durable")
        _require(round_id not in self.committed and round_id not in self.abandoned, f"round {round_id} ended twice")
        _require(state.num_commits == self.num_commits + 1, f"{state.num_commits} commits after {self.num_commits}")
        self._check_mean(state, rows)
        self.num_commits += 1
        self.weights = [weight.astype(np.float64) for weight in state.weights]
        self._state_bytes = _raw(state.weights)
        self.committed[round_id] = keys
        promised = {key for key in self.accepted if key[1] == round_id}
        _require(promised <= keys, f"round {round_id} lacks an acknowledged update")

    def abandoned_round(self, round_id: int) -> None:
        """A round is given up, as a whole; for good from the next sync on."""
        self._ending.add(round_id)

    def resumed(self, journaled: dict[int, set[str]]) -> None:
        """What a restarted coordinator's journal has counted, of rounds that are not over."""
        for round_id, device_ids in journaled.items():
            promised = {key[0] for key in self.accepted if key[1] == round_id}
            _require(promised <= device_ids, f"a restart lost an acknowledged update of round {round_id}")
            known = set(self._durable.get(round_id, {}))
            _require(device_ids == known, f"a restart changed what round {round_id} has counted")

    def _check_mean(self, state: ServerState, rows: Sequence[Contribution]) -> None:
        weight_sum = sum(row.aggregation_weight for row in rows)
        error = 0.0
        for index, (before, after) in enumerate(zip(self.weights, state.weights, strict=True)):
            total = np.zeros_like(before)
            for row in rows:
                total += row.aggregation_weight * _tensor(row.model_delta or b"", index, before)
            exact = before + total / weight_sum
            error = max(error, float((np.abs(after - exact) / np.maximum(1.0, np.abs(exact))).max()))
        _require(error <= _TOLERANCE, f"commit {state.num_commits} is {error:.3g} off the exact mean")
        self.max_error = max(self.max_error, error)


def _tensor(
    encoded: bytes, index: int, like: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """Tensor ``index`` of a file of one tensor, read without the decoder under test: the last bytes are its numbers."""
    if index:
        raise ValueError("the model of this trial has one tensor")
    return np.frombuffer(encoded[-4 * like.size :], dtype="<f4").astype(np.float64).reshape(like.shape)


def _raw(tensors: Sequence["np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]) -> bytes:
    return b"".join(np.ascontiguousarray(tensor, dtype="<f4").tobytes() for tensor in tensors)


def _require(holds: bool, otherwise: str) -> None:  # noqa: FBT001 - a condition, as in `assert`
    if not holds:
        raise ProtocolMismatch(otherwise)
