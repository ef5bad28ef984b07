"""The key authority's keys on disk, its commands, its book, and the desk that answers by the pinned directory."""

import hashlib
import json
import os

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from coordinator.confidential_task import encrypted_sums, who_must_be_believed
from coordinator.directory_files import open_key_directory
from coordinator.errors import InvalidConfig
from edge_client.errors import IdentityError, StorageError
from edge_client.opener.encryption_key_file import EncryptionKeyFile
from edge_client.opener.key_desk import KeyDesk
from edge_client.opener.key_release import ISSUED_DIRECTORY, released_by
from edge_client.opener.set_book import SqliteSetBook
from edge_client.opener.wrong_totals import KeyBook
from edge_client.state_writer import StateWriter
from flockwise.cli import main
from secure_sum import bfv
from secure_sum.directory_entries import MemberRole, encode_request
from secure_sum.encryption_keys import decode_encryption_keys
from secure_sum.errors import OpeningRefused, RefusalCause
from secure_sum.openings import HelperAsk, KeyAsk, OpeningOrder
from simulators.demo_key_authority import KEY_AUTHORITY_ID, issue_demo_keys
from simulators.offline_directory import enter_offline
from simulators.trials.sum_decoders import sample_member

pytestmark = pytest.mark.skipif(
    not os.environ.get("CI") and not bfv.is_available(), reason="TenSEAL is not installed here"
)


def _run(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def _json(*words, **options):
    return json.loads(_run(*words, "--json", **options).stdout)


@pytest.fixture
def authority(tmp_path):
    _run("directory", "init", "--population", "p", "--dir", tmp_path / "authority")
    request = _json("key-authority", "request", "--population", "p", "--state-dir", tmp_path / "ka")["request"]
    bank = encode_request(sample_member("bank0", seed=1))
    _run("directory", "add", request, bank, "--dir", tmp_path / "authority")
    return tmp_path


def _issue(home, *more, code=0):
    return _run("key-authority", "issue", "--state-dir", home / "ka", "--directory",
                home / "authority" / "directory.fwkd", "--out", home / "keys.fwkr", *more, code=code)  # fmt: skip


def _public_key(home):
    return decode_encryption_keys((home / "keys.fwkr").read_bytes()).public_key


def test_keys_are_made_once_for_their_owner_alone_and_released_to_the_devices(authority):
    _issue(authority)
    assert (authority / "ka" / "encryption.key").stat().st_mode & 0o777 == 0o600
    release = decode_encryption_keys((authority / "keys.fwkr").read_bytes())
    assert release.device_ids == ("bank0",)
    first = release.public_key
    _issue(authority)
    assert _public_key(authority) == first
    _issue(authority, "--new-keys")
    assert _public_key(authority) != first


def test_keys_that_were_replaced_are_known_as_such(authority):
    """A plan that names them is told so, and no wrong total is counted."""

    def released():
        _issue(authority)
        return hashlib.sha256((authority / "keys.fwkr").read_bytes()).digest()

    first, second = released(), released()
    assert released_by(authority / "ka") == {first, second}
    _issue(authority, "--new-keys")
    third = hashlib.sha256((authority / "keys.fwkr").read_bytes()).digest()
    assert released_by(authority / "ka") == {third}
    (authority / "ka" / "releases").write_text("no digest")
    with pytest.raises(StorageError, match="issue"):
        released_by(authority / "ka")


def test_a_key_authority_whose_sealing_key_changed_does_not_start(authority):
    _issue(authority)
    (authority / "ka" / "sealing.key").unlink()
    _json("key-authority", "request", "--population", "p", "--state-dir", authority / "ka")
    words = (
        "key-authority",
        "run",
        "--population",
        "p",
        "--state-dir",
        authority / "ka",
        "--broker",
        "mqtt://127.0.0.1:1",
    )
    assert "another sealing key" in _run(*words, code=1).stderr


def test_the_released_file_holds_no_secret(authority):
    _issue(authority)
    material = EncryptionKeyFile(authority / "ka", writer=StateWriter()).load()
    data = (authority / "keys.fwkr").read_bytes()
    assert material.tag_secret not in data
    assert material.secret_key[-1000:] not in data
    assert "tag_secret" not in repr(material)


def test_a_key_authority_that_is_not_in_the_directory_issues_nothing(tmp_path):
    _run("directory", "init", "--population", "p", "--dir", tmp_path / "authority")
    _run("key-authority", "request", "--population", "p", "--state-dir", tmp_path / "ka")
    assert "enter this key authority's request" in _issue(tmp_path, code=1).stderr
    assert not (tmp_path / "keys.fwkr").exists()


def test_a_directory_that_was_rolled_back_issues_nothing(authority):
    older = (authority / "authority" / "directory.fwkd").read_bytes()
    _run("directory", "add", encode_request(sample_member("bank1", seed=2)), "--dir", authority / "authority")
    _issue(authority)
    (authority / "authority" / "directory.fwkd").write_bytes(older)
    assert "seen before" in _issue(authority, code=1).stderr


def test_a_dry_run_makes_no_keys(authority):
    _issue(authority, "--dry-run", code=1)
    assert not (authority / "ka" / "encryption.key").exists()
    _issue(authority)
    before = (authority / "keys.fwkr").read_bytes()
    _issue(authority, "--dry-run")
    assert (authority / "keys.fwkr").read_bytes() == before


@pytest.mark.parametrize("spoil", [lambda p: p.chmod(0o644), lambda p: p.write_bytes(b"none")])
def test_keys_that_others_can_read_or_that_are_damaged_are_not_used(authority, spoil):
    _issue(authority)
    path = authority / "ka" / "encryption.key"
    spoil(path)
    _issue(authority, code=1)
    with pytest.raises(IdentityError):
        EncryptionKeyFile(authority / "ka", writer=StateWriter()).load()


def test_the_forecast_says_what_a_round_costs_and_refuses_what_is_too_much():
    assert _json("key-authority", "forecast", "--num-weights", 50_000)["update_bytes"] == pytest.approx(
        1.15e6, rel=0.02
    )
    refused = _run("key-authority", "forecast", "--num-weights", 20_000_000, code=1)
    assert "use helpers or masks" in refused.stderr


def test_wrong_totals_outlive_a_restart_and_are_the_keys_own(tmp_path):
    def book(key_id=b"key"):
        return KeyBook(tmp_path / "wrong.sqlite", sets=SqliteSetBook(tmp_path / "sets.sqlite"), key_id=key_id)

    first = book()
    assert first.claim(b"c" * 32, b"s" * 32)
    first.note_wrong_total(b"c" * 32)
    first.note_wrong_total(b"c" * 32)
    first.note_wrong_total(b"d" * 32)
    first.close()
    again = book()
    assert again.num_wrong_totals() == 2
    assert not again.claim(b"c" * 32, b"t" * 32)
    assert book(b"new key").num_wrong_totals() == 0
    again.close()
    with pytest.raises(StorageError):
        again.note_wrong_total(b"e" * 32)
    with pytest.raises(StorageError):
        again.num_wrong_totals()


def test_the_desk_knows_the_devices_for_which_the_keys_were_issued_and_answers_no_helpers_order(authority):
    _issue(authority)
    material = EncryptionKeyFile(authority / "ka", writer=StateWriter()).load()
    issued = open_key_directory(authority / "ka" / ISSUED_DIRECTORY)
    assert set(issued.members) == {"bank0", "key-authority"}
    desk = KeyDesk(
        population="p", authority_id="ka", sealing_key=X25519PrivateKey.generate(), material=material,
        book=KeyBook(None, sets=SqliteSetBook(None), key_id=b"k"), directory=issued,
        releases=frozenset({bytes(32)}), min_contributors=1,
    )  # fmt: skip
    causes = {
        HelperAsk(parts=(0,)): RefusalCause.WRONG_CONTEXT,
        KeyAsk(total=b"x", keys_sha256=bytes(31) + b"x"): RefusalCause.WRONG_CONTEXT,
        KeyAsk(total=b"x", keys_sha256=bytes(32)): RefusalCause.TOO_FEW,
    }
    for ask, cause in causes.items():
        order = OpeningOrder(
            population="p", task_id="t", plan_sha256=bytes(32), round_id=1, num_values=3, contributors=(), ask=ask
        )
        with pytest.raises(OpeningRefused) as caught:
            desk(order)
        assert caught.value.cause is cause


def test_the_demos_key_authority_releases_keys_to_the_demos_devices(tmp_path):
    homes = {"d1": (tmp_path / "d1", MemberRole.DEVICE), KEY_AUTHORITY_ID: (tmp_path / "ka", MemberRole.KEY_AUTHORITY)}
    entered = enter_offline(homes, population="demo")
    way = encrypted_sums(entered.data, KEY_AUTHORITY_ID, issue_demo_keys(tmp_path / "ka", entered, tmp_path))
    assert way.key_authority.device_id == KEY_AUTHORITY_ID
    assert who_must_be_believed(way)[1].startswith("only sums are seen as long as the key authority")


@pytest.mark.parametrize("authority_id", ["d1", "nobody"])
def test_who_is_no_key_authority_is_not_named_in_a_plan(tmp_path, authority_id):
    homes = {"d1": (tmp_path / "d1", MemberRole.DEVICE), KEY_AUTHORITY_ID: (tmp_path / "ka", MemberRole.KEY_AUTHORITY)}
    entered = enter_offline(homes, population="demo")
    keys = issue_demo_keys(tmp_path / "ka", entered, tmp_path)
    with pytest.raises(InvalidConfig, match="cannot be named"):
        encrypted_sums(entered.data, authority_id, keys)
    with pytest.raises(InvalidConfig, match="cannot be named"):
        encrypted_sums(entered.data, KEY_AUTHORITY_ID, keys[:-1])
