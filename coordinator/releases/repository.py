"""The signed release channel as files: TUF metadata, manifests, orders, and the blobs that they name.

    metadata/  1.root.json 2.root.json ... timestamp.json N.snapshot.json N.targets.json N.rollout.json
    targets/   <sha256>.manifest-<model>-<number>.json  <sha256>.order-<model>.json
    blobs/     <sha256>

Every change writes new files and ``timestamp.json`` last: whatever is interrupted leaves the channel as it was, and is
done again by the next change. `python-tuf` signs; who may sign is said by the root.
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

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
    TargetFile,
    Targets,
    Timestamp,
)

from coordinator.durable_files import write_durably
from coordinator.errors import ReleaseError
from coordinator.releases.channel_files import ChannelFiles, target_file
from coordinator.releases.signing_keys import NUM_ROOT_KEYS, ROLES, ROLLOUT, ROOT_THRESHOLD, KeyFiles
from wire_protocol.blobs import split_blob
from wire_protocol.errors import BlobError, WireError
from wire_protocol.release import (
    ReleaseManifest,
    RolloutOrder,
    decode_manifest,
    decode_order,
    encode_release_file,
    manifest_target,
    order_target,
)

__all__ = ["EXPIRES_AFTER", "SIGNED_AT_FIELD", "ReleaseRepository"]

SIGNED_AT_FIELD: Final = "x-flockwise-signed-at"
"""Field of the timestamp role: when it was signed (RFC 3339). Devices raise their time floor by it."""

EXPIRES_AFTER: Final[Mapping[str, dt.timedelta]] = {
    "root": dt.timedelta(days=365),
    "targets": dt.timedelta(days=365),
    ROLLOUT: dt.timedelta(days=90),
    "snapshot": dt.timedelta(days=30),
    "timestamp": dt.timedelta(days=7),
}
"""How long each role's word lasts. The coordinator signs the timestamp anew every day."""

_MAX_LIVE_RELEASES: Final = 16


_KINDS: Final[Mapping[str, type[Signed]]] = {
    "root": Root,
    "targets": Targets,
    ROLLOUT: Targets,
    "snapshot": Snapshot,
    "timestamp": Timestamp,
}
_FileT = TypeVar("_FileT", ReleaseManifest, RolloutOrder)


class ReleaseRepository:
    """The release channel of one fleet. One process changes it at a time.

    Args:
        directory: Where it is; `create` makes it.
        keys: Signs.
        now: Seconds since 1970 UTC: the clock of expiry dates.

    Raises:
        ReleaseError: There is no repository, or it cannot be read.
    """

    def __init__(self, directory: Path, keys: KeyFiles, *, now: Callable[[], float]) -> None:
        self._files = ChannelFiles(directory)
        self._keys = keys
        self._now = now
        if not self._files.root_path(1).is_file():
            raise ReleaseError(f"there is no release channel in {directory}: flockwise keys init makes one")

    @classmethod
    def create(cls, directory: Path, keys: KeyFiles, *, now: Callable[[], float]) -> "ReleaseRepository":
        """Makes all keys and an empty, signed channel.

        Raises:
            ReleaseError: There is a channel or a key already.
            OSError: A file cannot be written.
        """
        files = ChannelFiles(directory)
        metadata = files.metadata
        if metadata.exists():
            raise ReleaseError(f"{directory} has a release channel already")
        files.make()
        roots = [keys.make(f"root-{index}") for index in range(1, NUM_ROOT_KEYS + 1)]
        signers = {name: keys.make(name) for name in ROLES}
        root = Root(expires=_expiry(now(), "root"), consistent_snapshot=True)
        root.roles["root"] = Role([], ROOT_THRESHOLD)
        for signer in roots:
            root.add_key(signer.public_key, "root")
        for name in ("targets", "snapshot", "timestamp"):
            root.add_key(signers[name].public_key, name)
        rollout_key = signers[ROLLOUT].public_key
        delegated = DelegatedRole(ROLLOUT, [], 1, terminating=True, paths=["order-*.json"])
        targets = Targets(expires=_expiry(now(), "targets"), delegations=Delegations({}, {ROLLOUT: delegated}))
        targets.add_key(rollout_key, ROLLOUT)
        write_durably(metadata / "1.root.json", _sign(root, roots))
        write_durably(metadata / "1.targets.json", _sign(targets, [signers["targets"]]))
        rollout = Targets(expires=_expiry(now(), ROLLOUT))
        write_durably(metadata / f"1.{ROLLOUT}.json", _sign(rollout, [signers[ROLLOUT]]))
        repository = cls(directory, keys, now=now)
        repository._seal()
        return repository

    # -- looking

    @property
    def root_bytes(self) -> bytes:
        """The newest root: what a new device is given to begin with."""
        return self._files.root_path(self._files.root().version).read_bytes()

    def manifests(self) -> list[ReleaseManifest]:
        """Every release that is signed, by model and number.

        Raises:
            ReleaseError: One cannot be read.
        """
        targets = self._files.load(Targets, "targets").targets
        found = [self._files.read_target(path, info) for path, info in targets.items()]
        return sorted((_checked(decode_manifest, data) for data in found), key=lambda item: (item.name, item.number))

    def manifest(self, name: str, number: int) -> ReleaseManifest:
        """A signed release.

        Raises:
            ReleaseError: There is none.
        """
        for manifest in self.manifests():
            if (manifest.name, manifest.number) == (name, number):
                return manifest
        raise ReleaseError(f"there is no release {number} of {name!r}; flockwise models list shows what there is")

    def orders(self) -> dict[str, RolloutOrder]:
        """Model -> the order that its fleet has.

        Raises:
            ReleaseError: One cannot be read.
        """
        targets = self._files.load(Targets, ROLLOUT).targets
        found = (_checked(decode_order, self._files.read_target(path, info)) for path, info in targets.items())
        return {order.name: order for order in found}

    def blob(self, sha256: bytes) -> bytes:
        """A blob that a manifest names.

        Raises:
            ReleaseError: It is not here, or is damaged.
        """
        return self._files.blob(sha256)

    def files(self) -> dict[str, bytes]:
        """File name -> bytes of everything that devices must be able to see: every root, and the newest of the rest."""
        names = [f"{version}.root.json" for version in range(1, self._files.root().version + 1)]
        timestamp = self._files.load(Timestamp, "timestamp")
        snapshot_version = timestamp.snapshot_meta.version
        snapshot = self._files.read(Snapshot, f"{snapshot_version}.snapshot.json")
        names += [f"{meta.version}.{name}" for name, meta in snapshot.meta.items()]
        names += [f"{snapshot_version}.snapshot.json", "timestamp.json"]
        found = {name: (self._files.metadata / name).read_bytes() for name in names}
        for role in ("targets", ROLLOUT):
            for path, info in self._files.load(Targets, role).targets.items():
                found[target_file(path, info)] = self._files.read_target(path, info)
        return found

    def expires_at(self, role: str) -> dt.datetime:
        """When a role's word ends."""
        expires: dt.datetime = self._files.load(_KINDS[role], role).expires
        return expires

    # -- changing

    def add_release(self, manifest: ReleaseManifest, blobs: Sequence[bytes]) -> None:
        """Signs a release; needs the ``targets`` key, ``snapshot`` and ``timestamp``.

        Raises:
            ReleaseError: The number is taken, a blob is missing or not what the manifest says, there are too many live
                releases, or a key is not here.
            OSError: A file cannot be written.
        """
        given = {hashlib.sha256(data).digest(): data for data in blobs}
        for ref in (manifest.model, manifest.golden.blob):
            data = given.get(ref.sha256)
            try:
                if data is None or split_blob(data, piece_bytes=ref.piece_bytes).ref != ref:
                    raise ReleaseError(f"the manifest names a blob {ref.sha256.hex()} that is not among those given")
            except BlobError as error:
                raise ReleaseError(str(error)) from error
        targets = self._files.load(Targets, "targets")
        path = manifest_target(manifest.name, manifest.number)
        if path in targets.targets:
            raise ReleaseError(
                f"{manifest.name} {manifest.number} exists; a release never changes: take the next number"
            )
        if len(targets.targets) >= _MAX_LIVE_RELEASES:
            raise ReleaseError(
                f"{len(targets.targets)} releases are live; withdraw old ones: every device reads the whole list"
            )
        for sha256, data in given.items():
            write_durably(self._files.blob_path(sha256), data)
        self._put_target(targets, path, encode_release_file(manifest))
        self._sign_next(targets, "targets")
        self._seal()

    def withdraw_release(self, name: str, number: int) -> None:
        """Takes a release out: no device will accept it any more. Its blobs stay.

        Raises:
            ReleaseError: There is none, or an order names it.
        """
        self.manifest(name, number)
        order = self.orders().get(name)
        if order is not None and number in {order.baseline, order.candidate}:
            raise ReleaseError(f"the fleet is ordered to run {name} {number}: order another release first")
        targets = self._files.load(Targets, "targets")
        del targets.targets[manifest_target(name, number)]
        self._sign_next(targets, "targets")
        self._seal()

    def set_order(self, order: RolloutOrder) -> None:
        """Signs an order; needs the ``rollout`` key, ``snapshot`` and ``timestamp``.

        Raises:
            ReleaseError: It names a release that is not signed, or is not newer than the one before.
        """
        known = self.orders().get(order.name)
        if known is not None and order.serial <= known.serial:
            raise ReleaseError(f"order {order.serial} for {order.name} is not newer than {known.serial}")
        for number in {order.baseline, order.candidate} - {0}:
            self.manifest(order.name, number)
        targets = self._files.load(Targets, ROLLOUT)
        self._put_target(targets, order_target(order.name), encode_release_file(order))
        self._sign_next(targets, ROLLOUT)
        self._seal()

    def refresh(self) -> None:
        """Signs ``snapshot`` and ``timestamp`` anew: everything is as it was, and this is the newest."""
        self._seal()

    def rotate(self, role: str) -> int:
        """Replaces a role's key (for ``root``: all of them); needs two of the present root keys.

        Returns:
            The new root's version.

        Raises:
            ReleaseError: A key is missing, or the role is unknown.
        """
        if role == ROLLOUT:
            self._rotate_rollout()
            return self._files.root().version
        if role not in {"root", "targets", "snapshot", "timestamp"}:
            raise ReleaseError(f"there is no role {role!r}: root, {', '.join(ROLES)}")
        self._promote_named_keys()  # of a rotation that was interrupted
        root = self._files.root()
        old_signers = list(self._keys.root_signers())
        self._check_threshold(root, old_signers)
        names = [f"root-{index}" for index in range(1, NUM_ROOT_KEYS + 1)] if role == "root" else [role]
        new_signers = [self._keys.prepare(name) for name in names]
        for key_id in list(root.roles[role].keyids):
            root.revoke_key(key_id, role)
        for signer in new_signers:
            root.add_key(signer.public_key, role)
        self._write_root(root, [*old_signers, *(new_signers if role == "root" else [])])
        self._finish_rotation()
        return root.version

    def _rotate_rollout(self) -> None:
        targets = self._files.load(Targets, "targets")
        delegated = _rollout_role(targets)
        new = self._keys.prepare(ROLLOUT)
        for key_id in list(delegated.keyids):
            targets.revoke_key(key_id, ROLLOUT)
        targets.add_key(new.public_key, ROLLOUT)
        self._sign_next(targets, "targets")
        self._finish_rotation()

    def _finish_rotation(self) -> None:
        """Takes the new key into use; what its predecessor signed is signed again."""
        for role in self._promote_named_keys() & {"targets", ROLLOUT}:
            self._sign_next(self._files.load(Targets, role), role)
        self._seal()

    def _promote_named_keys(self) -> set[str]:
        """Takes successors into use that the newest metadata names already; returns whose."""
        root = self._files.root()
        named = {role: root.roles[role].keyids for role in ("targets", "snapshot", "timestamp")}
        named[ROLLOUT] = _rollout_role(self._files.load(Targets, "targets")).keyids
        named |= {f"root-{index}": root.roles["root"].keyids for index in range(1, NUM_ROOT_KEYS + 1)}
        return {name for name, key_ids in named.items() if self._keys.promote(name, key_ids)}

    def _write_root(self, root: Root, signers: Sequence[CryptoSigner]) -> None:
        """A new root is signed by enough of the old keys and enough of the new ones."""
        self._check_threshold(self._files.root(), signers)
        root.version += 1
        root.expires = _expiry(self._now(), "root")
        self._check_threshold(root, signers)
        write_durably(self._files.root_path(root.version), _sign(root, signers))

    def _check_threshold(self, root: Root, signers: Sequence[CryptoSigner]) -> None:
        have = {signer.public_key.keyid for signer in signers} & set(root.roles["root"].keyids)
        if len(have) < root.roles["root"].threshold:
            raise ReleaseError(
                f"{len(have)} of the root keys are here; {root.roles['root'].threshold} must sign: bring them, or name "
                "them with --key"
            )

    def _put_target(self, targets: Targets, path: str, data: bytes) -> None:
        info = TargetFile.from_data(path, data, ["sha256"])
        write_durably(self._files.targets / target_file(path, info), data)
        targets.targets[path] = info

    def _sign_next(self, signed: Targets, role: str) -> None:
        signed.version += 1
        signed.expires = _expiry(self._now(), role)
        name = f"{signed.version}.{role}.json"
        write_durably(self._files.metadata / name, self._signed_for(signed, role))

    def _signed_for(self, signed: Signed, role: str) -> bytes:
        """Signs, and makes sure that devices will accept the signature."""
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(self._keys.signer(role))
        delegator: Root | Targets = self._files.load(Targets, "targets") if role == ROLLOUT else self._files.root()
        try:
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except RepositoryError as error:
            raise ReleaseError(f"the {role} key that is here is not the one that devices trust: {error}") from error
        return metadata.to_bytes()

    def _seal(self) -> None:
        """Signs a snapshot of the newest targets, and the timestamp that makes it count."""
        snapshot_version = self._files.newest_version("snapshot") + 1
        meta = {f"{role}.json": MetaFile(self._files.newest_version(role)) for role in ("targets", ROLLOUT)}
        snapshot = Snapshot(version=snapshot_version, expires=_expiry(self._now(), "snapshot"), meta=meta)
        data = self._signed_for(snapshot, "snapshot")
        write_durably(self._files.metadata / f"{snapshot_version}.snapshot.json", data)
        known = self._files.metadata / "timestamp.json"
        version = self._files.read(Timestamp, "timestamp.json").version + 1 if known.is_file() else 1
        timestamp = Timestamp(
            version=version,
            expires=_expiry(self._now(), "timestamp"),
            snapshot_meta=MetaFile.from_data(snapshot_version, data, ["sha256"]),
            unrecognized_fields={SIGNED_AT_FIELD: dt.datetime.fromtimestamp(int(self._now()), dt.UTC).isoformat()},
        )
        write_durably(known, self._signed_for(timestamp, "timestamp"))


def _rollout_role(targets: Targets) -> DelegatedRole:
    if targets.delegations is None or targets.delegations.roles is None:
        raise ReleaseError("the channel has no rollout role")
    return targets.delegations.roles[ROLLOUT]


def _expiry(now: float, role: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(now), dt.UTC) + EXPIRES_AFTER[role]


def _checked(decode: Callable[[bytes], _FileT], data: bytes) -> _FileT:
    try:
        return decode(data)
    except WireError as error:
        raise ReleaseError(f"a signed file of this channel cannot be read: {error}") from error


def _sign(signed: Signed, signers: Sequence[CryptoSigner]) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()
