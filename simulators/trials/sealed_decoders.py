"""The decoders of `secure_sum`: what they may raise, and what a good input looks like."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from coordinator.admission import decode_sealed_part
from secure_sum.errors import SecureSumError
from secure_sum.helper_shares import SealingOrder, read_seeds, seal_to_helpers
from secure_sum.mask_graph import MaskGraph
from secure_sum.openings import (
    HelperAsk,
    KeyAsk,
    MaskAsk,
    OpeningAsk,
    OpeningOrder,
    OpeningResult,
    contributor_of,
    decode_order,
    decode_result,
    encode_order,
    encode_result,
)
from secure_sum.pairwise_masks import MaskSecrets, decode_packet, make_packets
from secure_sum.round_roster import decode_roster, encode_roster
from secure_sum.sealed_box import make_box_key
from secure_sum.sealed_update import SealedUpdate, decode_sealed_update, encode_sealed_update
from secure_sum.shamir import decode_share
from simulators.trials.decoders import Decoder
from simulators.trials.sample_messages import sample_metrics
from wire_protocol.errors import WireError

__all__ = ["sealed_decoders"]

_MAX_BYTES: Final = 65_536
_DIGEST: Final = bytes(range(32))


def sealed_decoders() -> list[Decoder]:
    """All of them."""
    update = _sealed()
    asks: tuple[OpeningAsk, ...] = (
        HelperAsk(parts=(0, 1)),
        MaskAsk(roster_sha256=_DIGEST, missing=("d3", "d4")),
        KeyAsk(total=b"ciphertext", keys_sha256=_DIGEST),
    )
    orders = [encode_order(_order(update, ask)) for ask in asks]
    result = encode_result(OpeningResult(context=_DIGEST, set_digest=_DIGEST, data=bytes(16)))
    return [
        _one("sealed update", lambda data: decode_sealed_update(data, max_bytes=_MAX_BYTES), (encode_sealed_update(update),), decode_sealed_update),
        Decoder(
            name="sealed part",
            decode=lambda data: decode_sealed_part(data, "d1", aggregation_weight=1.0, metrics=sample_metrics()),
            documented=(WireError,),
            seeds=(encode_sealed_update(update),),
            covers=("coordinator.admission.decode_sealed_part",),
        ),
        _one("opening order", lambda data: decode_order(data, max_bytes=_MAX_BYTES), orders, decode_order),
        _one("opening result", lambda data: decode_result(data, max_bytes=_MAX_BYTES), (result,), decode_result),
        _one("helper's seeds", read_seeds, (b"\x00" + _DIGEST + b"\x02" + _DIGEST,), read_seeds),
        _one("committee packet", decode_packet, (_packet(),), decode_packet),
        _one("committee share", decode_share, (_DIGEST,), decode_share),
        _one("round roster", decode_roster, (encode_roster(("d1", "d2", "d10")),), decode_roster),
    ]  # fmt: skip


def _one(name: str, decode: Callable[[bytes], object], seeds: Sequence[bytes], function: Callable[..., Any]) -> Decoder:
    covers = (f"{function.__module__}.{function.__qualname__}",)
    return Decoder(name=name, decode=decode, documented=(SecureSumError,), seeds=seeds, covers=covers)


def _random_bytes(count: int) -> bytes:
    """The same bytes every time: a fuzzer's seeds can be replayed."""
    return (hashlib.sha256(b"seed").digest() * (count // 32 + 1))[:count]


def _packet() -> bytes:
    graph = MaskGraph(("d1", "d2", "d3"), context=_DIGEST, num_neighbours=2)
    secrets = MaskSecrets(own=_DIGEST[:31], pairs={"d2": _DIGEST[1:], "d3": _DIGEST[1:]})
    packets = make_packets(
        secrets, graph=graph, num_neighbours=2, threshold=2, num_members=3, random_bytes=_random_bytes
    )
    return packets[0]


def _sealed() -> SealedUpdate:
    key = make_box_key(_random_bytes).public_key().public_bytes_raw()
    order = SealingOrder(
        context=_DIGEST,
        device_id="d1",
        min_contributors=2,
        helpers=(("h1", key), ("h2", key), ("h3", key)),
        num_needed=2,
    )
    return seal_to_helpers(np.arange(8, dtype=np.uint32), order, sign=lambda _: bytes(64), random_bytes=_random_bytes)


def _order(update: SealedUpdate, ask: OpeningAsk) -> OpeningOrder:
    return OpeningOrder(
        population="p",
        task_id="task-1",
        plan_sha256=_DIGEST,
        round_id=3,
        num_values=8,
        contributors=tuple(contributor_of(update.header(name), box_index=0) for name in ("d1", "d2")),
        ask=ask,
    )
