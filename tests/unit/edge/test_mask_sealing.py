"""Before a device trains for a round with masks, it looks at roster, committee and keys; and refuses, saying why."""

import dataclasses
import os

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_client.errors import PrivacyRefused
from edge_client.privacy.sealing import PlanSealer
from edge_client.training import TrainingJob
from secure_sum.sealed_update import SealedMode, decode_sealed_update, is_signed_by
from simulators.virtual_run import linear_task
from simulators.virtual_trust import VirtualTrust
from wire_protocol.messages import RoundKind
from wire_protocol.plan import encode_plan
from wire_protocol.privacy_spec import PrivacySpec

DEVICES = tuple(f"d{index}" for index in range(5))
TRUST = VirtualTrust("virtual", DEVICES)
PRIVACY = PrivacySpec(
    mode="distributed", clipping_norm=1.0, noise_multiplier=1.0, min_contributors=3, num_rounds=3, target_epsilon=50.0
)
PLAN = msgspec.structs.replace(
    linear_task(4, 2).plan, privacy=PRIVACY, confidentiality=TRUST.masked_sums(("d0", "d1", "d2"))
)
UPDATE = np.arange(PLAN.num_parameters, dtype=np.uint32)


def _job(**changes):
    plan = changes.pop("plan", PLAN)
    settings = {
        "kind": RoundKind.TRAIN, "plan": plan, "model": b"", "checkpoint": (), "round_id": 1, "device_id": "d4",
        "nonce": bytes(16), "task_id": "task", "plan_sha256": bytes(32), "roster": DEVICES,
        "sealing_blobs": {plan.confidentiality.directory.sha256: TRUST.directory_bytes},
    }  # fmt: skip
    return TrainingJob(**settings | changes)


def _sealer(**changes):
    member = TRUST.members["d4"]
    settings = {
        "population": "virtual", "device_id": "d4", "identity_key": member.identity_key,
        "sealing_key": member.sealing, "sign": member.identity.sign, "accept_directory": TRUST.accept_directory,
        "random_bytes": os.urandom,
    }  # fmt: skip
    return PlanSealer(**settings | changes)


def test_an_update_is_sealed_in_one_message_with_a_box_for_each_member():
    _sealer().check(_job())
    data = _sealer().seal(_job(), UPDATE)
    sealed = decode_sealed_update(data, max_bytes=10**6)
    assert (sealed.mode, len(sealed.boxes), sealed.num_values) == (SealedMode.MASKS, 3, len(UPDATE))
    assert is_signed_by(TRUST.members["d4"].identity_key, sealed.statement("d4"), sealed.signature)
    assert UPDATE.tobytes() not in data
    assert len(encode_plan(PLAN)) < 2000


@pytest.mark.parametrize(
    ("job", "text"),
    [
        ({"roster": ()}, "roster"),
        ({"roster": DEVICES[:4]}, "not on the round's roster"),
        ({"roster": DEVICES[3:]}, "names 2 devices; this one hides among 3"),
        ({"roster": (*DEVICES, "stranger")}, "stranger is not in the key directory"),
        ({"sealing_blobs": {}}, "not believed"),
    ],
    ids=["no roster", "not on it", "too small", "stranger", "no directory"],
)
def test_a_round_that_could_not_hide_the_device_is_refused_before_training(job, text):
    with pytest.raises(PrivacyRefused, match=text):
        _sealer().check(_job(**job))
    with pytest.raises(PrivacyRefused, match=text):
        _sealer().seal(_job(**job), UPDATE)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sealing_key": None}, "no sealing key"),
        ({"sealing_key": X25519PrivateKey.generate()}, "another sealing key than it has"),
        ({"identity_key": bytes(32)}, "not in the key directory with its key"),
    ],
    ids=["no key", "another sealing key", "another identity"],
)
def test_a_device_whose_keys_are_not_the_directorys_does_not_take_part(settings, text):
    with pytest.raises(PrivacyRefused, match=text):
        _sealer(**settings).check(_job())


def test_a_committee_whose_keys_the_coordinator_made_up_is_refused():
    own = X25519PrivateKey.generate().public_key().public_bytes_raw()
    masks = PLAN.confidentiality
    made_up = msgspec.structs.replace(masks.committee[0], box_key=own)
    swapped = msgspec.structs.replace(masks, committee=(made_up, *masks.committee[1:]))
    with pytest.raises(PrivacyRefused, match="another key of d0"):
        _sealer().check(_job(plan=msgspec.structs.replace(PLAN, confidentiality=swapped)))


def test_a_job_says_for_which_round_it_is_and_another_round_gives_other_masks():
    one, other = (
        decode_sealed_update(_sealer().seal(dataclasses.replace(_job(), round_id=round_id), UPDATE), max_bytes=10**6)
        for round_id in (1, 2)
    )
    assert one.context != other.context
    assert one.payload != other.payload
