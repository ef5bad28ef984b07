"""What a coordinator and one helper see says nothing of a device; and what a device refuses to seal for.

Statistical bounds fail by chance once in a million. Each has a positive control: without the protection it is broken.
"""

import dataclasses
import math
import os

import msgspec
import numpy as np
import pytest

from edge_client.errors import PrivacyRefused
from edge_client.opener.helper_desk import HelperDesk
from edge_client.opener.set_book import SqliteSetBook
from edge_client.pinned_directory import PinnedDirectory
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.release_desk import ReleaseDesk
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from edge_client.privacy.sealing import PlanSealer
from edge_client.state_writer import StateWriter
from edge_client.training import TrainingJob
from secure_sum.context import round_context
from secure_sum.directory_entries import MemberRole
from secure_sum.errors import OpeningRefused, RefusalCause
from secure_sum.helper_shares import SealingOrder, parts_of, read_seeds, seal_to_helpers
from secure_sum.key_directory import encode_directory
from secure_sum.keystream import subtract_mask
from secure_sum.openings import HelperAsk, OpeningOrder, contributor_of
from secure_sum.sealed_box import BoxRoute, open_box
from secure_sum.sealed_update import decode_sealed_update, vector_of
from simulators.virtual_run import linear_task
from simulators.virtual_trust import VirtualTrust
from wire_protocol.blobs import split_blob
from wire_protocol.messages import RoundKind
from wire_protocol.privacy_spec import PrivacySpec

TRUST = VirtualTrust("p", ["d1", "d2"])
HELPERS = tuple((one.device_id, one.box_key) for one in TRUST.helper_sums().helpers)
CONTEXT = bytes(range(32))
D, RUNS = 2048, 60
ODDS = math.log(1e6)


def _seal(values, num_needed=2, random_bytes=os.urandom):
    order = SealingOrder(context=CONTEXT, device_id="d1", min_contributors=2, helpers=HELPERS, num_needed=num_needed)
    return seal_to_helpers(values, order, sign=TRUST.members["d1"].identity.sign, random_bytes=random_bytes)


def _view(update, helpers):
    """The masked vector, as far as these helpers can unmask it for the coordinator."""
    vector = vector_of(update.payload, update.num_values).copy()
    seeds = {}
    for index in helpers:
        name = HELPERS[index][0]
        route = BoxRoute(context=CONTEXT, sender_id="d1", opener_id=name)
        key = TRUST.members[name].sealing
        seeds |= read_seeds(open_box(update.boxes[index], opener=key, ephemeral_key=update.ephemeral_key, route=route))
    for seed in seeds.values():
        subtract_mask(vector, seed)
    return vector


def _is_uniform(words):
    """Whether the highest and the lowest byte of the words pass for uniform: chi-square, 255 degrees of freedom."""
    for shift in (0, 8, 24):
        counts = np.bincount((words >> np.uint32(shift)) & np.uint32(0xFF), minlength=256)
        expected = len(words) / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        # Laurent and Massart 2000, lemma 1: P(X - k >= 2 sqrt(k t) + 2 t) <= e^-t.
        if chi_square - 255 >= 2 * math.sqrt(255 * ODDS) + 2 * ODDS:
            return False
    return True


def _is_unrelated(words, values):
    """Whether views and updates have no correlation that chance would not explain (Hoeffding's bound)."""
    x = values.astype(np.float64) / 2**31 - 1.0
    y = words.astype(np.float64) / 2**31 - 1.0
    return abs(float((x * y).mean())) < math.sqrt(2 * ODDS / len(x))


@pytest.mark.parametrize(
    ("num_needed", "helpers"), [(2, ()), (2, (0,)), (2, (1,)), (2, (2,)), (3, (0, 1)), (3, (1, 2))]
)
def test_the_view_of_the_coordinator_and_too_few_helpers_is_independent_of_the_update(num_needed, helpers):
    rng = np.random.default_rng(0)
    updates = {
        "zero": lambda: np.zeros(D, np.uint32),
        "all the same": lambda: np.full(D, 12345, np.uint32),
        "anything": lambda: rng.integers(0, 2**32, D, np.uint32),
    }
    for make in updates.values():
        sent = [make() for _ in range(RUNS)]
        views = np.concatenate([_view(_seal(values, num_needed), helpers) for values in sent])
        assert _is_uniform(views)
        assert _is_unrelated(views, np.concatenate(sent))


def test_two_helpers_and_the_coordinator_read_everything_and_a_mask_that_is_used_twice_shows():
    values = np.full(D, 12345, np.uint32)
    assert np.array_equal(_view(_seal(values), (0, 1)), values)
    assert not _is_uniform(np.concatenate([_view(_seal(values), (0, 1)) for _ in range(RUNS)]))
    assert not _is_unrelated(*(2 * [np.random.default_rng(1).integers(0, 2**32, D * RUNS, np.uint32)]))
    # The same seeds for two updates: their difference is that of the updates.
    fixed = np.random.default_rng(2).bytes(32)
    first, second = (_view(_seal(values + np.uint32(k), random_bytes=lambda n: (fixed * n)[:n]), ()) for k in (0, 1))
    assert set(second - first) == {1}
    fresh = _view(_seal(values + np.uint32(1)), ()) - _view(_seal(values), ())
    assert _is_uniform(fresh)


def test_every_part_is_missing_at_some_helper_and_boxes_say_nothing_by_their_length():
    for num_needed in (2, 3):
        parts = parts_of(num_needed)
        for helper in range(3):
            assert any(helper not in part for part in parts)
    lengths = {tuple(map(len, _seal(np.full(D, fill, np.uint32)).boxes)) for fill in (0, 1, 2**31)}
    assert len(lengths) == 1


# -- what a device refuses


PLAN = linear_task(4, 2).plan
PRIVACY = PrivacySpec(
    mode="distributed", clipping_norm=0.5, noise_multiplier=2.0, min_contributors=2, num_rounds=3, target_epsilon=50.0
)


def _job(trust=TRUST, *, way=None, directory=None):
    way = way or trust.helper_sums()
    directory = trust.directory_bytes if directory is None else directory
    plan = msgspec.structs.replace(PLAN, privacy=PRIVACY, confidentiality=way)
    return TrainingJob(
        kind=RoundKind.TRAIN, plan=plan, model=b"", checkpoint=(), round_id=1, device_id="d1", task_id="t",
        plan_sha256=bytes(32), sealing_blobs={way.directory.sha256: directory},
    )  # fmt: skip


def _other_helper(key):
    way = TRUST.helper_sums()
    return msgspec.structs.replace(
        way, helpers=(msgspec.structs.replace(way.helpers[0], box_key=key), *way.helpers[1:])
    )


def test_a_device_seals_for_helpers_of_the_directory_that_it_believes():
    sealer = TRUST.sealer("d1")
    sealer.check(_job())
    values = np.arange(10, dtype=np.uint32)
    update = decode_sealed_update(sealer.seal(_job(), values), max_bytes=10_000)
    assert (update.num_values, update.min_contributors) == (10, 2)


def test_a_device_refuses_openers_that_the_coordinator_made_up():
    foreign = VirtualTrust("p", ["d1", "d2"])
    elsewhere = VirtualTrust("q", ["d1", "d2"])
    way = TRUST.helper_sums()
    device = msgspec.structs.replace(way.helpers[0], device_id="d2", box_key=TRUST.members["d2"].sealing_key)
    cases = {
        "a swapped key": (_job(way=_other_helper(b"\x09" + bytes(31))), "another key"),
        "a directory of its own": (_job(foreign), "not believed"),
        "a directory of another population": (_job(elsewhere), "not believed"),
        "a device as a helper": (
            _job(way=msgspec.structs.replace(way, helpers=(device, *way.helpers[1:]))),
            "no helper",
        ),
        "a changed directory": (_job(directory=TRUST.directory_bytes[:-1] + b"\0"), "not believed"),
        "no directory": (dataclasses.replace(_job(), sealing_blobs={}), "not believed"),
    }
    for job, text in cases.values():
        with pytest.raises(PrivacyRefused, match=text):
            TRUST.sealer("d1").check(job)
        with pytest.raises(PrivacyRefused, match=text):
            TRUST.sealer("d1").seal(job, np.arange(10, dtype=np.uint32))


def test_a_device_that_is_not_in_the_directory_with_its_key_takes_no_part():
    stranger = VirtualTrust("p", ["d1"], others={}).members["d1"]
    sealer = PlanSealer(
        population="p", device_id="d1", identity_key=stranger.identity_key, sealing_key=stranger.sealing,
        sign=stranger.identity.sign,
        accept_directory=TRUST.accept_directory, random_bytes=os.urandom,
    )  # fmt: skip
    with pytest.raises(PrivacyRefused, match="have the authority enter it"):
        sealer.check(_job())


def test_an_owner_who_allows_confidential_sums_alone_refuses_plain_ones_and_the_other_way_round():
    def check(job, *allowed, sealer):
        rules = PrivacyRules(
            budget=PrivacyBudget(epsilon=100.0), min_contributors=2, confidentiality=frozenset(allowed)
        )
        ReleaseDesk(lambda: PrivacyLedger(None, budget=rules.budget), rules, sealer=sealer).check(job)

    plain = dataclasses.replace(_job(), plan=msgspec.structs.replace(PLAN, privacy=PRIVACY))
    sealer = TRUST.sealer("d1")
    check(_job(), "helpers", sealer=sealer)
    check(plain, "none", sealer=sealer)
    with pytest.raises(PrivacyRefused, match="'none' is not one of"):
        check(plain, "helpers", sealer=sealer)
    with pytest.raises(PrivacyRefused, match="'helpers' is not one of"):
        check(_job(), "none", "masks", sealer=sealer)
    with pytest.raises(PrivacyRefused, match="no identity"):
        check(_job(), "helpers", sealer=None)


def test_a_helper_believes_the_directory_that_it_has_pinned_and_no_other(tmp_path):
    context = round_context(population="p", task_id="t", plan_sha256=bytes(32), round_id=1)
    pinned = PinnedDirectory(tmp_path, writer=StateWriter(), population="p")
    desk = HelperDesk(
        population="p", helper_id="helper-1", key=TRUST.members["helper-1"].sealing, book=SqliteSetBook(None),
        accept_directory=pinned.accept, min_contributors=2,
    )  # fmt: skip

    def order(trust):
        contributors = []
        for name in ("d1", "d2"):
            sealing = SealingOrder(
                context=context, device_id=name, min_contributors=2, num_needed=2,
                helpers=tuple((one.device_id, one.box_key) for one in TRUST.helper_sums().helpers),
            )  # fmt: skip
            update = seal_to_helpers(
                np.zeros(4, np.uint32), sealing, sign=trust.members[name].identity.sign, random_bytes=os.urandom
            )
            contributors.append(contributor_of(update.header(name), box_index=0))
        return OpeningOrder(
            population="p", task_id="t", plan_sha256=bytes(32), round_id=1, num_values=4,
            contributors=tuple(contributors), ask=HelperAsk(parts=(0,), directory=trust.directory_bytes),
        )  # fmt: skip

    # A directory of the coordinator's own, with devices that it has invented.
    forged = VirtualTrust("p", ["d1", "d2"])
    desk(order(TRUST))
    for trust in (forged, VirtualTrust("q", ["d1", "d2"])):
        with pytest.raises(OpeningRefused) as refused:
            desk(order(trust))
        assert refused.value.cause is RefusalCause.UNREGISTERED


def test_the_directory_of_a_virtual_population_is_a_real_one():
    assert encode_directory(TRUST.directory) == TRUST.directory_bytes
    assert split_blob(TRUST.directory_bytes).ref == TRUST.helper_sums().directory
    assert len(TRUST.directory.members_with(MemberRole.HELPER)) == 3
