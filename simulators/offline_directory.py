"""A key directory for a simulated fleet, made before any of its daemons runs: an authority of its own enters them all."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_client.identity import IdentityStore
from edge_client.sealing_key import SealingKeyStore, member_keys
from edge_client.state_writer import StateWriter
from secure_sum.directory_entries import MemberRole, fingerprint
from secure_sum.key_directory import add_member, empty_directory, encode_directory

__all__ = ["OfflineDirectory", "enter_offline"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OfflineDirectory:
    """The log, and whose it is."""

    data: bytes
    authority: str
    """The authority's fingerprint, for the owners' configurations."""


def enter_offline(state_dirs: Mapping[str, tuple[Path, MemberRole]], *, population: str) -> OfflineDirectory:
    """Makes each member's sealing key in its state directory and enters it into a new directory.

    Args:
        state_dirs: Where each member keeps its keys, and its role, by id; none of them may be running.
        population: What they belong to.

    Raises:
        StorageError: A key cannot be kept.
        IdentityError: A key that is there cannot be used.
        DirectoryError: A member cannot be entered.
    """
    authority = Ed25519PrivateKey.generate()
    directory = empty_directory(population, authority.public_key().public_bytes_raw())
    for member_id, (state_dir, role) in state_dirs.items():
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        writer = StateWriter()
        identity = IdentityStore.of_this_process(state_dir, writer=writer).load_or_make()
        sealing = SealingKeyStore(state_dir, writer=writer).load_or_make()
        keys = member_keys(identity, sealing, population=population, member_id=member_id, role=role)
        directory = add_member(directory, keys, made_at=0, authority=authority)
    return OfflineDirectory(data=encode_directory(directory), authority=fingerprint(directory.authority_key))
