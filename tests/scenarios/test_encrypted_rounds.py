"""Rounds under homomorphic encryption: real devices, key authority and coordinator on virtual time.

The sum that is decrypted is the plain sum of the integers that the contributors have encrypted, bit for bit.
"""

import dataclasses
import os

import msgspec
import numpy as np
import pytest

from coordinator import encrypted_mode
from coordinator.aggregation_spec import AggregationSpec
from coordinator.errors import InvalidConfig
from coordinator.numpy_mean import NumpyMeanAggregator
from coordinator.private_task import PrivacyWish, made_private
from coordinator.round_loop import RoundSchedule
from coordinator.round_policy import RoundPolicy
from edge_client.opener.key_desk import KeyDesk
from edge_client.privacy.rules import PrivacyBudget, PrivacyRules
from secure_sum import bfv
from secure_sum.ciphertext import NUM_TAGS, Ciphertext, decode_ciphertext, encode_ciphertext
from secure_sum.encrypted_sum import EncryptedSum
from secure_sum.encryption_keys import decode_encryption_keys
from secure_sum.errors import MalformedSealed, OpeningFailed, OpeningRefused, OversizedSealed
from simulators.scenario import load_scenario
from simulators.virtual_fleet import BadNetwork, BadWorld
from simulators.virtual_key_authority import VirtualKeyAuthority, trust_with_key_authority
from simulators.virtual_openers import VirtualConfidentiality
from simulators.virtual_run import VirtualRun, linear_task, run_virtual

pytestmark = pytest.mark.skipif(
    not os.environ.get("CI") and not bfv.is_available(), reason="TenSEAL is not installed here"
)
NUM_BANKS = 5
GOAL = 4
SCENARIO = load_scenario("digits", num_devices=NUM_BANKS, partition="iid", alpha=1.0, seed=0)
PRIVATE = made_private(
    linear_task(64, 10, batch_size=32, num_epochs=1, learning_rate=0.5),
    PrivacyWish(epsilon=50.0, num_rounds=40, clipping_norm=1.0, min_contributors=3),
)
RULES = PrivacyRules(budget=PrivacyBudget(epsilon=1e6), min_contributors=3, min_noise_multiplier=0.01)


class RecordingTrust:
    """The keys of a population, whose sealers remember what they sealed."""

    def __init__(self, trust):
        self._trust, self.sealed = trust, {}

    def __getattr__(self, name):
        return getattr(self._trust, name)

    def sealer(self, device_id):
        real, sealed = self._trust.sealer(device_id), self.sealed

        class Recording:
            check = staticmethod(real.check)

            @staticmethod
            def seal(job, update):
                sealed[job.round_id, device_id] = update.copy()
                return real.seal(job, update)

        return Recording()


class RecordingMean(NumpyMeanAggregator):
    """Remembers the mean that each finished round was given."""

    def __init__(self):
        super().__init__(PRIVATE.plan.weights, AggregationSpec())
        self.means = []

    def begin(self, state):
        accumulator = super().begin(state)
        fold = accumulator.fold

        def recording_fold(update):
            self.means.append(np.concatenate([part.reshape(-1) for part in update.model_delta]))
            fold(update)

        accumulator.fold = recording_fold
        return accumulator


class Bench:
    def __init__(self, monkeypatch, *, min_contributors=3, world=None, num_commits=3, max_abandoned=20):
        self.trust = RecordingTrust(
            trust_with_key_authority("virtual", [SCENARIO.device_id(i) for i in range(NUM_BANKS)])
        )
        self.authority, self.mean = VirtualKeyAuthority(self.trust), RecordingMean()
        self.answered, self.refused, self.reasons, self.totals = [], [], [], []
        answer = KeyDesk.__call__

        def recording(desk, order):
            try:
                result = answer(desk, order)
            except OpeningRefused as refusal:
                self.refused.append(refusal.cause.value)
                raise
            self.totals.append(order.ask.total)
            self.answered.append((order.round_id, tuple(one.device_id for one in order.contributors)))
            return result

        monkeypatch.setattr(KeyDesk, "__call__", recording)
        self.run = VirtualRun(
            scenario=SCENARIO,
            plan=msgspec.structs.replace(PRIVATE.plan, confidentiality=self.authority.sums()),
            policy=RoundPolicy(report_goal=GOAL, min_reports=3, over_selection=1.25, report_timeout_s=300.0,
                               selection_timeout_s=100.0),
            schedule=RoundSchedule(num_commits=num_commits, max_abandoned_in_a_row=max_abandoned),
            world=world or BadWorld(seconds_per_example=0.01), privacy=RULES,
            confidentiality=VirtualConfidentiality(
                trust=self.trust, min_contributors=min_contributors, key_authority=self.authority
            ),
        )  # fmt: skip

    def report(self):
        report = run_virtual(self.run, aggregator=self.mean)
        self.reasons = [summary.abandon_reason for summary in report.rounds if summary.abandon_reason]
        return report

    def check(self):
        """The mean of each committed round is that of the plain sum of what its contributors have sealed."""
        committed = list(dict.fromkeys(self.answered))
        assert len(committed) == len(self.mean.means)
        for (round_id, names), mean in zip(committed, self.mean.means, strict=True):
            plain = np.zeros(PRIVATE.plan.num_parameters, np.uint32)
            for name in names:
                plain += self.trust.sealed[round_id, name]
            expected = plain.view(np.int32) / (PRIVATE.plan.privacy.units_per_weight * GOAL)
            assert np.array_equal(mean, expected.astype(np.float32)), "the sum is not the plain sum"


def test_the_coordinator_gets_the_plain_sum_bit_for_bit(monkeypatch):
    bench = Bench(monkeypatch)
    assert bench.report().num_commits == 3
    bench.check()
    assert all(len(names) >= 3 for _, names in bench.answered)


def test_the_key_authority_is_given_one_ciphertext_a_round_which_is_nobodys_own(monkeypatch):
    bench, payloads = Bench(monkeypatch), []
    seal = encrypted_mode.EncryptedMode.add
    monkeypatch.setattr(
        encrypted_mode.EncryptedMode, "add", lambda mode, total, payload: (payloads.append(payload), seal(mode, total, payload))[1]
    )  # fmt: skip
    bench.report()
    assert len(bench.totals) == 3
    assert len(payloads) >= 9
    parts = {chunk for payload in payloads for chunk in decode_ciphertext(payload, num_values=650).chunks}
    for total in bench.totals:
        assert not parts & set(decode_ciphertext(total, num_values=650).chunks)


def test_drop_outs_lost_and_doubled_messages_leave_the_sum_exact(monkeypatch):
    network = BadNetwork(loss=0.05, duplication=0.2)
    bench = Bench(monkeypatch, world=BadWorld(seconds_per_example=0.01, dropout=0.3, network=network))
    assert bench.report().num_commits == 3
    bench.check()


def test_below_the_key_authoritys_own_minimum_nothing_is_decrypted(monkeypatch):
    bench = Bench(monkeypatch, min_contributors=6, max_abandoned=1)
    assert bench.report().num_commits == 0
    assert (bench.reasons, set(bench.refused)) == (["opening_lost"], {"too_few"})
    assert not bench.mean.means


@pytest.mark.parametrize("num_kept", [1, 3])
def test_a_coordinator_that_asks_for_one_update_or_a_part_gets_nothing(monkeypatch, num_kept):
    """It puts another ciphertext under the honest list of contributors."""

    class Lying(EncryptedSum):
        num_seen = 0

        def add(self, payload):
            self.num_seen += 1
            if self.num_seen <= num_kept:
                super().add(payload)

    monkeypatch.setattr(encrypted_mode, "EncryptedSum", Lying)
    bench = Bench(monkeypatch, max_abandoned=1)
    assert bench.report().num_commits == 0
    assert (bench.reasons, bench.refused) == (["opening_lost"], ["wrong_total"])
    assert not bench.mean.means


def test_devices_refuse_keys_that_are_not_the_key_authoritys(monkeypatch):
    """The coordinator makes a key pair of its own and puts it into plan and release."""
    bench = Bench(monkeypatch, max_abandoned=1)
    mallory = VirtualKeyAuthority(trust_with_key_authority("virtual", ["d"]))
    plan = msgspec.structs.replace(
        bench.run.plan,
        confidentiality=msgspec.structs.replace(bench.run.plan.confidentiality, keys=mallory.sums().keys),
    )
    bench.authority.released = mallory.released
    bench.run = dataclasses.replace(bench.run, plan=plan)
    assert bench.report().num_commits == 0
    assert not bench.trust.sealed
    assert not bench.answered


def test_keys_that_the_plan_does_not_name_are_refused_before_the_first_round(monkeypatch):
    bench = Bench(monkeypatch)
    for released in (b"other keys", VirtualKeyAuthority(bench.trust).released):
        bench.authority.released = released
        with pytest.raises(InvalidConfig, match="key-authority issue"):
            run_virtual(bench.run)


def test_without_tenseal_the_coordinator_says_what_to_install(monkeypatch):
    bench = Bench(monkeypatch)
    bfv._parameters.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "tenseal", None)
    with pytest.raises(InvalidConfig, match=r"flockwise\[he\]"):
        run_virtual(bench.run)


def test_a_payload_that_cannot_be_added_is_rejected_before_it_is_counted(monkeypatch):
    """What is in the journal is added again after a restart: rubbish in it would end every round."""
    bench = Bench(monkeypatch)
    mode = encrypted_mode.EncryptedMode(bench.run.plan)
    good = seal_one(bench, np.zeros(bench.run.plan.num_update_numbers, np.uint32))
    mode.check_payload(good)
    decoded = decode_ciphertext(good, num_values=650)
    short = dataclasses.replace(decoded, chunks=(decoded.chunks[0][:-200],))
    for bad in (b"", good[:-1], good + b"x", encode_ciphertext(short)):
        with pytest.raises((MalformedSealed, OversizedSealed)):
            mode.check_payload(bad)


def seal_one(bench, values):
    keys = decode_encryption_keys(bench.authority.released)
    chunks = bfv.Encryptor(keys.public_key).encrypt(values.astype(np.int64))
    return encode_ciphertext(Ciphertext(num_values=len(values), tags=(0,) * NUM_TAGS, chunks=chunks))


def test_a_sum_of_more_updates_than_are_exact_is_not_believed(monkeypatch):
    mode = encrypted_mode.EncryptedMode(Bench(monkeypatch).run.plan)
    mode._most = 3

    class Sealed:
        headers = range(4)

    class Answer:
        class result:  # noqa: N801 - stands for a field
            data = bytes(4 * 650)

    assert mode.opened(Sealed, []) is None
    with pytest.raises(OpeningFailed, match="wrap around"):
        mode.opened(Sealed, [Answer])
    Sealed.headers = range(3)
    assert mode.opened(Sealed, [Answer]).num_contributors == 3
