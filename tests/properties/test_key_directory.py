"""The key directory: whatever happens to its bytes or its history, no reader believes a key that was not signed for."""

import dataclasses
import os

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_sum import directory_entries, key_directory
from secure_sum.directory_entries import (
    DirectoryEntry,
    MemberAdded,
    MemberKeys,
    MemberRole,
    binding_statement,
    decode_request,
    encode_change,
    encode_request,
    entry_statement,
    fingerprint,
)
from secure_sum.directory_pin import advanced_pin, check_first_contact, decode_pin, encode_pin, pin_of
from secure_sum.errors import (
    DirectoryForked,
    DirectoryRefused,
    DirectoryRolledBack,
    MalformedDirectory,
    OtherAuthority,
    OversizedDirectory,
    SecureSumError,
    UnknownMember,
)
from secure_sum.key_directory import (
    add_member,
    decode_directory,
    empty_directory,
    encode_directory,
    remove_member,
    rotate_member,
)
from simulators.trials.sum_decoders import sample_directory, sample_member
from wire_protocol.identifiers import IDENTIFIER_PATTERN

AUTHORITY = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x63")
EMPTY = empty_directory("p", AUTHORITY.public_key().public_bytes_raw())


def _add(directory, member, authority=AUTHORITY):
    return add_member(directory, member, made_at=1, authority=authority)


def _of(*member_ids, first_seed=1):
    directory = EMPTY
    for seed, member_id in enumerate(member_ids, start=first_seed):
        directory = _add(directory, sample_member(member_id, seed=seed))
    return directory


CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "rotate", "remove"]), st.sampled_from("abc"), st.integers(1, 12)), max_size=12
)


@given(CHANGES)
@settings(max_examples=60, deadline=None)
def test_a_log_accepts_what_the_rules_allow_and_nothing_else(changes):
    directory, present, last_seed, owners = EMPTY, set(), {}, {}
    for what, member_id, seed in changes:
        comes_back = seed == last_seed.get(member_id) and member_id not in present
        may = {
            "add": member_id not in last_seed and seed not in owners,
            "rotate": member_id in last_seed and (seed not in owners or comes_back),
            "remove": member_id in present,
        }[what]
        try:
            if what == "remove":
                directory = remove_member(directory, member_id, made_at=1, authority=AUTHORITY)
            else:
                change = {"add": add_member, "rotate": rotate_member}[what]
                directory = change(directory, sample_member(member_id, seed=seed), made_at=1, authority=AUTHORITY)
        except DirectoryRefused:
            assert not may, (what, member_id, seed)
            continue
        assert may, (what, member_id, seed)
        if what == "remove":
            present.remove(member_id)
        else:
            present.add(member_id)
            last_seed[member_id] = seed
            owners[seed] = member_id
    assert dict(directory.members) == {name: sample_member(name, seed=last_seed[name]) for name in present}
    assert decode_directory(encode_directory(directory)) == directory


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_no_changed_byte_is_believed(position, flip):
    good = bytearray(encode_directory(sample_directory()))
    good[position % len(good)] ^= flip
    with pytest.raises(SecureSumError):
        # Another authority's key in the header makes every signature wrong.
        decode_directory(bytes(good))


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=100, deadline=None)
def test_bytes_that_are_no_log_are_refused(data, has_magic):
    with pytest.raises(SecureSumError):
        decode_directory((b"FKD\x01" if has_magic else b"") + data)


def test_a_log_that_is_too_long_is_refused_undecoded(monkeypatch):
    monkeypatch.setattr(key_directory, "MAX_DIRECTORY_BYTES", 100)
    with pytest.raises(OversizedDirectory):
        decode_directory(encode_directory(sample_directory()))
    with pytest.raises(OversizedDirectory):
        directory_entries.decode_change(bytes(2000))


def test_an_entry_in_another_encoding_is_refused_though_it_is_signed():
    [entry] = _of("a").entries
    values = msgspec.msgpack.decode(entry.body)
    body = msgspec.msgpack.encode(dict(reversed(values.items())))
    assert body != entry.body
    with pytest.raises(MalformedDirectory, match="encoding"):
        directory_entries.decode_change(body)


def test_a_member_that_was_removed_comes_back_by_a_signed_rotation_alone():
    gone = remove_member(_of("a", "b"), "a", made_at=2, authority=AUTHORITY)
    assert set(gone.members) == {"b"}
    with pytest.raises(DirectoryRefused, match="rotation"):
        _add(gone, sample_member("a", seed=7))
    back = rotate_member(gone, sample_member("a", seed=7), made_at=3, authority=AUTHORITY)
    assert back.member("a", MemberRole.DEVICE) == sample_member("a", seed=7)


def test_a_changed_key_is_refused_unless_a_signed_rotation_says_so():
    directory = _of("a")
    with pytest.raises(DirectoryRefused, match="rotation"):
        _add(directory, sample_member("a", seed=9))
    rotated = rotate_member(directory, sample_member("a", seed=9), made_at=2, authority=AUTHORITY)
    assert rotated.members["a"].identity_key == sample_member("a", seed=9).identity_key


def test_a_key_is_nobody_elses_ever_again():
    directory = rotate_member(_of("a"), sample_member("a", seed=9), made_at=2, authority=AUTHORITY)
    for seed in (1, 9):
        with pytest.raises(DirectoryRefused, match="was a's"):
            _add(directory, sample_member("b", seed=seed))
    with pytest.raises(DirectoryRefused, match="was a's"):  # nor its own again, once it was given up
        rotate_member(directory, sample_member("a", seed=1), made_at=3, authority=AUTHORITY)


def test_a_rotation_keeps_the_role():
    with pytest.raises(DirectoryRefused, match="device"):
        rotate_member(_of("a"), sample_member("a", seed=5, role=MemberRole.HELPER), made_at=2, authority=AUTHORITY)


def test_a_rotation_of_an_older_state_is_refused():
    """Two rotations signed at once: the second does not name the last entry."""
    first = rotate_member(_of("a"), sample_member("a", seed=5), made_at=2, authority=AUTHORITY)
    stale = msgspec.structs.replace(
        first.entries[-1].change, index=2, previous=first.head, member=sample_member("a", seed=6)
    )
    with pytest.raises(DirectoryRefused, match="does not name"):
        decode_directory(_with_entry(first, stale))


def test_only_the_authority_can_sign_an_entry():
    mallory = Ed25519PrivateKey.generate()
    with pytest.raises(DirectoryRefused, match="not the key of the authority"):
        _add(EMPTY, sample_member("a", seed=1), authority=mallory)
    change = MemberAdded(index=0, previous=EMPTY.head, made_at=1, member=sample_member("a", seed=1))
    with pytest.raises(MalformedDirectory, match="signature"):
        decode_directory(_with_entry(EMPTY, change, key=mallory))


def test_a_swapped_sealing_key_breaks_the_members_own_signature():
    good = sample_member("a", seed=1)
    swapped = msgspec.structs.replace(good, sealing_key=sample_member("x", seed=2).sealing_key)
    with pytest.raises(MalformedDirectory, match="signature"):
        _add(EMPTY, swapped)


@pytest.mark.parametrize("field", ["member_id", "role"])
def test_the_binding_is_for_one_id_and_one_role(field):
    other = {"member_id": "b", "role": MemberRole.KEY_AUTHORITY}[field]
    with pytest.raises(MalformedDirectory, match="signature"):
        _add(EMPTY, msgspec.structs.replace(sample_member("a", seed=1), **{field: other}))


def test_the_binding_is_for_one_population():
    with pytest.raises(MalformedDirectory, match="signature"):
        _add(empty_directory("other", EMPTY.authority_key), sample_member("a", seed=1))


@pytest.mark.parametrize(
    "point",
    [bytes(32), b"\x01" + bytes(31), bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")],
)
def test_a_sealing_key_of_small_order_is_refused(point):
    identity = Ed25519PrivateKey.generate()
    values = {
        "member_id": "a",
        "role": MemberRole.DEVICE,
        "identity_key": identity.public_key().public_bytes_raw(),
        "sealing_key": point,
    }
    proof = identity.sign(binding_statement("p", MemberKeys(**values, proof=bytes(64))))
    with pytest.raises(MalformedDirectory, match="no key"):
        _add(EMPTY, MemberKeys(**values, proof=proof))


def test_the_authority_is_no_member():
    values = {"member_id": "a", "role": MemberRole.DEVICE, "identity_key": EMPTY.authority_key,
              "sealing_key": X25519PrivateKey.generate().public_key().public_bytes_raw()}  # fmt: skip
    proof = AUTHORITY.sign(binding_statement("p", MemberKeys(**values, proof=bytes(64))))
    with pytest.raises(DirectoryRefused, match="authority's own"):
        _add(EMPTY, MemberKeys(**values, proof=proof))


def test_a_member_is_found_in_its_role_alone():
    directory = _of("a")
    assert directory.member("a", MemberRole.DEVICE).member_id == "a"
    for member_id, role in (("a", MemberRole.HELPER), ("b", MemberRole.DEVICE)):
        with pytest.raises(UnknownMember):
            directory.member(member_id, role)
    assert [keys.member_id for keys in _of("b", "a").members_with(MemberRole.DEVICE)] == ["a", "b"]


@given(st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=36, deadline=None)
def test_a_pin_follows_growth_and_refuses_a_rollback(seen, shown):
    names = "abcde"
    pin, later = pin_of(_of(*names[:seen])), _of(*names[:shown])
    if shown < seen:
        with pytest.raises(DirectoryRolledBack):
            advanced_pin(pin, later)
    else:
        assert advanced_pin(pin, later) == pin_of(later)
        assert decode_pin(encode_pin(pin)) == pin


@given(st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_a_pin_refuses_a_fork_however_long(seen, more):
    names = "abcdefgh"
    pin = pin_of(_of(*names[:seen]))
    fork = _of(*names[: seen - 1], "z", *names[seen : seen + more], first_seed=20 if seen == 1 else 1)
    with pytest.raises(DirectoryForked):
        advanced_pin(pin, fork)


def test_another_authority_is_refused_after_first_contact_and_before_it_if_the_owner_named_one():
    mallory = Ed25519PrivateKey.generate()
    theirs = empty_directory("p", mallory.public_key().public_bytes_raw())
    with pytest.raises(OtherAuthority, match="pinned"):
        advanced_pin(pin_of(EMPTY), theirs)
    check_first_contact(theirs, population="p", fingerprint="")
    with pytest.raises(OtherAuthority, match="named"):
        check_first_contact(theirs, population="p", fingerprint=fingerprint(EMPTY.authority_key))
    with pytest.raises(OtherAuthority, match="population"):
        check_first_contact(EMPTY, population="other", fingerprint="")


def test_a_request_comes_back_as_it_was():
    member = sample_member("a", seed=1)
    assert decode_request(encode_request(member)) == member


def test_ids_are_those_of_the_wire():
    pattern = directory_entries.MemberAdded.__struct_fields__ and r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
    assert pattern in IDENTIFIER_PATTERN
    assert pattern in str(directory_entries._Id)


def test_entries_name_their_whole_history():
    """The head covers population, authority and every entry: change any and it is another."""
    heads = {
        EMPTY.head,
        _of("a").head,
        _of("a", "b").head,
        _of("b", "a").head,
        empty_directory("q", EMPTY.authority_key).head,
    }
    assert len(heads) == 5
    assert fingerprint(os.urandom(32)) != fingerprint(os.urandom(32))


def _with_entry(directory, change, key=AUTHORITY):
    body = encode_change(change)
    entry = DirectoryEntry(change=change, body=body, signature=key.sign(entry_statement(body)))
    return encode_directory(dataclasses.replace(directory, entries=(*directory.entries, entry)))
