"""The device's sealing key, and the key directory as the device believes it."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.errors import IdentityError, StorageError
from edge_client.identity import IdentityStore
from edge_client.pinned_directory import PIN_FILE, PinnedDirectory
from edge_client.sealing_key import SealingKeyStore, member_keys
from edge_client.state_writer import StateWriter
from secure_sum.directory_entries import MemberRole, fingerprint
from secure_sum.errors import DirectoryForked, DirectoryRolledBack, MalformedDirectory, OtherAuthority
from secure_sum.key_directory import add_member, empty_directory, encode_directory, rotate_member
from simulators.trials.sum_decoders import sample_member
from wire_protocol.signed import MESSAGE_DOMAIN

AUTHORITY = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x63")
EMPTY = empty_directory("p", AUTHORITY.public_key().public_bytes_raw())
ONE = add_member(EMPTY, sample_member("a", seed=1), made_at=1, authority=AUTHORITY)
TWO = add_member(ONE, sample_member("b", seed=2), made_at=2, authority=AUTHORITY)
FORK = add_member(ONE, sample_member("c", seed=3), made_at=2, authority=AUTHORITY)


@pytest.fixture
def pinned(tmp_path):
    def make(population="p", authority_fingerprint=""):
        return PinnedDirectory(
            tmp_path, writer=StateWriter(), population=population, authority_fingerprint=authority_fingerprint
        )

    return make


def test_the_sealing_key_is_made_once_and_for_its_owner_alone(tmp_path):
    old = os.umask(0)
    try:
        made = SealingKeyStore(tmp_path, writer=StateWriter()).load_or_make()
    finally:
        os.umask(old)
    assert (tmp_path / "sealing.key").stat().st_mode & 0o777 == 0o600
    again = SealingKeyStore(tmp_path, writer=StateWriter()).load()
    assert again.public_key().public_bytes_raw() == made.public_key().public_bytes_raw()


@pytest.mark.parametrize("damage", [b"", b"no key", None])
def test_a_sealing_key_that_cannot_be_used_is_the_owners_to_mend(tmp_path, damage):
    store = SealingKeyStore(tmp_path, writer=StateWriter())
    if damage is None:
        store.load_or_make()
        (tmp_path / "sealing.key").chmod(0o644)
    else:
        (tmp_path / "sealing.key").write_bytes(damage)
        (tmp_path / "sealing.key").chmod(0o600)
    with pytest.raises(IdentityError, match=r"rotated"):
        store.load()


def test_what_a_device_asks_to_be_entered_is_bound_to_its_identity(tmp_path):
    identity = IdentityStore(tmp_path, writer=StateWriter(), clock=lambda: 1e9).load_or_make()
    sealing = SealingKeyStore(tmp_path, writer=StateWriter()).load_or_make()
    keys = member_keys(identity, sealing, population="p", member_id="a", role=MemberRole.DEVICE)
    directory = add_member(EMPTY, keys, made_at=1, authority=AUTHORITY)
    assert directory.members["a"].identity_key == identity.public_key
    assert keys.identity_key != keys.sealing_key


def test_no_statement_can_pass_for_a_message(tmp_path):
    identity = IdentityStore(tmp_path, writer=StateWriter(), clock=lambda: 1e9).load_or_make()
    with pytest.raises(IdentityError):
        identity.sign_statement(MESSAGE_DOMAIN + b"x")


def test_first_contact_pins_and_a_restart_remembers(pinned):
    assert pinned().pin() is None
    pinned().accept(encode_directory(TWO))
    assert pinned().pin().num_entries == 2
    with pytest.raises(DirectoryRolledBack):
        pinned().accept(encode_directory(ONE))
    with pytest.raises(DirectoryForked):
        pinned().accept(encode_directory(FORK))
    assert pinned().pin().num_entries == 2


def test_the_same_process_notices_a_rollback_too(pinned):
    desk = pinned()
    desk.accept(encode_directory(ONE))
    assert set(desk.accept(encode_directory(TWO)).members) == {"a", "b"}
    assert set(desk.accept(encode_directory(TWO)).members) == {"a", "b"}
    with pytest.raises(DirectoryRolledBack):
        desk.accept(encode_directory(ONE))


def test_another_authority_is_refused_after_first_contact(pinned):
    pinned().accept(encode_directory(ONE))
    other = empty_directory("p", Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    with pytest.raises(OtherAuthority):
        pinned().accept(encode_directory(other))


def test_an_owner_who_names_the_authority_trusts_no_other_even_at_first_contact(pinned):
    right, wrong = fingerprint(EMPTY.authority_key), fingerprint(bytes(32))
    with pytest.raises(OtherAuthority):
        pinned(authority_fingerprint=wrong).accept(encode_directory(ONE))
    assert pinned().pin() is None
    pinned(authority_fingerprint=right.upper()).accept(encode_directory(ONE))
    with pytest.raises(OtherAuthority):  # also if the pin says otherwise
        pinned(authority_fingerprint=wrong).accept(encode_directory(ONE))
    with pytest.raises(OtherAuthority):
        pinned(population="q").accept(encode_directory(ONE))


def test_a_damaged_pin_is_not_first_contact_again(pinned, tmp_path):
    pinned().accept(encode_directory(ONE))
    (tmp_path / PIN_FILE).write_bytes(b"{}")
    with pytest.raises(IdentityError, match="no key is believed"):
        pinned().accept(encode_directory(ONE))
    assert (tmp_path / PIN_FILE).read_bytes() == b"{}"


def test_a_pin_that_cannot_be_kept_is_not_believed(pinned, tmp_path, monkeypatch):
    desk = pinned()
    monkeypatch.setattr(StateWriter, "write", _full)
    with pytest.raises(StorageError):
        desk.accept(encode_directory(ONE))
    assert desk.pin() is None


def test_a_log_that_was_tampered_with_leaves_the_pin_as_it_was(pinned):
    pinned().accept(encode_directory(ONE))
    data = bytearray(encode_directory(TWO))
    data[-1] ^= 1
    with pytest.raises(MalformedDirectory):
        pinned().accept(bytes(data))
    assert pinned().pin().num_entries == 1


def test_a_rotation_is_said_in_the_log(pinned, caplog):
    desk = pinned()
    desk.accept(encode_directory(ONE))
    rotated = rotate_member(ONE, sample_member("a", seed=5), made_at=3, authority=AUTHORITY)
    desk.accept(encode_directory(rotated))
    [record] = [record for record in caplog.records if record.getMessage().startswith("member_key_rotated")]
    assert fingerprint(sample_member("a", seed=5).identity_key) in record.getMessage()


def _full(self, path, data, *, mode=0):
    raise OSError(28, "No space left on device")
