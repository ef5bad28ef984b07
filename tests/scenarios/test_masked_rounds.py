"""Rounds under pairwise masks: real devices, committee and coordinator on virtual time, dropped, killed and lied to.

The world of `test_confidential_rounds` with a committee in the place of the helpers: four of the five devices.
"""

import dataclasses
import importlib.util
import itertools
import logging
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_link.link import Incoming
from coordinator.confidential_task import made_confidential, masked_sums
from coordinator.errors import InvalidConfig
from coordinator.private_task import PrivacyWish, made_private
from coordinator.round_policy import RoundPolicy
from coordinator.round_schedule import RoundSchedule
from edge_client.opener.set_book import SqliteSetBook
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from simulators.scenario import load_scenario
from simulators.virtual_fleet import BadNetwork, BadWorld
from simulators.virtual_openers import VirtualConfidentiality, VirtualOpener, virtual_committee
from simulators.virtual_run import VirtualRun, linear_task, run_virtual
from simulators.virtual_trust import VirtualTrust
from wire_protocol.messages import CheckIn, encode_message
from wire_protocol.plan import decode_plan, encode_plan
from wire_protocol.topics import device_up

_SPEC = importlib.util.spec_from_file_location(
    "rounds_for_masks", Path(__file__).with_name("test_confidential_rounds.py")
)
rounds = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(rounds)

TRUST = rounds.TRUST
COMMITTEE = [rounds.SCENARIO.device_id(index) for index in range(4)]
NUM_NEEDED = 3
MASKED = made_confidential(rounds.PRIVATE, masked_sums(TRUST.directory_bytes, COMMITTEE))


def _committee(fleet, confidentiality, *, books=None):
    return virtual_committee(fleet, confidentiality, COMMITTEE, books=books)


rounds.confidential = lambda num_needed: MASKED
rounds.virtual_helpers = _committee


class Bench(rounds.Bench):
    """The same, with masks."""

    def run(self, members=tuple(COMMITTEE), limit_s=50_000.0):
        return super().run(helpers=members, limit_s=limit_s)


def test_the_coordinator_gets_the_plain_sum_bit_for_bit_and_never_an_update(tmp_path):
    bench = Bench(tmp_path / "b")
    assert bench.run()
    bench.check()
    journals = b"".join(path.read_bytes() for path in bench.directory.glob("journal*"))
    for contribution in bench.sealed.values():
        assert contribution.tobytes() not in journals


@pytest.mark.parametrize("dropout", [0.1, 0.3])
def test_dropouts_lost_and_doubled_messages_cost_the_sum_nothing(tmp_path, dropout):
    network = BadNetwork(loss=0.1, duplication=0.2)
    bench = Bench(tmp_path / "b", world=BadWorld(seconds_per_example=0.05, dropout=dropout, network=network))
    assert bench.run()
    bench.check()
    assert bench.fleet.num_vanished or dropout < 0.3


@pytest.mark.parametrize("absent", COMMITTEE)
def test_any_three_of_four_members_open(tmp_path, absent):
    bench = Bench(tmp_path / "b")
    assert bench.run(members=[name for name in COMMITTEE if name != absent])
    bench.check()
    assert not any(summary.abandon_reason for summary in bench.summaries)


def test_with_one_member_too_few_the_round_waits_and_is_opened_when_it_comes_back(tmp_path):
    bench = Bench(tmp_path / "b")
    bench.time.after(400.0, bench.helpers[COMMITTEE[3]].start)
    assert bench.run(members=COMMITTEE[:2])
    bench.check()
    assert bench.summaries[0].duration_s > 300.0
    assert not any(summary.abandon_reason for summary in bench.summaries)


def test_members_that_crash_in_the_middle_and_come_back_open_the_sum(tmp_path):
    bench = Bench(tmp_path / "b")
    crashes = itertools.count()

    def crash_all():
        if bench.sent["opening-request"] and next(crashes) < 6:
            for member in bench.helpers.values():
                member.crash(back_after_s=40.0)
        bench.time.after(60.0 if bench.sent["opening-request"] else 0.2, crash_all)

    crash_all()
    assert bench.run()
    bench.check()
    assert next(crashes) > 1


def test_a_kill_of_the_coordinator_anywhere_leaves_one_set_and_an_exact_sum(tmp_path):
    num_in_opening = num_kills = 0
    for kill_at in itertools.count(1, 7):
        bench = Bench(tmp_path / str(kill_at), kill_at=kill_at)
        assert bench.run()
        bench.check()
        assert bench.life.openings.exchange.counts["second_set"] == 0
        num_in_opening += bench.num_kills and bench.sent["opening-request"] > 4 * rounds.NUM_COMMITS
        num_kills += bench.num_kills
        if bench.num_kills == 0:
            break
    assert num_kills > 8
    assert num_in_opening > 1, "no kill has come while a sum was being opened"


def test_a_member_that_lies_is_outvoted_when_all_four_answer(tmp_path):
    """Three answers are enough and four show a lie; with a committee of four only the range of the sum can tell.

    With one lie among the first three the sum is out of range, the fourth is asked, and no three of the four can be
    told apart: the round is given up, and nothing is learnt from it.
    """
    bench = Bench(tmp_path / "b", max_abandoned=1)
    liar = bench.helpers[COMMITTEE[0]]
    honest = liar._make_session.keywords["answer"]

    def lie(order):
        result = honest(order)
        return msgspec.structs.replace(result, data=bytes(len(result.data)))

    bench.helpers[COMMITTEE[0]] = VirtualOpener(bench.fleet, population="virtual", opener_id=COMMITTEE[0], answer=lie)
    assert bench.run()
    assert [summary.abandon_reason for summary in bench.summaries] == ["opening_lost"]
    assert not bench.mean.means


def test_fewer_than_a_member_demands_are_not_opened_and_the_round_says_why(tmp_path):
    bench = Bench(tmp_path / "b", max_abandoned=1)
    bench.helpers = _committee(bench.fleet, VirtualConfidentiality(trust=TRUST, min_contributors=6))
    assert bench.run()
    assert [summary.abandon_reason for summary in bench.summaries] == ["opening_lost"]
    assert bench.life.openings.exchange.counts["too_few"] >= 2


def test_a_coordinator_that_lost_its_state_gets_no_second_masked_update_and_no_second_set(tmp_path):
    books = {name: SqliteSetBook(tmp_path / name) for name in COMMITTEE}
    bench = Bench(tmp_path / "one", books=books)
    assert bench.run()
    num_sealed = len(bench.sealed)
    again = Bench(tmp_path / "two", books=books, max_abandoned=2)
    # The same devices, with the ledgers that they have kept.
    again.fleet._desks = bench.fleet._desks
    # Nonces of its own: the bench replays those of the first life, and a nonce names the bytes that it was given.
    again.life.loop._fleet._token = os.urandom
    assert again.run()
    assert [summary.abandon_reason for summary in again.summaries[:2]] == ["too_few_reports"] * 2
    assert len(bench.sealed) == num_sealed
    assert not again.sealed


def test_a_device_whose_owner_wants_more_contributors_than_are_asked_does_not_mask(tmp_path):
    bench = Bench(tmp_path / "b", max_abandoned=1)
    strict = PrivacyRules(budget=PrivacyBudget(epsilon=1e6), min_contributors=6)
    for desk in bench.fleet._desks.values():
        desk._rules = strict
    assert bench.run()
    assert not bench.sealed


def test_owners_can_refuse_masks_or_insist_on_them(tmp_path):
    bench = Bench(tmp_path / "b", max_abandoned=1)
    for desk in bench.fleet._desks.values():
        desk._rules = dataclasses.replace(desk._rules, confidentiality=frozenset({"helpers"}))
    assert bench.run()
    assert not bench.sealed


def test_a_large_round_on_a_sparse_graph_commits_without_its_lonely_devices(caplog):
    scenario = load_scenario("digits", num_devices=90, partition="iid", alpha=1.0, seed=0)
    names = [scenario.device_id(index) for index in range(90)]
    trust = VirtualTrust("virtual", names)
    private = made_private(
        linear_task(64, 10, batch_size=8, num_epochs=1, learning_rate=0.5),
        PrivacyWish(epsilon=20.0, num_rounds=4, clipping_norm=0.5, min_contributors=20),
    )
    masks = masked_sums(trust.directory_bytes, names[:4], num_neighbours=4)
    run = VirtualRun(
        scenario=scenario,
        plan=made_confidential(private, masks).plan,
        policy=RoundPolicy(report_goal=85, min_reports=25, over_selection=1.05, report_timeout_s=200.0),
        schedule=RoundSchedule(num_commits=1),
        world=BadWorld(seconds_per_example=0.01, dropout=0.4, away_s=(5.0, 20.0)),
        seed=3,
        confidentiality=VirtualConfidentiality(trust=trust, min_contributors=20),
    )
    with caplog.at_level(logging.INFO, logger="coordinator.mask_mode"):
        report = run_virtual(run)
    assert report.num_commits == 1
    assert report.num_abandoned == 0
    assert "masks_left_out" in caplog.text


def test_a_device_that_is_not_in_the_key_directory_is_not_drawn(tmp_path):
    """One such device on a roster would keep every other one from sealing."""
    bench = Bench(tmp_path / "b")
    check_in = CheckIn(
        nonce=b"c" * 16, task_id=MASKED.task_id, client_version="", contract_version=MASKED.plan.contract_version
    )
    fleet = bench.life.loop._fleet
    for device_id, kinds in (("stranger", ["refusal"]), (COMMITTEE[0], [])):
        event = Incoming(topic=device_up("virtual", device_id, "check-in"), payload=encode_message(check_in))
        said = [action.topic.rpartition("/")[2] for action in fleet.handle(event, now=0.0)]
        assert said == kinds


def test_a_plan_with_masks_is_made_out_of_the_directory_alone():
    assert decode_plan(encode_plan(MASKED.plan)) == MASKED.plan
    keys = {member.device_id: member.box_key for member in MASKED.plan.confidentiality.committee}
    assert keys == {name: TRUST.members[name].sealing_key for name in COMMITTEE}
    assert MASKED.plan.confidentiality.threshold == NUM_NEEDED
    with pytest.raises(InvalidConfig, match="stranger"):
        masked_sums(TRUST.directory_bytes, [*COMMITTEE, "stranger"])
    with pytest.raises(InvalidConfig, match="at least 3"):
        masked_sums(TRUST.directory_bytes, COMMITTEE[:2])
    with pytest.raises(InvalidConfig, match="threshold"):
        masked_sums(TRUST.directory_bytes, COMMITTEE, threshold=2)
    with pytest.raises(InvalidConfig, match="confidential already"):
        made_confidential(MASKED, masked_sums(TRUST.directory_bytes, COMMITTEE))
    assert np.array_equal(MASKED.initial_weights[0], rounds.PRIVATE.initial_weights[0])
