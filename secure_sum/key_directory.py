"""The key directory: a log of who has which keys, signed by an enrolment authority that is not the coordinator.

The log only grows. Whoever has seen it up to some entry keeps a *pin* (`DirectoryPin`) and takes nothing later that
does not continue exactly that. A coordinator can therefore hand out keys, but neither invent nor change one, nor show
an older log than was seen before. What it can still do: withhold the newest entries from whoever has not seen them.

| entry | allowed if |
|---|---|
| added | the id was never in the log |
| rotated | the id is known (also if removed since), in the same role, and the entry names the last one about it |
| removed | the id is a member, and the entry names the last one about it |

A key belongs to one member for ever: no identity or sealing key is in the log twice, except that a rotation may keep
one of the two. So a changed key, and an id that was removed and is there again, are refused unless a signed rotation
says so.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_sum.directory_entries import (
    MAX_ENTRY_BYTES,
    Change,
    DirectoryEntry,
    MemberAdded,
    MemberKeys,
    MemberRemoved,
    MemberRole,
    MemberRotated,
    check_signature,
    decode_change,
    encode_change,
    entry_statement,
    genesis,
)
from secure_sum.errors import DirectoryRefused, MalformedDirectory, OversizedDirectory, UnknownMember

__all__ = [
    "MAX_DIRECTORY_BYTES",
    "MAX_DIRECTORY_ENTRIES",
    "KeyDirectory",
    "add_member",
    "decode_directory",
    "empty_directory",
    "encode_directory",
    "remove_member",
    "rotate_member",
]

MAX_DIRECTORY_ENTRIES: Final = 20_000
MAX_DIRECTORY_BYTES: Final = 16 * 1024 * 1024

_MAGIC: Final = b"FKD\x01"
_Bytes = Annotated[bytes, msgspec.Meta(max_length=MAX_ENTRY_BYTES)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory's bytes behind the magic."""

    population: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")]
    authority_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    entries: Annotated[list[tuple[_Bytes, _Signature]], msgspec.Meta(max_length=MAX_DIRECTORY_ENTRIES)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KeyDirectory:
    """A log that was checked from its first entry to its last. Made by the functions of this module alone."""

    population: str
    authority_key: bytes
    """Ed25519."""
    entries: tuple[DirectoryEntry, ...]
    members: Mapping[str, MemberKeys]
    """Who is a member now, by id."""
    last_entries: Mapping[str, DirectoryEntry] = dataclasses.field(repr=False)
    """The last entry about each id that was ever there."""
    used_keys: Mapping[bytes, str] = dataclasses.field(repr=False)
    """Every key that was ever there, and whose it is."""

    @property
    def head(self) -> bytes:
        """SHA-256 that stands for the whole log."""
        return self.entries[-1].digest if self.entries else genesis(self.population, self.authority_key)

    def member(self, member_id: str, role: MemberRole) -> MemberKeys:
        """The keys of a member.

        Raises:
            UnknownMember: Nobody has this id in this role.
        """
        found = self.members.get(member_id)
        if found is None or found.role is not role:
            raise UnknownMember(f"{member_id!r} is no {role.value} of the key directory")
        return found

    def members_with(self, role: MemberRole) -> tuple[MemberKeys, ...]:
        """All members of one role, by id."""
        return tuple(keys for _, keys in sorted(self.members.items()) if keys.role is role)


def empty_directory(population: str, authority_key: bytes) -> KeyDirectory:
    """A log with nothing in it."""
    return KeyDirectory(
        population=population, authority_key=authority_key, entries=(), members={}, last_entries={}, used_keys={}
    )


def add_member(
    directory: KeyDirectory, member: MemberKeys, *, made_at: int, authority: Ed25519PrivateKey
) -> KeyDirectory:
    """The log with a new member.

    Raises:
        DirectoryRefused: The id or a key is known already, or ``authority`` is not this log's.
        MalformedDirectory: The member's own signature is wrong.
    """
    change = MemberAdded(index=len(directory.entries), previous=directory.head, made_at=made_at, member=member)
    return _signed(directory, change, authority)


def rotate_member(
    directory: KeyDirectory, member: MemberKeys, *, made_at: int, authority: Ed25519PrivateKey
) -> KeyDirectory:
    """The log with other keys for a known id, which may have been removed.

    Raises:
        DirectoryRefused: The id is unknown or has another role, nothing changes, or a key is another's.
        MalformedDirectory: As ``add_member``.
    """
    change = MemberRotated(
        index=len(directory.entries), previous=directory.head, made_at=made_at, member=member,
        replaces=_last_entry(directory, member.member_id).digest,
    )  # fmt: skip
    return _signed(directory, change, authority)


def remove_member(
    directory: KeyDirectory, member_id: str, *, made_at: int, authority: Ed25519PrivateKey
) -> KeyDirectory:
    """The log without a member.

    Raises:
        DirectoryRefused: There is no such member.
    """
    change = MemberRemoved(
        index=len(directory.entries), previous=directory.head, made_at=made_at, member_id=member_id,
        replaces=_last_entry(directory, member_id).digest,
    )  # fmt: skip
    return _signed(directory, change, authority)


def encode_directory(directory: KeyDirectory) -> bytes:
    """The log's bytes; a longer log's bytes do not begin with a shorter one's."""
    entries = [(entry.body, entry.signature) for entry in directory.entries]
    file = _File(population=directory.population, authority_key=directory.authority_key, entries=entries)
    return _MAGIC + msgspec.msgpack.encode(file)


def decode_directory(data: bytes) -> KeyDirectory:
    """Reads a log and checks all of it. Whose log it should be, a pin says (`secure_sum.directory_pin`).

    Raises:
        OversizedDirectory: Longer than a log may be; nothing was decoded.
        MalformedDirectory: Not a log in its one encoding, or a signature is wrong.
        DirectoryRefused: An entry does not follow from those before it.
    """
    if len(data) > MAX_DIRECTORY_BYTES:
        raise OversizedDirectory(f"a key directory of {len(data)} bytes; one has at most {MAX_DIRECTORY_BYTES}")
    if not data.startswith(_MAGIC):
        raise MalformedDirectory("this is no key directory")
    try:
        file = _FILES.decode(data[len(_MAGIC) :])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedDirectory(f"not a key directory: {error}") from error
    builder = _Builder(empty_directory(file.population, file.authority_key))
    for body, signature in file.entries:
        builder.append(DirectoryEntry(change=decode_change(body), body=body, signature=signature))
    directory = builder.directory()
    if encode_directory(directory) != data:
        raise MalformedDirectory("a key directory in another encoding than its own")
    return directory


_FILES: Final = msgspec.msgpack.Decoder(_File)


class _Builder:
    """Appends checked entries to a log."""

    def __init__(self, directory: KeyDirectory) -> None:
        self._population = directory.population
        self._authority_key = directory.authority_key
        self._entries = list(directory.entries)
        self._members = dict(directory.members)
        self._last_entries = dict(directory.last_entries)
        self._used_keys = dict(directory.used_keys)
        self._head = directory.head

    def append(self, entry: DirectoryEntry) -> None:
        """Checks one entry against those before it, and takes it."""
        change = entry.change
        check_signature(self._authority_key, entry.signature, entry_statement(entry.body))
        if (change.index, change.previous) != (len(self._entries), self._head):
            raise DirectoryRefused(f"entry {len(self._entries)} of the key directory does not follow the one before it")
        if len(self._entries) >= MAX_DIRECTORY_ENTRIES:
            raise DirectoryRefused(
                f"a key directory has at most {MAX_DIRECTORY_ENTRIES} entries: begin a new population"
            )
        _CHECKS[type(change)](self, change)
        if isinstance(change, MemberRemoved):
            del self._members[change.member_id]
        else:
            self._members[entry.member_id] = change.member
            self._used_keys |= dict.fromkeys((change.member.identity_key, change.member.sealing_key), entry.member_id)
        self._last_entries[entry.member_id] = entry
        self._entries.append(entry)
        self._head = entry.digest

    def directory(self) -> KeyDirectory:
        """The log as it is now."""
        return KeyDirectory(
            population=self._population,
            authority_key=self._authority_key,
            entries=tuple(self._entries),
            members=self._members,
            last_entries=self._last_entries,
            used_keys=self._used_keys,
        )

    def check_added(self, change: MemberAdded) -> None:
        member = change.member
        if member.member_id in self._last_entries:
            raise DirectoryRefused(
                f"{member.member_id} is in the key directory already, or was: only a signed rotation gives it other keys"
            )
        self._check_keys(member, ours=None)

    def check_rotated(self, change: MemberRotated) -> None:
        member = change.member
        last = self._check_replaces(member.member_id, change.replaces)
        ours = _keys_before(last, self._entries)
        if ours.role is not member.role:
            raise DirectoryRefused(f"{member.member_id} is a {ours.role.value}; a rotation does not change that")
        if member == self._members.get(member.member_id):
            raise DirectoryRefused(f"{member.member_id} has these keys already")
        self._check_keys(member, ours=ours)

    def check_removed(self, change: MemberRemoved) -> None:
        if change.member_id not in self._members:
            raise DirectoryRefused(f"{change.member_id} is no member that could be removed")
        self._check_replaces(change.member_id, change.replaces)

    def _check_replaces(self, member_id: str, replaces: bytes) -> DirectoryEntry:
        last = self._last_entries.get(member_id)
        if last is None or last.digest != replaces:
            raise DirectoryRefused(f"an entry about {member_id} does not name the last one about it")
        return last

    def _check_keys(self, member: MemberKeys, *, ours: MemberKeys | None) -> None:
        member.check(self._population)
        if member.identity_key == self._authority_key:
            raise DirectoryRefused("the authority's own key cannot be a member's")
        kept = set() if ours is None else {ours.identity_key, ours.sealing_key}
        for key in (member.identity_key, member.sealing_key):
            if key in self._used_keys and key not in kept:
                raise DirectoryRefused(f"a key of {member.member_id} was {self._used_keys[key]}'s before")


_CHECKS: Final[Mapping[type, Callable[..., None]]] = {
    MemberAdded: _Builder.check_added,
    MemberRotated: _Builder.check_rotated,
    MemberRemoved: _Builder.check_removed,
}


def _keys_before(last: DirectoryEntry, entries: list[DirectoryEntry]) -> MemberKeys:
    """The last keys of the member that ``last`` is about."""
    for entry in [last, *reversed(entries)]:
        if entry.member_id == last.member_id and not isinstance(entry.change, MemberRemoved):
            return entry.change.member
    raise AssertionError("an id is in the log without keys")


def _last_entry(directory: KeyDirectory, member_id: str) -> DirectoryEntry:
    last = directory.last_entries.get(member_id)
    if last is None:
        raise DirectoryRefused(f"{member_id} was never in the key directory: add it")
    return last


def _signed(directory: KeyDirectory, change: Change, authority: Ed25519PrivateKey) -> KeyDirectory:
    if authority.public_key().public_bytes_raw() != directory.authority_key:
        raise DirectoryRefused("this is not the key of the authority whose log it is")
    body = encode_change(change)
    builder = _Builder(directory)
    # Decoded anew, so that what could not be read is never signed.
    entry = DirectoryEntry(change=decode_change(body), body=body, signature=authority.sign(entry_statement(body)))
    builder.append(entry)
    return builder.directory()
