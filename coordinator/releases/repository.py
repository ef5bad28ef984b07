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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, TypeVar

from tuf.api.metadata import Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from coordinator.durable_files import write_durably
from coordinator.errors import ReleaseError
from coordinator.releases.channel_files import ChannelFiles, target_file
from coordinator.releases.channel_signer import ChannelSigner, rollout_role
from coordinator.releases.signing_keys import ROLLOUT, KeyFiles
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

__all__ = ["ReleaseRepository"]

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
    """The release channel of one fleet. Changes of several processes wait for each other.

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
        self._signer = ChannelSigner(self._files, keys, now=now)
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
        if files.metadata.exists():
            raise ReleaseError(f"{directory} has a release channel already")
        files.make()
        ChannelSigner(files, keys, now=now).create()
        return cls(directory, keys, now=now)

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

    def version(self) -> bytes:
        """Names what is signed now: it changes with every change, for each ends with a new timestamp.

        Raises:
            OSError: It cannot be read.
        """
        return hashlib.sha256((self._files.metadata / "timestamp.json").read_bytes()).digest()

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
        for ref in (manifest.model, manifest.golden.blob, *(packed.blob for packed in manifest.packed)):
            data = given.get(ref.sha256)
            try:
                if data is None or split_blob(data, piece_bytes=ref.piece_bytes).ref != ref:
                    raise ReleaseError(f"the manifest names a blob {ref.sha256.hex()} that is not among those given")
            except BlobError as error:
                raise ReleaseError(str(error)) from error
        with self._files.locked():
            targets = self._files.load(Targets, "targets")
            path = manifest_target(manifest.name, manifest.number)
            if path in targets.targets:
                raise ReleaseError(
                    f"{manifest.name} {manifest.number} exists; a release never changes: take the next number"
                )
            if len(targets.targets) >= _MAX_LIVE_RELEASES:
                raise ReleaseError(
                    f"{len(targets.targets)} releases are live; flockwise models withdraw takes old ones out: every device reads the whole list"
                )
            for sha256, data in given.items():
                write_durably(self._files.blob_path(sha256), data)
            self._put_target(targets, path, encode_release_file(manifest))
            self._signer.sign_next(targets, "targets")
            self._signer.seal()

    def next_number(self, name: str) -> int:
        """The number of a model's next release: above every one that ever was, withdrawn ones included."""
        return self._files.highest_release(name) + 1

    def check_can_withdraw(self, name: str, number: int) -> None:
        """Looks whether a release can be withdrawn.

        Raises:
            ReleaseError: There is none, an order names it, or a key is not here.
        """
        self.manifest(name, number)
        order = self.orders().get(name)
        if order is not None and number in {order.baseline, order.candidate}:
            raise ReleaseError(f"the fleet is ordered to run {name} {number}: order another release first")
        for role in ("targets", "snapshot", "timestamp"):
            self._keys.signer(role)

    def withdraw_release(self, name: str, number: int) -> None:
        """Takes a release out: no device will accept it any more. Its blobs stay.

        Raises:
            ReleaseError: As `check_can_withdraw`.
        """
        with self._files.locked():
            self.check_can_withdraw(name, number)
            targets = self._files.load(Targets, "targets")
            del targets.targets[manifest_target(name, number)]
            self._signer.sign_next(targets, "targets")
            self._signer.seal()

    def set_order(self, order: RolloutOrder) -> None:
        """Signs an order; needs the ``rollout`` key, ``snapshot`` and ``timestamp``.

        Raises:
            ReleaseError: It names a release that is not signed, or is not newer than the one before.
        """
        with self._files.locked():
            known = self.orders().get(order.name)
            if known is not None and order.serial <= known.serial:
                raise ReleaseError(f"order {order.serial} for {order.name} is not newer than {known.serial}")
            for number in {order.baseline, order.candidate} - {0}:
                self.manifest(order.name, number)
            targets = self._files.load(Targets, ROLLOUT)
            self._put_target(targets, order_target(order.name), encode_release_file(order))
            self._signer.sign_next(targets, ROLLOUT)
            self._signer.seal()

    def locked(self) -> AbstractContextManager[None]:
        """Keeps others from changing the channel while several things are looked at and changed together.

        Raises:
            ReleaseError: Another process keeps it.
        """
        return self._files.locked()

    def check_can_order(self) -> None:
        """Looks whether the keys that an order needs are here.

        Raises:
            ReleaseError: One is not.
        """
        for name in (ROLLOUT, "snapshot", "timestamp"):
            self._keys.signer(name)

    def refresh(self) -> None:
        """Signs ``snapshot`` and ``timestamp`` anew: everything is as it was, and this is the newest."""
        with self._files.locked():
            self._signer.seal()

    def rotate(self, role: str) -> int:
        """Replaces a role's key (for ``root``: all of them); needs two of the present root keys, for rollout ``targets``.

        Returns:
            The newest root's version.

        Raises:
            ReleaseError: A key is missing, or the role is unknown.
        """
        with self._files.locked():
            return self._signer.rotate(role)

    def check_can_rotate(self, role: str) -> None:
        """Looks whether the keys that `rotate` needs are here.

        Raises:
            ReleaseError: Some are not.
        """
        self._signer.check_can_rotate(role)

    def roles(self) -> list[dict[str, object]]:
        """Of every role: version, end of its word, keys needed and keys that are here; for people."""
        root = self._files.root()
        rollout = rollout_role(self._files.load(Targets, "targets"))
        named = {role: (root.roles[role].keyids, root.roles[role].threshold) for role in root.roles}
        named[ROLLOUT] = (rollout.keyids, rollout.threshold)
        here = self._keys.key_ids()
        return [
            {
                "role": role,
                "version": self._files.load(_KINDS[role], role).version,
                "expires_at": self.expires_at(role).isoformat(),
                "threshold": threshold,
                "keys_here": len(here.intersection(key_ids)),
            }
            for role, (key_ids, threshold) in named.items()
        ]

    def _put_target(self, targets: Targets, path: str, data: bytes) -> None:
        info = TargetFile.from_data(path, data, ["sha256"])
        write_durably(self._files.targets / target_file(path, info), data)
        targets.targets[path] = info


def _checked(decode: Callable[[bytes], _FileT], data: bytes) -> _FileT:
    try:
        return decode(data)
    except WireError as error:
        raise ReleaseError(f"a signed file of this channel cannot be read: {error}") from error
