"""Homomorphic encryption: the sum is exact, and the key authority decrypts one signed set's sum of a round, or nothing."""

import dataclasses
import hashlib
import os

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_sum import bfv
from secure_sum.bfv import (
    CHUNK_VALUES,
    PLAIN_MODULUS,
    CiphertextAdder,
    Decryptor,
    Encryptor,
    centred,
    chunk_lengths,
    make_key_pair,
)
from secure_sum.ciphertext import (
    NUM_TAGS,
    Ciphertext,
    decode_ciphertext,
    encode_ciphertext,
    max_ciphertext_bytes,
)
from secure_sum.context import round_context
from secure_sum.contributor_rules import ContributorRules
from secure_sum.encrypted_sum import EncryptedSum
from secure_sum.encrypted_update import EncryptionOrder, seal_encrypted, signed_values
from secure_sum.encryption_forecast import EncryptionLimits, check_forecast, forecast_encryption
from secure_sum.encryption_keys import decode_encryption_keys, release_encryption_keys
from secure_sum.errors import (
    BoxNotOpened,
    EncryptionUnavailable,
    ForecastExceeded,
    MalformedSealed,
    OpeningRefused,
    OversizedSealed,
    RefusalCause,
)
from secure_sum.key_rules import MAX_WRONG_TOTALS, KeyRules, answer_as_key_authority
from secure_sum.openings import HelperAsk, KeyAsk, OpeningOrder, contributor_of, decode_order, encode_order
from secure_sum.sealed_box import BoxRoute
from secure_sum.sealed_update import vector_of
from secure_sum.sum_tags import inner_tags, sum_of_tags, tag_pads
from wire_protocol.confidentiality import ENCRYPTED_SUM_MODULUS
from wire_protocol.privacy_spec import PrivacySpec

PLAN = hashlib.sha256(b"plan").digest()
pytestmark = pytest.mark.skipif(
    not os.environ.get("CI") and not bfv.is_available(), reason="TenSEAL is not installed here"
)


class Book(dict):
    """What a key authority keeps, in memory."""

    def __init__(self):
        super().__init__()
        self.wrong = set()

    def claim(self, context, set_digest):
        return self.setdefault(context, set_digest) == set_digest

    def num_wrong_totals(self):
        return len(self.wrong)

    def note_wrong_total(self, context):
        self.wrong.add(context)


@pytest.fixture(scope="module")
def pair():
    return make_key_pair()


class Banks:
    """Banks, a coordinator's sum and a key authority."""

    def __init__(self, pair, num_devices=5, num_values=7, min_contributors=2):
        self.pair, self.num_values = pair, num_values
        self.identities = {f"bank{i}": Ed25519PrivateKey.generate() for i in range(num_devices)}
        self.sealing = {name: X25519PrivateKey.generate() for name in self.identities}
        self.authority, self.authority_sealing = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
        self.tag_secret, self.book, self.encryptor = os.urandom(32), Book(), Encryptor(pair.public)
        registered = {name: key.public_key().public_bytes_raw() for name, key in self.identities.items()}
        self.rules = KeyRules(
            authority_id="ka",
            contributors=ContributorRules(population="p", registered=registered, min_contributors=min_contributors),
            sealing_key=self.authority_sealing,
            tag_secret=self.tag_secret,
            decryptor=Decryptor(pair.secret),
        )

    def context(self, round_id=3):
        return round_context(population="p", task_id="t", plan_sha256=PLAN, round_id=round_id)

    def seal(self, name, values, *, round_id=3, demanded=2):
        order = EncryptionOrder(
            context=self.context(round_id), device_id=name, min_contributors=demanded, authority_id="ka",
            authority_key=self.authority_sealing.public_key().public_bytes_raw(), tag_secret=self.tag_secret,
        )  # fmt: skip
        return seal_encrypted(
            values,
            order,
            encryptor=Encryptor(self.pair.public),
            sign=self.identities[name].sign,
            random_bytes=os.urandom,
        )

    def all_sealed(self, rng=None, **options):
        rng = rng or np.random.default_rng(0)
        self.values = {name: rng.integers(-9000, 9000, self.num_values).astype(np.uint32) for name in self.identities}
        return {name: self.seal(name, values, **options) for name, values in self.values.items()}

    def total(self, updates):
        total = EncryptedSum(num_values=self.num_values)
        for update in updates:
            total.add(update.payload)
        return total.total()

    def order(self, sealed, *, total=None, round_id=3, **changes):
        contributors = tuple(
            contributor_of(update.header(name), box_index=None) for name, update in sorted(sealed.items())
        )
        order = OpeningOrder(
            population="p", task_id="t", plan_sha256=PLAN, round_id=round_id, num_values=self.num_values,
            contributors=contributors, ask=KeyAsk(total=self.total(sealed.values()) if total is None else total, keys_sha256=bytes(32)),
        )  # fmt: skip
        return msgspec.structs.replace(order, **changes)

    def ask(self, order):
        asked = decode_order(encode_order(order), max_bytes=10**8)
        return vector_of(answer_as_key_authority(asked, self.rules, self.book).data, self.num_values)

    def refusal(self, order):
        with pytest.raises(OpeningRefused) as caught:
            self.ask(order)
        return caught.value.cause


@pytest.fixture
def banks(pair):
    return Banks(pair)


def _plain(banks, names):
    return sum((banks.values[name] for name in names), np.zeros(banks.num_values, np.uint32))


@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_the_decrypted_sum_is_the_plain_sum_bit_for_bit_whoever_is_missing(pair, data):
    """0, 10, 30 % and any other share of no-shows; in any order; asked twice."""
    banks = Banks(
        pair, num_devices=data.draw(st.integers(2, 10)), num_values=data.draw(st.sampled_from([1, 7, 4096, 4100]))
    )
    sealed = banks.all_sealed(np.random.default_rng(data.draw(st.integers(0, 2**32))))
    there = data.draw(st.sets(st.sampled_from(sorted(sealed)), min_size=2))
    chosen = {name: sealed[name] for name in data.draw(st.permutations(sorted(there)))}
    order = banks.order(chosen)
    assert np.array_equal(banks.ask(order), _plain(banks, there))
    assert np.array_equal(banks.ask(order), _plain(banks, there))


def test_a_sum_of_a_hundred_extreme_updates_is_exact(pair):
    """As large as it may get without wrapping around: the noise is far from the limit, too."""
    largest = (PLAIN_MODULUS // 2) // 100
    values = np.array([largest, -largest, 0, 1] * 1024, np.int64)
    chunks, adder = Encryptor(pair.public).encrypt(values), CiphertextAdder(num_values=len(values))
    for _ in range(100):
        adder.add(chunks)
    total = Decryptor(pair.secret).decrypt(adder.total(), num_values=len(values))
    assert np.array_equal(total, 100 * values)


def test_one_more_than_the_range_allows_would_wrap_and_is_refused_beforehand(pair):
    spec = PrivacySpec(mode="distributed", clipping_norm=1.0, noise_multiplier=1.0, min_contributors=2, num_rounds=1,
                       target_epsilon=10, grid_bits=16)  # fmt: skip
    half = ENCRYPTED_SUM_MODULUS // 2
    most = spec.max_contributors(10, half_modulus=half)
    assert spec.largest_honest_sum(10, most) < half <= spec.largest_honest_sum(10, most + 1)
    assert most < spec.max_contributors(10)
    too_large = np.array([half + 1], np.int64)
    with pytest.raises(MalformedSealed, match="exactly"):
        Encryptor(pair.public).encrypt(too_large)
    wrapped = centred(np.array([half + 1], np.int64))
    assert wrapped[0] == -half


def test_a_device_whose_number_is_too_large_sends_nothing(banks):
    with pytest.raises(MalformedSealed, match="grid_bits"):
        banks.seal("bank0", np.array([2**30] * 7, np.uint32))


@pytest.mark.parametrize("names", [["bank0"], ["bank0", "bank1"], ["bank0", "bank0", "bank1", "bank2", "bank3"]])
def test_a_coordinator_that_hands_in_anything_but_the_sum_of_the_set_is_told_nothing(banks, names):
    """One device's update, fewer than the set, one twice: each would give single updates away."""
    sealed = banks.all_sealed()
    assert (
        banks.refusal(banks.order(sealed, total=banks.total([sealed[name] for name in names])))
        is RefusalCause.WRONG_TOTAL
    )


def test_without_tags_the_same_coordinator_would_read_one_update(banks):
    """The positive control: the secret key opens a single ciphertext as it opens a sum."""
    sealed = banks.all_sealed()
    chunks = decode_ciphertext(sealed["bank0"].payload, num_values=7).chunks
    read = Decryptor(banks.pair.secret).decrypt(chunks, num_values=7)
    assert np.array_equal(read.astype(np.uint32), banks.values["bank0"])


def test_a_coordinator_that_puts_its_own_numbers_into_the_sum_is_refused(banks):
    """Also with the tags that belong to the set, and with tags of its own making under another secret."""
    sealed = banks.all_sealed()
    honest = decode_ciphertext(banks.total(sealed.values()), num_values=7)
    extra = np.arange(7, dtype=np.int64)
    adder = CiphertextAdder(num_values=7)
    adder.add(honest.chunks)
    adder.add(Encryptor(banks.pair.public).encrypt(extra))
    guessed = inner_tags(extra, tag_secret=bytes(32), context=banks.context())
    for tags in (honest.tags, sum_of_tags((honest.tags, guessed))):
        banks.book.clear()
        forged = encode_ciphertext(Ciphertext(num_values=7, tags=tags, chunks=adder.total()))
        assert banks.refusal(banks.order(sealed, total=forged)) is RefusalCause.WRONG_TOTAL


def test_contributors_that_conspire_can_shift_the_sum_by_what_they_know_and_read_nothing_else(banks):
    """They give the coordinator the tag secret: it can compute tags of its own numbers, but not take the others' out."""
    sealed = banks.all_sealed()
    honest = decode_ciphertext(banks.total(sealed.values()), num_values=7)
    known = np.arange(7, dtype=np.int64)
    shift = inner_tags(known, tag_secret=banks.tag_secret, context=banks.context())
    adder = CiphertextAdder(num_values=7)
    adder.add(honest.chunks)
    adder.add(Encryptor(banks.pair.public).encrypt(known))
    shifted = Ciphertext(num_values=7, tags=sum_of_tags((honest.tags, shift)), chunks=adder.total())
    got = banks.ask(banks.order(sealed, total=encode_ciphertext(shifted)))
    assert np.array_equal(got, _plain(banks, sealed) + known.astype(np.uint32))
    one = decode_ciphertext(sealed["bank0"].payload, num_values=7)
    own = inner_tags(signed_values(banks.values["bank4"]), tag_secret=banks.tag_secret, context=banks.context())
    without_own = tuple((tag - weight) % PLAIN_MODULUS for tag, weight in zip(honest.tags, own, strict=True))
    for tags in (one.tags, honest.tags, without_own):
        banks.book.clear()
        forged = dataclasses.replace(one, tags=tags)
        assert banks.refusal(banks.order(sealed, total=encode_ciphertext(forged))) is RefusalCause.WRONG_TOTAL


def test_one_total_is_decrypted_per_round(banks):
    sealed = banks.all_sealed()
    banks.ask(banks.order(sealed))
    fewer = {name: sealed[name] for name in ("bank0", "bank1", "bank2")}
    assert banks.refusal(banks.order(fewer)) is RefusalCause.SECOND_SET
    assert banks.refusal(banks.order(sealed, total=banks.total([sealed["bank0"]]))) is RefusalCause.SECOND_SET


def test_a_refused_total_has_spent_its_round(banks):
    sealed = banks.all_sealed()
    assert banks.refusal(banks.order(sealed, total=banks.total([sealed["bank0"]]))) is RefusalCause.WRONG_TOTAL
    assert banks.refusal(banks.order(sealed)) is RefusalCause.SECOND_SET


def test_after_a_few_wrong_totals_the_key_authority_stops(banks):
    for round_id in range(1, MAX_WRONG_TOTALS + 1):
        sealed = banks.all_sealed(round_id=round_id)
        wrong = banks.order(sealed, round_id=round_id, total=banks.total([sealed["bank0"]]))
        assert banks.refusal(wrong) is RefusalCause.WRONG_TOTAL
    honest = banks.order(banks.all_sealed(round_id=99), round_id=99)
    assert banks.refusal(honest) is RefusalCause.WRONG_TOTAL


def test_a_set_below_n_min_is_refused_whoever_demands_it(banks, pair):
    sealed = banks.all_sealed()
    one = {"bank0": sealed["bank0"]}
    assert banks.refusal(banks.order(one)) is RefusalCause.TOO_FEW
    sealed["bank4"] = banks.seal("bank4", banks.values["bank4"], demanded=6)
    assert banks.refusal(banks.order(sealed)) is RefusalCause.TOO_FEW
    strict = Banks(pair, min_contributors=6)
    assert strict.refusal(strict.order(strict.all_sealed())) is RefusalCause.TOO_FEW
    assert banks.book.keys() == set()


def test_an_unregistered_device_a_swapped_key_a_duplicate_and_a_replayed_round_are_refused(banks):
    sealed = banks.all_sealed()
    order = banks.order(sealed)
    first, *rest = order.contributors
    cases = {
        RefusalCause.UNREGISTERED: (*rest, msgspec.structs.replace(first, device_id="mallory")),
        RefusalCause.DUPLICATE_DEVICE: (first, *order.contributors),
        RefusalCause.BAD_SIGNATURE: (msgspec.structs.replace(first, ephemeral_key=rest[0].ephemeral_key), *rest),
    }
    for cause, contributors in cases.items():
        assert banks.refusal(msgspec.structs.replace(order, contributors=contributors)) is cause
    replayed = banks.order(sealed, round_id=4)
    assert banks.refusal(replayed) is RefusalCause.BAD_SIGNATURE
    assert banks.refusal(msgspec.structs.replace(order, population="q")) is RefusalCause.WRONG_CONTEXT
    assert banks.refusal(msgspec.structs.replace(order, ask=HelperAsk(parts=(0,)))) is RefusalCause.WRONG_CONTEXT
    banks.rules = dataclasses.replace(
        banks.rules,
        contributors=dataclasses.replace(
            banks.rules.contributors,
            registered={**banks.rules.contributors.registered, "bank0": Ed25519PrivateKey.generate().public_key().public_bytes_raw()},
        ),
    )  # fmt: skip
    assert banks.refusal(order) is RefusalCause.BAD_SIGNATURE
    assert not banks.book.keys()


def test_the_coordinator_sees_numbers_that_do_not_depend_on_the_update(banks):
    """Tags of one fixed update are uniform modulo t, chunks are never the same twice; the ciphertext hides by LWE."""
    values, authority = np.arange(7, dtype=np.int64), banks.authority_sealing.public_key().public_bytes_raw()
    inner = inner_tags(values, tag_secret=banks.tag_secret, context=banks.context())
    route = BoxRoute(context=banks.context(), sender_id="bank0", opener_id="ka")
    tags = []
    for _ in range(300):
        own = X25519PrivateKey.generate()
        public = own.public_key().public_bytes_raw()
        pads = tag_pads(own, authority, ephemeral_key=public, opener_key=authority, route=route)
        tags += sum_of_tags((inner, pads))
    counts = np.histogram(np.array(tags) / PLAIN_MODULUS, bins=10, range=(0, 1))[0]
    expected = len(tags) / 10
    assert ((counts - expected) ** 2 / expected).sum() < 40  # chi-squared, 9 degrees: by chance 8e-6
    views = [decode_ciphertext(banks.seal("bank0", values.astype(np.uint32)).payload, num_values=7) for _ in range(4)]
    assert len({view.chunks for view in views}) == len({view.tags for view in views}) == 4


def test_weights_are_of_one_round_one_secret_and_one_row():
    """Whoever learnt them in one round would know nothing of the next."""
    values = np.arange(5, dtype=np.int64)
    tags = [inner_tags(values, tag_secret=bytes([secret]) * 32, context=bytes([context]) * 32)
            for secret in range(2) for context in range(2)]  # fmt: skip
    assert len({number for row in tags for number in row}) == 4 * NUM_TAGS


def test_whoever_has_no_secret_key_cannot_decrypt(pair):
    with pytest.raises(MalformedSealed, match="secret"):
        Decryptor(pair.public)
    with pytest.raises(MalformedSealed, match="public key alone"):
        Encryptor(pair.secret)


def test_the_total_does_not_depend_on_the_order_so_that_a_restart_asks_for_the_same(banks):
    sealed = list(banks.all_sealed().values())
    assert banks.total(sealed) == banks.total(reversed(sealed))


def test_another_key_decrypts_to_nothing_of_use(banks, pair):
    other = make_key_pair()
    sealed = banks.all_sealed()
    chunks = decode_ciphertext(sealed["bank0"].payload, num_values=7).chunks
    read = Decryptor(other.secret).decrypt(chunks, num_values=7)
    assert not np.array_equal(read.astype(np.uint32), banks.values["bank0"])


def test_the_plain_modulus_is_the_prime_that_it_must_be():
    assert PLAIN_MODULUS == ENCRYPTED_SUM_MODULUS
    assert PLAIN_MODULUS % (2 * CHUNK_VALUES) == 1
    assert all(PLAIN_MODULUS % factor for factor in range(2, int(PLAIN_MODULUS**0.5) + 1))


def test_keys_of_other_parameters_are_refused():
    import tenseal

    small = tenseal.context(tenseal.SCHEME_TYPE.BFV, poly_modulus_degree=4096, plain_modulus=40961)
    ckks = tenseal.context(tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 60])
    for context in (small, ckks):
        public = context.serialize(save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
        with pytest.raises(MalformedSealed, match="parameters"):
            Encryptor(public)
    for data in (b"", b"no key", os.urandom(1000)):
        with pytest.raises(MalformedSealed):
            Encryptor(data)


def test_the_noise_of_the_most_summands_is_far_below_what_decryption_bears():
    import tenseal

    context = tenseal.context(tenseal.SCHEME_TYPE.BFV, poly_modulus_degree=CHUNK_VALUES, plain_modulus=PLAIN_MODULUS)
    bits = context.seal_context().data.first_context_data().total_coeff_modulus_bit_count()
    fresh = 2 * CHUNK_VALUES * 21 + 21
    assert bfv.MAX_SUMMANDS * fresh * 50 < 2 ** (bits - 1) / (2 * PLAIN_MODULUS)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: dataclasses.replace(c, chunks=(*c.chunks, c.chunks[0])),
        lambda c: dataclasses.replace(c, chunks=()),
        lambda c: dataclasses.replace(c, chunks=(c.chunks[0][:-1],)),
        lambda c: dataclasses.replace(c, chunks=(b"rubbish",)),
        lambda c: dataclasses.replace(c, num_values=8),
    ],
)
def test_a_payload_that_is_not_in_order_leaves_the_total_as_it_was(banks, spoil):
    sealed = banks.all_sealed()
    total = EncryptedSum(num_values=7)
    for update in sealed.values():
        total.add(update.payload)
    before = total.total()
    with pytest.raises((MalformedSealed, OversizedSealed)):
        total.add(encode_ciphertext(spoil(decode_ciphertext(sealed["bank0"].payload, num_values=7))))
    assert total.total() == before


def test_a_ciphertext_of_more_numbers_than_its_place_is_refused(pair):
    longer = Encryptor(pair.public).encrypt(np.arange(8))
    with pytest.raises(MalformedSealed, match="another form"):
        CiphertextAdder(num_values=7).add(longer)


def test_payloads_have_one_form_and_a_limit(banks):
    payload = banks.seal("bank0", np.zeros(7, np.uint32)).payload
    assert encode_ciphertext(decode_ciphertext(payload, num_values=7)) == payload
    assert len(payload) < max_ciphertext_bytes(7)
    with pytest.raises(OversizedSealed):
        decode_ciphertext(bytes(max_ciphertext_bytes(7) + 1), num_values=7)
    for spoiled in (payload + b"x", payload[:-1], payload[:20], b"XX" + payload[2:]):
        with pytest.raises(MalformedSealed):
            decode_ciphertext(spoiled, num_values=7)
    with pytest.raises(MalformedSealed):
        encode_ciphertext(Ciphertext(num_values=7, tags=(PLAIN_MODULUS,) * NUM_TAGS, chunks=()))


class TestKeysThatAreReleased:
    def _release(self, banks, **changes):
        values = {
            "population": "p", "authority_id": "ka", "public_key": banks.pair.public, "tag_secret": banks.tag_secret,
            "sealing_keys": {name: key.public_key().public_bytes_raw() for name, key in banks.sealing.items()},
            "sign": banks.authority.sign, "random_bytes": os.urandom,
        }  # fmt: skip
        return decode_encryption_keys(release_encryption_keys(**{**values, **changes}).encode())

    def _check(self, banks, release, **changes):
        values = {
            "population": "p",
            "authority_id": "ka",
            "identity_key": banks.authority.public_key().public_bytes_raw(),
        }
        release.check(**{**values, **changes})

    def test_a_device_gets_the_tag_secret_and_the_public_key(self, banks):
        release = self._release(banks)
        self._check(banks, release)
        assert release.public_key == banks.pair.public
        assert release.tag_secret("bank0", banks.sealing["bank0"]) == banks.tag_secret
        assert decode_encryption_keys(release.encode()).encode() == release.encode()

    def test_a_public_key_that_the_coordinator_put_in_is_refused(self, banks):
        mallory = Ed25519PrivateKey.generate()
        forged = self._release(banks, public_key=make_key_pair().public, sign=mallory.sign)
        with pytest.raises(MalformedSealed, match="not signed"):
            self._check(banks, forged)

    @pytest.mark.parametrize("field", ["population", "authority_id"])
    def test_a_release_is_for_one_population_and_authority(self, banks, field):
        with pytest.raises(MalformedSealed):
            self._check(banks, self._release(banks), **{field: "other"})

    def test_the_tag_secret_is_for_the_devices_that_it_was_sealed_for(self, banks):
        release = self._release(banks)
        with pytest.raises(BoxNotOpened):
            release.tag_secret("bank0", banks.sealing["bank1"])
        with pytest.raises(BoxNotOpened, match="issue"):
            release.tag_secret("bank9", banks.sealing["bank0"])
        assert banks.tag_secret not in release.encode()

    def test_bytes_that_are_no_release_are_refused(self, banks):
        good = self._release(banks).encode()
        with pytest.raises(OversizedSealed):
            decode_encryption_keys(bytes(5_000_000))
        for data in (b"", good[:50], good + b"\x00", b"X" + good[1:]):
            with pytest.raises(MalformedSealed):
                decode_encryption_keys(data)


class TestTheForecast:
    def test_it_is_right_about_bytes(self, banks, pair):
        for num_values in (1, 4096, 9000):
            fleet = Banks(pair, num_devices=2, num_values=num_values)
            payload = fleet.seal("bank0", np.zeros(num_values, np.uint32)).payload
            told = forecast_encryption(num_values, 2).update_bytes
            assert 0.98 * told < len(payload) <= told, num_values

    def test_it_grows_with_model_and_cohort(self):
        small, large = forecast_encryption(50_000, 10), forecast_encryption(1_200_000, 100)
        assert small.update_bytes == pytest.approx(1.15e6, rel=0.02)
        assert large.update_bytes == pytest.approx(26e6, rel=0.02)
        assert large.coordinator_s > 100 * small.coordinator_s

    @pytest.mark.parametrize(
        ("num_values", "num_contributors", "match"),
        [(5_000_000, 5, "an update would take"), (1_200_000, 100_000, "adding on the coordinator")],
    )
    def test_a_round_over_the_limit_is_refused_with_what_to_do(self, num_values, num_contributors, match):
        check_forecast(forecast_encryption(50_000, 20), EncryptionLimits())
        with pytest.raises(ForecastExceeded, match=match) as caught:
            check_forecast(forecast_encryption(num_values, num_contributors), EncryptionLimits())
        assert "helpers or masks" in str(caught.value)


def test_without_tenseal_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tenseal", None)
    with pytest.raises(EncryptionUnavailable, match=r"flockwise\[he\]"):
        make_key_pair()
    assert not bfv.is_available()
    assert chunk_lengths(4097) == (4096, 1)
