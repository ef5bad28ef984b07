"""What a device, a helper or a key authority asks the enrolment authority to enter about it."""

from pathlib import Path

from edge_client.errors import IdentityError
from edge_client.identity import IdentityStore
from edge_client.sealing_key import SealingKeyStore, member_keys
from edge_client.state_dir import StateDir
from edge_client.state_writer import StateWriter
from secure_sum.directory_entries import MemberKeys, MemberRole

__all__ = ["request_membership"]


def request_membership(home: Path, *, population: str, member_id: str, role: MemberRole, only_look: bool) -> MemberKeys:
    """Both public keys of this machine, bound by its signature; keys are made if there are none.

    Args:
        home: The state directory. The daemon must not be running.
        population: Where it is to be a member.
        member_id: Its id as configured; if empty, the one that was made up, or is now.
        role: What the machine will be there for.
        only_look: Make no key.

    Raises:
        IdentityError: A key cannot be used, or (``only_look``) there is none.
        StorageError: The state directory cannot be used, or a daemon is using it.
    """
    state_dir = StateDir(home)
    state_dir.lock()
    try:
        writer = StateWriter()
        identities, sealing_keys = (
            IdentityStore.of_this_process(home, writer=writer),
            SealingKeyStore(home, writer=writer),
        )
        if only_look and not (identities.has_key() and sealing_keys.load() is not None):
            raise IdentityError(f"there are no keys in {home} yet: without --dry-run they are made")
        return member_keys(
            identities.load_or_make(),
            sealing_keys.load_or_make(),
            population=population,
            member_id=state_dir.device_id(member_id, writer=writer),
            role=role,
        )
    finally:
        state_dir.unlock()
