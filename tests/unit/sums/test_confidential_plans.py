"""A plan says who opens its sums; one that would protect nobody is no plan."""

import msgspec
import pytest

from secure_sum.committee_rules import least_threshold
from wire_protocol.blobs import split_blob
from wire_protocol.confidentiality import EncryptedSums, HelperSums, MaskedSums, SumOpener, committee_threshold
from wire_protocol.errors import MalformedMessage
from wire_protocol.plan import TensorSpec, TrainingPlan, decode_plan, encode_plan
from wire_protocol.privacy_spec import PrivacySpec

OPENERS = tuple(SumOpener(device_id=f"h{i}", box_key=bytes([i] * 32), operator=f"org{i}") for i in range(5))
PRIVACY = PrivacySpec(
    mode="distributed", clipping_norm=1.0, noise_multiplier=1.0, min_contributors=5, num_rounds=3, target_epsilon=50.0
)
BLOB = split_blob(bytes(2048), piece_bytes=1024).ref
WAYS = (
    HelperSums(helpers=OPENERS[:3], directory=BLOB),
    MaskedSums(committee=OPENERS, threshold=4, directory=BLOB),
    EncryptedSums(key_authority=OPENERS[0], keys=BLOB, directory=BLOB),
)


def plan(**changes):
    settings = {"batch_size": 4, "learning_rate": 0.1, "input_shape": (3,), "num_classes": 4, "privacy": PRIVACY}
    return TrainingPlan(weights=(TensorSpec(shape=(3, 4)),), **settings | changes)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
def test_a_confidential_plan_survives_its_bytes(way):
    made = plan(confidentiality=way)
    assert decode_plan(encode_plan(made)) == made


def test_a_plan_without_it_has_the_bytes_it_always_had():
    assert b"confidentiality" not in encode_plan(plan())


@pytest.mark.parametrize(
    ("privacy", "text"),
    [
        (None, "integers"),
        (msgspec.structs.replace(PRIVACY, min_contributors=1), "at least 2"),
        (msgspec.structs.replace(PRIVACY, mode="central"), "central mode"),
    ],
)
def test_a_plan_whose_sum_protects_nobody_is_refused(privacy, text):
    with pytest.raises(ValueError, match=text):
        plan(privacy=privacy, confidentiality=WAYS[0])


def test_three_helpers_are_three():
    same_key = (*OPENERS[:2], SumOpener(device_id="h9", box_key=OPENERS[0].box_key))
    for helpers, text in [
        ((*OPENERS[:2], OPENERS[0]), "named twice"),
        (same_key, "same key"),
        (OPENERS[:2], "too few|at least"),
    ]:
        with pytest.raises(ValueError, match=text):
            HelperSums(helpers=helpers, directory=BLOB)
    with pytest.raises(ValueError, match="num_needed"):
        HelperSums(helpers=OPENERS[:3], num_needed=1, directory=BLOB)


def test_helpers_of_one_operator_are_told_from_independent_ones():
    def run_by(*names, num_needed=2):
        helpers = tuple(
            msgspec.structs.replace(one, operator=name) for one, name in zip(OPENERS[:3], names, strict=True)
        )
        return HelperSums(helpers=helpers, num_needed=num_needed, directory=BLOB).has_one_operator

    assert not run_by("a", "b", "c")
    assert run_by("a", "a", "c")
    assert not run_by("a", "a", "c", num_needed=3)
    assert run_by("a", "a", "a", num_needed=3)
    assert run_by("", "", "c"), "who does not say who it is may be anybody"


@pytest.mark.parametrize("threshold", [2, 3, 6])
def test_a_committee_that_could_open_two_lists_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold of 4 to 5"):
        MaskedSums(committee=OPENERS, threshold=threshold, directory=BLOB)


def test_a_committee_of_two_and_an_odd_number_of_neighbours_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        MaskedSums(committee=OPENERS[:2], threshold=2, directory=BLOB)
    with pytest.raises(ValueError, match="even"):
        MaskedSums(committee=OPENERS, threshold=4, num_neighbours=7, directory=BLOB)


def test_plans_and_devices_mean_the_same_threshold():
    assert [committee_threshold(m) for m in range(3, 256)] == [least_threshold(m) for m in range(3, 256)]


def test_a_forged_plan_is_refused_when_it_is_read():
    data = encode_plan(plan(confidentiality=WAYS[0])).replace(b'"distributed"', b'"central"')
    with pytest.raises(MalformedMessage, match="central mode"):
        decode_plan(data)


def test_ckks_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="IND-CPA-D"):
        EncryptedSums(key_authority=OPENERS[0], keys=BLOB, directory=BLOB, scheme="ckks")
