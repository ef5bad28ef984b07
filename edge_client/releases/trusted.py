"""The release channel, verified by The Update Framework: what the fleet's owners have signed, and nothing else.

python-tuf's client does the work (root chain, thresholds, versions, hashes, expiry); here its files come from the
retained MQTT messages of a `ReleaseMirror`, and its clock from the device's time floor. A failed refresh changes
nothing: what was verified before is still what the device runs.

Guarantees:
    - A manifest or an order is returned only if the keys that the root names for it have signed it, in the newest
      version that this device has ever verified or a newer one (TUF specification 1.0.34, section 5).
    - Expired metadata is refused by the clock if it can be believed, and by the time floor if not. A clock that is
      behind cannot make expired metadata fresh once the floor has passed its expiry; each verified timestamp raises the
      floor to the time at which it was signed.
    - A wrong clock alone never takes a working model away.
"""

import dataclasses
import datetime as dt
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from edge_client.errors import ReleaseRefused, StorageError
from edge_client.releases.mirror import ReleaseMirror
from edge_client.time_floor import TimeFloor, WallTime
from wire_protocol.errors import WireError
from wire_protocol.limits import MAX_CONTROL_BYTES
from wire_protocol.release import (
    SIGNED_AT_FIELD,
    ReleaseManifest,
    RolloutOrder,
    decode_manifest,
    decode_order,
    manifest_target,
    order_target,
)

__all__ = ["SIGNED_AT_FIELD", "TrustedReleases", "VerifiedModel", "check_root"]

_LOG = logging.getLogger(__name__)
_METADATA_URL: Final = "mqtt://release/"
_HTTP_NOT_FOUND: Final = 404
_LIMITS: Final = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=4,
    root_max_length=MAX_CONTROL_BYTES,
    timestamp_max_length=MAX_CONTROL_BYTES,
    snapshot_max_length=MAX_CONTROL_BYTES,
    targets_max_length=MAX_CONTROL_BYTES,
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedModel:
    """What the owners of the fleet have signed about one model, all of one moment."""

    order: RolloutOrder
    manifests: Mapping[int, ReleaseManifest]
    """Of the releases that the order names, by number."""


class TrustedReleases:
    """The verified state of the release channel, kept on disk.

    Args:
        directory: Where verified metadata is kept; made if it is not there. One device uses it at a time.
        root: The root metadata that the device was given by its owner, as bytes: where all trust begins.
        mirror: What the broker has said.
        floor: The device's clock.

    Raises:
        ReleaseRefused: ``root`` is not root metadata that is signed by itself.
        StorageError: The directory cannot be used.
    """

    def __init__(self, directory: Path, *, root: bytes, mirror: ReleaseMirror, floor: TimeFloor) -> None:
        self._directory = directory
        self._root = root
        self._mirror = mirror
        self._floor = floor
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"release metadata cannot be kept in {directory}: {error}") from error
        self._updater = self._new_updater()

    def refresh(self, models: Collection[str]) -> dict[str, VerifiedModel]:
        """Verifies what the mirror holds, all of it, before anything of it counts.

        Args:
            models: Names of the models that this device is to run.

        Returns:
            Model -> its order, with the manifests of the releases that it names. A model without an order is left out.

        Raises:
            ReleaseRefused: Something is forged, old, expired, or missing.
            StorageError: It cannot be stored.
        """
        updater = self._new_updater()
        self._updater = updater
        try:
            updater.refresh()
            self._note_time(updater)
            found = {name: self._model(updater, name) for name in models}
        except ExpiredMetadataError as error:
            raise ReleaseRefused(f"the release channel is out of date: {error}", is_expired=True) from error
        except (RepositoryError, DownloadError) as error:
            raise ReleaseRefused(f"the release channel cannot be verified: {error}") from error
        except WireError as error:
            raise ReleaseRefused(f"a signed file of the release channel cannot be read: {error}") from error
        except OSError as error:
            raise StorageError(f"release metadata cannot be kept: {error}") from error
        return {name: model for name, model in found.items() if model is not None}

    def _model(self, updater: Updater, name: str) -> VerifiedModel | None:
        data = self._target(updater, order_target(name))
        if data is None:
            return None
        order = decode_order(data)
        if order.name != name:
            raise ReleaseRefused(f"the order for {name} is one for {order.name}")
        numbers = sorted({order.baseline, order.candidate} - {0})
        return VerifiedModel(
            order=order, manifests={number: self._manifest(updater, name, number) for number in numbers}
        )

    def _manifest(self, updater: Updater, name: str, number: int) -> ReleaseManifest:
        data = self._target(updater, manifest_target(name, number))
        if data is None:
            raise ReleaseRefused(f"release {number} of {name} is ordered but not signed")
        manifest = decode_manifest(data)
        if (manifest.name, manifest.number) != (name, number):
            raise ReleaseRefused(f"the manifest of {name} {number} is one of {manifest.name} {manifest.number}")
        return manifest

    @property
    def versions(self) -> Mapping[str, int]:
        """``root`` and ``timestamp`` -> version of what has been verified; no timestamp before the first refresh."""
        trusted = self._updater._trusted_set  # noqa: SLF001 - python-tuf has no public way to look
        roles = ("root", "timestamp") if "timestamp" in trusted else ("root",)
        return {role: trusted[role].version for role in roles}

    def _target(self, updater: Updater, path: str) -> bytes | None:
        """A target's verified bytes, None if no key vouches for the path."""
        info = updater.get_targetinfo(path)
        if info is None:
            return None
        stored = str(self._directory / "targets" / path)
        return Path(updater.find_cached_target(info, stored) or updater.download_target(info, stored)).read_bytes()

    def _new_updater(self) -> Updater:
        """A fresh look at the channel: python-tuf's client refreshes once in its life."""
        try:
            updater = Updater(
                metadata_dir=str(self._directory),
                metadata_base_url=_METADATA_URL,
                target_dir=str(self._directory / "targets"),
                target_base_url=_METADATA_URL,
                fetcher=_MirrorFetcher(self._mirror),
                config=_LIMITS,
                bootstrap=self._root,
            )
        except RepositoryError as error:
            raise ReleaseRefused(f"the root metadata given to this device is not usable: {error}") from error
        except OSError as error:
            raise StorageError(f"release metadata cannot be kept in {self._directory}: {error}") from error
        # python-tuf asks the wall clock, which a Pi without power has lost; there is no public way to say otherwise.
        updater._trusted_set.reference_time = self._reference_time()  # noqa: SLF001
        return updater

    def _reference_time(self) -> dt.datetime:
        reading = self._floor.now()
        if isinstance(reading, WallTime):
            return dt.datetime.fromtimestamp(reading.unix_s, dt.UTC)
        _LOG.warning("release_clock_untrusted using=time_floor why=%r", reading.why)
        return dt.datetime.fromtimestamp(self._floor.floor, dt.UTC)

    def _note_time(self, updater: Updater) -> None:
        """A timestamp that was just verified says when it was signed: it is later than that now."""
        signed_at = updater._trusted_set.timestamp.unrecognized_fields.get(SIGNED_AT_FIELD)  # noqa: SLF001
        if not isinstance(signed_at, str):
            return
        try:
            moment = dt.datetime.fromisoformat(signed_at)
        except ValueError:
            return
        if moment.tzinfo is not None:
            self._floor.note_trusted(moment.timestamp())


def check_root(data: bytes) -> int:
    """Looks at the root metadata that a device was given.

    Returns:
        Its version.

    Raises:
        ReleaseRefused: It is not root metadata that is signed by itself.
    """
    try:
        root = Metadata[Root].from_bytes(data)
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    except (RepositoryError, AttributeError, ValueError) as error:
        raise ReleaseRefused(f"this is not root metadata that is signed by itself: {error}") from error
    version: int = root.signed.version
    return version


class _MirrorFetcher(FetcherInterface):
    """Gives python-tuf what the mirror holds; nothing here waits for a network."""

    def __init__(self, mirror: ReleaseMirror) -> None:
        self._mirror = mirror

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self._mirror.get(url.removeprefix(_METADATA_URL))
        if data is None:
            raise DownloadHTTPError(f"{url} is not on the broker", _HTTP_NOT_FOUND)
        return iter((data,))
