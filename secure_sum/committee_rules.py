"""What a member of the committee checks before it opens its shares, and its answer.

| rule | why |
|---|---|
| R1: as many contributors as the member, and every contributor, demands | a sum over few says much about each |
| R2: every contributor has half of its neighbours beside it in the sum | its shared masks hide it among enough others |
| R3: one set per round, written down before the answer | of one device the member opens its own mask, or those that it shares with contributors, never both |
| R4: 2t > m + c, where c is a third of m | two sets would each need t answers; honest members give one, c corrupt ones two |

The order names who contributed and who is missing; together they must be the roster that every contributor has masked
for. A device cannot be in both. Asked again about the same set, a member gives the same answer.
"""

import dataclasses
import hmac
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_sum.contributor_rules import ContributorRules, check_contributors
from secure_sum.errors import BoxNotOpened, MalformedSealed, OpeningRefused, RefusalCause
from secure_sum.helper_rules import SetBook
from secure_sum.mask_graph import MaskGraph, roster_digest, secrets_to_open
from secure_sum.openings import MaskAsk, OpeningOrder, OpeningResult, is_rising
from secure_sum.pairwise_masks import CommitteePacket, decode_packet
from secure_sum.sealed_box import BoxRoute, open_box
from secure_sum.sealed_update import DIGEST_BYTES
from secure_sum.shamir import MAX_SHARES

__all__ = ["CommitteeRules", "answer_as_member", "check_committee", "least_threshold"]

_MIN_MEMBERS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommitteeRules:
    """What one member goes by."""

    member_id: str
    contributors: ContributorRules
    key: X25519PrivateKey = dataclasses.field(repr=False)
    """Opens its boxes."""


def least_threshold(num_members: int) -> int:
    """The smallest t of R4 if a third of the members are corrupt: 22 of 32."""
    return (num_members + num_members // 3) // 2 + 1


def check_committee(*, threshold: int, num_members: int) -> None:
    """R4: two different sets of one round can never both be opened.

    Raises:
        ValueError: Fewer than 3 members or more than 255, or not ``least_threshold <= t <= m``.
    """
    if not _MIN_MEMBERS <= num_members <= MAX_SHARES:
        raise ValueError(f"a committee has {_MIN_MEMBERS} to {MAX_SHARES} members, not {num_members}")
    if not least_threshold(num_members) <= threshold <= num_members:
        raise ValueError(
            f"with a threshold of {threshold} in a committee of {num_members}, a third of it corrupt, two sets of one round "
            f"could be opened: the threshold must be {least_threshold(num_members)} to {num_members}"
        )


def answer_as_member(order: OpeningOrder, rules: CommitteeRules, book: SetBook) -> OpeningResult:
    """Answers an order, or refuses.

    Raises:
        OpeningRefused: A rule forbids it; nothing was answered, and unless the set had been noted before, nothing noted.
    """
    ask = order.ask
    if not isinstance(ask, MaskAsk):
        raise OpeningRefused(RefusalCause.WRONG_CONTEXT, "this opener is a member of a committee")
    contributors = [contributor.device_id for contributor in order.contributors]
    roster = _roster(contributors, ask)
    check_contributors(order, rules.contributors)
    packets = {
        contributor.device_id: _packet(order, place, rules) for place, contributor in enumerate(order.contributors)
    }
    graph = _graph(order, roster, packets, ask)
    lonely = set(contributors) - graph.well_connected(contributors)
    if lonely:
        raise OpeningRefused(RefusalCause.ISOLATED, "too few neighbours contributed", device_id=min(lonely))
    data = _shares(graph, contributors, packets)
    set_digest = order.set_digest()
    if not book.claim(order.context, set_digest):
        raise OpeningRefused(RefusalCause.SECOND_SET, "another set was answered for in this round")
    return OpeningResult(context=order.context, set_digest=set_digest, data=data)


def _roster(contributors: Sequence[str], ask: MaskAsk) -> tuple[str, ...]:
    both = set(contributors) & set(ask.missing)
    if both:
        raise OpeningRefused(RefusalCause.BOTH_SIDES, "listed as arrived and as missing", device_id=min(both))
    if not is_rising(ask.missing):
        raise OpeningRefused(
            RefusalCause.MALFORMED, "the missing devices are not in the order of their names, each once"
        )
    roster = tuple(sorted({*contributors, *ask.missing}))
    if not hmac.compare_digest(roster_digest(roster), ask.roster_sha256):
        raise OpeningRefused(RefusalCause.MALFORMED, "contributors and missing devices are not the roster")
    return roster


def _packet(order: OpeningOrder, place: int, rules: CommitteeRules) -> CommitteePacket:
    contributor = order.contributors[place]
    route = BoxRoute(context=order.context, sender_id=contributor.device_id, opener_id=rules.member_id)
    try:
        secret = open_box(contributor.box, opener=rules.key, ephemeral_key=contributor.ephemeral_key, route=route)
        return decode_packet(secret)
    except (BoxNotOpened, MalformedSealed) as error:
        raise OpeningRefused(RefusalCause.BAD_BOX, str(error), device_id=contributor.device_id) from error


def _graph(
    order: OpeningOrder, roster: tuple[str, ...], packets: Mapping[str, CommitteePacket], ask: MaskAsk
) -> MaskGraph:
    """The graph that all contributors have masked for, with a threshold that is safe in a committee of this size."""
    agreed = next(iter(packets.values()))
    try:
        graph = MaskGraph(roster, context=order.context, num_neighbours=agreed.num_neighbours)
        for contributor in order.contributors:
            num_members = len(contributor.box_digests) // DIGEST_BYTES
            check_committee(threshold=packets[contributor.device_id].threshold, num_members=num_members)
    except ValueError as error:
        raise OpeningRefused(RefusalCause.WEAK_THRESHOLD, str(error)) from error
    for device_id, packet in packets.items():
        if not hmac.compare_digest(packet.roster, ask.roster_sha256):
            raise OpeningRefused(RefusalCause.WRONG_CONTEXT, "has masked for another roster", device_id=device_id)
        if packet.num_neighbours != agreed.num_neighbours or len(packet.pairs) != graph.degree:
            raise OpeningRefused(RefusalCause.BAD_BOX, "has masked for another graph", device_id=device_id)
    return graph


def _shares(graph: MaskGraph, contributors: Sequence[str], packets: Mapping[str, CommitteePacket]) -> bytes:
    """The shares of what this set opens, and of nothing else: 32 bytes for each of ``secrets_to_open``."""
    by_peer = {
        device_id: dict(zip(graph.neighbours(device_id), packets[device_id].pairs, strict=True))
        for device_id in contributors
    }
    return b"".join(
        packets[device_id].own if peer is None else by_peer[device_id][peer]
        for device_id, peer in secrets_to_open(graph, contributors)
    )
