"""The device's key and epoch: made once, for its owner alone, and never used at a position twice."""

import os

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_client.errors import IdentityError, StorageError
from edge_client.identity import CREDENTIAL_NAME, IdentityStore, next_epoch
from edge_client.state_writer import StateWriter
from wire_protocol.signed import parse_signed

NOW = 1_800_000_000.0


@pytest.fixture
def store(tmp_path):
    def make(credentials=None, now=NOW):
        return IdentityStore(tmp_path, writer=StateWriter(), clock=lambda: now, credentials=credentials)

    return make


def test_without_a_key_there_is_no_identity_and_nothing_is_written(store, tmp_path):
    assert store().load() is None
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_made_once_and_for_its_owner_alone(store, tmp_path):
    old = os.umask(0)
    try:
        made = store().load_or_make()
    finally:
        os.umask(old)
    assert (tmp_path / "identity.key").stat().st_mode & 0o777 == 0o600
    assert store().load_or_make().public_key == made.public_key


def test_each_life_has_a_higher_epoch_and_each_message_a_higher_counter(store):
    first = store().load_or_make()
    lives = [store().load() for _ in range(3)]
    assert [life.epoch for life in lives] == [first.epoch + 1, first.epoch + 2, first.epoch + 3]
    positions = [parse_signed(life.seal("t", b"m")).position for life in lives for _ in range(3)]
    assert positions == sorted(set(positions))


@pytest.mark.parametrize("damage", [b"", b"-5", b"12 3", b"9" * 11, b"\xff", None])
def test_a_lost_or_damaged_epoch_goes_on_from_the_time_of_day(store, tmp_path, damage):
    before = store().load_or_make()
    (tmp_path / "epoch").unlink()
    if damage is not None:
        (tmp_path / "epoch").write_bytes(damage)
    after = store(now=NOW + 100).load()
    assert after.public_key == before.public_key
    assert after.epoch > before.epoch


def test_the_last_epoch_is_an_error_that_says_what_to_do():
    assert next_epoch(2**32 - 2, unix_time=NOW) == 2**32 - 1
    with pytest.raises(IdentityError, match="enrol it anew"):
        next_epoch(2**32 - 1, unix_time=NOW)


def test_a_key_that_others_can_read_is_refused(store, tmp_path):
    store().load_or_make()
    (tmp_path / "identity.key").chmod(0o640)
    with pytest.raises(IdentityError, match="chmod 600"):
        store().load()


@pytest.mark.parametrize("kind", ["garbage", "another algorithm", "empty"])
def test_a_file_that_is_no_key_is_an_error_and_stays(store, tmp_path, kind):
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    data = {"garbage": b"\x00\xff", "another algorithm": other, "empty": b""}[kind]
    path = tmp_path / "identity.key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="no Ed25519 key"):
        store().load_or_make()
    assert path.read_bytes() == data


def test_a_credential_of_systemd_comes_first_and_is_only_read(store, tmp_path):
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    key = store().load_or_make()
    (tmp_path / "identity.key").rename(credentials / CREDENTIAL_NAME)
    store().load_or_make()
    assert store(credentials=str(credentials)).load_or_make().public_key == key.public_key
    assert list(credentials.iterdir()) == [credentials / CREDENTIAL_NAME]


def test_nothing_is_signed_in_an_epoch_that_cannot_be_kept(store, tmp_path):
    class FullDisk(StateWriter):
        def write(self, path, data, *, mode=0o666):
            raise OSError(28, "No space left on device")

    store().load_or_make()
    full = IdentityStore(tmp_path, writer=FullDisk(), clock=lambda: NOW)
    with pytest.raises(StorageError, match="epoch"):
        full.load()
