"""Signing the channel's roles: the next version of each, the snapshot, the timestamp, and new keys for old ones.

`repository` decides what is signed; here is how, and with which keys. Every signature is checked as a device would
before its file is written.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)

from coordinator.durable_files import write_durably
from coordinator.errors import ReleaseError
from coordinator.releases.channel_files import ChannelFiles
from coordinator.releases.signing_keys import NUM_ROOT_KEYS, ROLES, ROLLOUT, ROOT_THRESHOLD, KeyFiles
from wire_protocol.release import SIGNED_AT_FIELD

__all__ = ["EXPIRES_AFTER", "ChannelSigner", "rollout_role"]

EXPIRES_AFTER: Final[Mapping[str, dt.timedelta]] = {
    "root": dt.timedelta(days=365),
    "targets": dt.timedelta(days=365),
    ROLLOUT: dt.timedelta(days=365),
    "snapshot": dt.timedelta(days=30),
    "timestamp": dt.timedelta(days=7),
}
"""How long each role's word lasts. The station signs snapshot and timestamp anew every day."""


class ChannelSigner:
    """Writes signed metadata.

    Args:
        files: Where.
        keys: With what.
        now: Seconds since 1970 UTC: the clock of expiry dates.
    """

    def __init__(self, files: ChannelFiles, keys: KeyFiles, *, now: Callable[[], float]) -> None:
        self._files = files
        self._keys = keys
        self._now = now

    def create(self) -> None:
        """Makes all keys, and signs the first version of every role.

        Raises:
            ReleaseError: There is a key already.
            OSError: A file cannot be written.
        """
        roots = [self._keys.make(name) for name in _ROOT_NAMES]
        signers = {name: self._keys.make(name) for name in ROLES}
        root = Root(expires=self._expiry("root"), consistent_snapshot=True)
        root.roles["root"] = Role([], ROOT_THRESHOLD)
        for signer in roots:
            root.add_key(signer.public_key, "root")
        for name in ("targets", "snapshot", "timestamp"):
            root.add_key(signers[name].public_key, name)
        delegated = DelegatedRole(ROLLOUT, [], 1, terminating=True, paths=["order-*.json"])
        targets = Targets(expires=self._expiry("targets"), delegations=Delegations({}, {ROLLOUT: delegated}))
        targets.add_key(signers[ROLLOUT].public_key, ROLLOUT)
        rollout = Targets(expires=self._expiry(ROLLOUT))
        metadata = self._files.metadata
        write_durably(metadata / "1.targets.json", _sign(targets, [signers["targets"]]))
        write_durably(metadata / f"1.{ROLLOUT}.json", _sign(rollout, [signers[ROLLOUT]]))
        write_durably(self._files.root_path(1), _sign(root, roots))
        self.seal()

    def sign_next(self, signed: Targets, role: str) -> None:
        """Signs the next version of ``targets`` or of the rollout role; it counts after `seal`.

        Raises:
            ReleaseError: The key is not here, or is not the one that devices trust.
        """
        signed.version += 1
        signed.expires = self._expiry(role)
        write_durably(self._files.metadata / f"{signed.version}.{role}.json", self._signed_for(signed, role))

    def seal(self) -> None:
        """Signs a snapshot of the newest targets, and the timestamp that makes it count.

        Raises:
            ReleaseError: As `sign_next`.
        """
        snapshot_version = self._files.newest_version("snapshot") + 1
        meta = {f"{role}.json": MetaFile(self._files.newest_version(role)) for role in ("targets", ROLLOUT)}
        snapshot = Snapshot(version=snapshot_version, expires=self._expiry("snapshot"), meta=meta)
        data = self._signed_for(snapshot, "snapshot")
        write_durably(self._files.metadata / f"{snapshot_version}.snapshot.json", data)
        known = self._files.metadata / "timestamp.json"
        version = self._files.read(Timestamp, "timestamp.json").version + 1 if known.is_file() else 1
        timestamp = Timestamp(
            version=version,
            expires=self._expiry("timestamp"),
            snapshot_meta=MetaFile.from_data(snapshot_version, data, ["sha256"]),
            unrecognized_fields={SIGNED_AT_FIELD: dt.datetime.fromtimestamp(int(self._now()), dt.UTC).isoformat()},
        )
        write_durably(known, self._signed_for(timestamp, "timestamp"))

    def rotate(self, role: str) -> int:
        """Replaces a role's key (for ``root``: all of them).

        A death in the middle is made good by asking again: the new key is kept as ``*.next`` until the metadata names it.

        Returns:
            The newest root's version.

        Raises:
            ReleaseError: A key is missing, or the role is unknown.
        """
        if role != ROLLOUT and role not in {"root", "targets", "snapshot", "timestamp"}:
            raise ReleaseError(f"there is no role {role!r}: root, {', '.join(ROLES)}")
        self._promote_named_keys()
        if role == ROLLOUT:
            self._rename_rollout_key()
        else:
            self._rename_key(role)
        for changed in self._promote_named_keys() & {"targets", ROLLOUT}:
            # What the old key signed counts no more.
            self.sign_next(self._files.load(Targets, changed), changed)
        self.seal()
        return self._files.root().version

    def check_can_rotate(self, role: str) -> None:
        """Looks whether the keys that `rotate` needs are here.

        Raises:
            ReleaseError: Some are not.
        """
        if role == ROLLOUT:
            self._keys.signer("targets")
        else:
            _check_threshold(self._files.root(), self._keys.root_signers())

    def _rename_key(self, role: str) -> None:
        """A new root, signed by enough of the old root keys and enough of the new ones."""
        root = self._files.root()
        signers = list(self._keys.root_signers())
        _check_threshold(root, signers)
        new_signers = [self._keys.prepare(name) for name in (_ROOT_NAMES if role == "root" else (role,))]
        for key_id in list(root.roles[role].keyids):
            root.revoke_key(key_id, role)
        for signer in new_signers:
            root.add_key(signer.public_key, role)
        signers += new_signers if role == "root" else []
        root.version += 1
        root.expires = self._expiry("root")
        _check_threshold(root, signers)
        write_durably(self._files.root_path(root.version), _sign(root, signers))

    def _rename_rollout_key(self) -> None:
        targets = self._files.load(Targets, "targets")
        new = self._keys.prepare(ROLLOUT)
        for key_id in list(rollout_role(targets).keyids):
            targets.revoke_key(key_id, ROLLOUT)
        targets.add_key(new.public_key, ROLLOUT)
        self.sign_next(targets, "targets")

    def _promote_named_keys(self) -> set[str]:
        """Takes successors into use that the newest metadata names already; returns whose."""
        root = self._files.root()
        named = {role: root.roles[role].keyids for role in ("targets", "snapshot", "timestamp")}
        named[ROLLOUT] = rollout_role(self._files.load(Targets, "targets")).keyids
        named |= dict.fromkeys(_ROOT_NAMES, root.roles["root"].keyids)
        return {name for name, key_ids in named.items() if self._keys.promote(name, key_ids)}

    def _signed_for(self, signed: Signed, role: str) -> bytes:
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(self._keys.signer(role))
        delegator: Root | Targets = self._files.load(Targets, "targets") if role == ROLLOUT else self._files.root()
        try:
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except RepositoryError as error:
            raise ReleaseError(f"the {role} key that is here is not the one that devices trust: {error}") from error
        return metadata.to_bytes()

    def _expiry(self, role: str) -> dt.datetime:
        return dt.datetime.fromtimestamp(int(self._now()), dt.UTC) + EXPIRES_AFTER[role]


_ROOT_NAMES: Final = tuple(f"root-{index}" for index in range(1, NUM_ROOT_KEYS + 1))


def rollout_role(targets: Targets) -> DelegatedRole:
    """The delegated role that signs orders.

    Raises:
        ReleaseError: There is none.
    """
    if targets.delegations is None or targets.delegations.roles is None:
        raise ReleaseError("the channel has no rollout role")
    return targets.delegations.roles[ROLLOUT]


def _check_threshold(root: Root, signers: Sequence[CryptoSigner]) -> None:
    have = {signer.public_key.keyid for signer in signers} & set(root.roles["root"].keyids)
    if len(have) < root.roles["root"].threshold:
        raise ReleaseError(
            f"{len(have)} of the root keys are here; {root.roles['root'].threshold} must sign: bring them, or name them "
            "with --key"
        )


def _sign(signed: Signed, signers: Sequence[CryptoSigner]) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()
