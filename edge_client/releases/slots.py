"""The releases of one model on disk: one in use, at most one before it, and a link that apps read by.

    <state_dir>/models/<name>/
        current -> slots/7            what apps open: <...>/current/model.tflite
        slots/7/{model.tflite, golden.safetensors, manifest.json}
        slots/6/...                   the one before, for a way back without a network
        fetching/...                  pieces of the next one
        record                        which is current, which came before, which are refused and why

A slot is written whole under a name of its own and renamed; the link is replaced by a rename. So at any instant, power
cuts included, ``current`` leads to a whole model or, before the first one, to nothing.
"""

import contextlib
import hashlib
import logging
import shutil
from pathlib import Path
from typing import Annotated, Final

import msgspec

from broker_link.failpoints import hit
from edge_client.atomic_files import sync_directory
from edge_client.checked_file import seal, unseal
from edge_client.errors import CorruptState, StorageError
from edge_client.releases.app_uses import uses_path
from edge_client.state_writer import StateWriter
from wire_protocol.errors import WireError
from wire_protocol.release import ReleaseManifest, decode_manifest, encode_release_file

__all__ = [
    "GOLDEN_FILE",
    "MANIFEST_FILE",
    "MODEL_FILE",
    "RECORD_FILE",
    "ModelSlots",
    "SlotRecord",
    "decode_slot_record",
    "encode_slot_record",
]

MODEL_FILE: Final = "model.tflite"
GOLDEN_FILE: Final = "golden.safetensors"
MANIFEST_FILE: Final = "manifest.json"
RECORD_FILE: Final = "record"
_CURRENT: Final = "current"
_MAX_RECORD_BYTES: Final = 64 * 1024
_MAX_REFUSED: Final = 64
_KIND: Final = b"RL"
_LOG = logging.getLogger(__name__)

_Number = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device remembers about the releases of one model."""

    current: _Number = 0
    """The release in use; 0 for none."""
    previous: _Number = 0
    """The one before: where a roll-back goes."""
    on_trial: bool = False
    """Whether the current one is still being watched."""
    serial: _Number = 0
    """Serial of the last order that was followed."""
    refused: dict[str, str] = {}
    """Release number -> why it is not tried again."""


class ModelSlots:
    """The slots of one model. One process changes them; any may read by the link.

    Args:
        directory: Of this model; made if need be.
        writer: Writes, and counts what wears the disk.

    Raises:
        StorageError: It cannot be used.
    """

    def __init__(self, directory: Path, *, writer: StateWriter) -> None:
        self._directory = directory
        self._writer = writer
        try:
            (directory / "slots").mkdir(mode=0o755, parents=True, exist_ok=True)
            uses = uses_path(directory)
            uses.mkdir(exist_ok=True)
            # Like /tmp: every app may put up a mark, and take down its own alone.
            uses.chmod(0o1777)
            self._sweep()
        except OSError as error:
            raise StorageError(f"models cannot be kept in {directory}: {error}") from error
        self.record = self._load()
        self._mend()

    @property
    def fetching(self) -> Path:
        """Where pieces of the next release are kept."""
        return self._directory / "fetching"

    @property
    def current_path(self) -> Path:
        """The stable path that apps open."""
        return self._directory / _CURRENT

    def has(self, number: int) -> bool:
        """Whether a release is here, whole."""
        return number > 0 and self._slot(number).is_dir()

    def is_whole(self, number: int, manifest: ReleaseManifest | None = None) -> bool:
        """Whether a release is here, and every byte of it is what its manifest says; reads it all.

        Args:
            number: The release's.
            manifest: The verified one, if it is at hand; otherwise the one that was stored with it.
        """
        own = self.manifest(number)
        if own is None or (manifest is not None and own != manifest):
            return False
        files = ((MODEL_FILE, own.model), (GOLDEN_FILE, own.golden.blob))
        try:
            return all(
                hashlib.sha256((self._slot(number) / name).read_bytes()).digest() == ref.sha256 for name, ref in files
            )
        except OSError:
            return False

    def drop_damaged(self, number: int) -> None:
        """Deletes a release that is not whole; if it is in use, the one before is put into use, or none.

        Raises:
            StorageError: The record or the link cannot be written.
        """
        if number == self.record.current:
            fallback = self._way_back() if self.is_whole(self.record.previous) else 0
            self._save(msgspec.structs.replace(self.record, current=fallback, previous=0, on_trial=False))
            self._mend_link()
        shutil.rmtree(self._slot(number), ignore_errors=True)

    def path(self, number: int) -> Path:
        """The directory of a release that is here."""
        return self._slot(number)

    def manifest(self, number: int) -> ReleaseManifest | None:
        """The manifest of a release that is here; it was verified when it came. None if it cannot be read."""
        try:
            return decode_manifest((self._slot(number) / MANIFEST_FILE).read_bytes())
        except (OSError, WireError):
            return None

    def put(self, manifest: ReleaseManifest, *, model: bytes, golden: bytes) -> None:
        """Stores a release in a slot of its own; it is not in use yet.

        Args:
            manifest: Verified.
            model: Its model's bytes, checked against the manifest.
            golden: Its golden batch, likewise.

        Raises:
            StorageError: The disk is full, or cannot be written.
        """
        part = self._directory / "slots" / f".{manifest.number}.part"
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(mode=0o755)
            files = {MODEL_FILE: model, GOLDEN_FILE: golden, MANIFEST_FILE: encode_release_file(manifest)}
            for name, data in files.items():
                self._writer.write(part / name, data, mode=0o644)
            hit("device.release.before_slot")
            shutil.rmtree(self._slot(manifest.number), ignore_errors=True)
            part.rename(self._slot(manifest.number))
            sync_directory(part.parent)
            hit("device.release.after_slot")
        except OSError as error:
            raise StorageError(f"release {manifest.number} cannot be kept in {self._directory}: {error}") from error

    def switch(self, number: int, *, on_trial: bool) -> None:
        """Puts a release into use, at once for everybody who opens the link from now on.

        Raises:
            StorageError: It is not here, or the link cannot be replaced; what was in use still is.
        """
        if not self.has(number):
            raise StorageError(f"release {number} is not in {self._directory}")
        before = self.record
        # What never passed its trial is no way back, as long as something is that did.
        stays = number == before.current or (before.on_trial and before.previous)
        previous = before.previous if stays else before.current
        previous = 0 if previous == number else previous
        # First the record, then the link: a death in between is mended at the start, towards the record.
        self._save(msgspec.structs.replace(before, current=number, previous=previous, on_trial=on_trial))
        hit("device.release.before_switch")
        try:
            self._point(number)
        except OSError as error:
            # In memory whatever the disk says: apps still read what was in use.
            self.record = before
            self._save(before)
            raise StorageError(f"{self.current_path} cannot be replaced: {error}") from error
        hit("device.release.after_switch")

    def settle(self) -> None:
        """The current release has passed its trial."""
        self._save(msgspec.structs.replace(self.record, on_trial=False))
        self.prune()

    def roll_back(self, reason: str) -> int:
        """Goes back to the release before, and refuses the current one from now on.

        Returns:
            The number of the release in use afterwards; the same as before if there is no other.

        Raises:
            StorageError: The record or the link cannot be written: the bad one is in use still, so do this again.
        """
        record = self.record
        bad = record.current
        self.refuse(bad, reason)
        if not self._way_back() or not self.is_whole(record.previous):
            # A bad model is better than none: the owner's app decides.
            self._save(msgspec.structs.replace(self.record, on_trial=False))
            return bad
        refused = self.record
        self._save(msgspec.structs.replace(self.record, current=record.previous, previous=0, on_trial=False))
        hit("device.release.before_rollback")
        try:
            self._point(record.previous)
        except OSError as error:
            self.record = refused
            raise StorageError(f"{self.current_path} cannot be replaced: {error}") from error
        hit("device.release.after_rollback")
        return record.previous

    def refuse(self, number: int, reason: str) -> None:
        """Remembers that a release does not work here."""
        refused = dict(list(self.record.refused.items())[-(_MAX_REFUSED - 1) :])
        refused[str(number)] = reason[:200]
        self._save(msgspec.structs.replace(self.record, refused=refused))

    def note_serial(self, serial: int) -> None:
        """Remembers the newest order that was followed."""
        if serial != self.record.serial:
            self._save(msgspec.structs.replace(self.record, serial=serial))

    def prune(self, *, keep: int = 0) -> None:
        """Deletes what is neither current, nor the way back, nor ``keep``."""
        wanted = {str(number) for number in (self.record.current, self.record.previous, keep) if number}
        # What cannot be deleted now is deleted next time.
        with contextlib.suppress(OSError):
            for slot in (self._directory / "slots").iterdir():
                if slot.name not in wanted and not slot.name.startswith("."):
                    shutil.rmtree(slot, ignore_errors=True)

    def drop_fetched(self) -> None:
        """Deletes pieces that are of no use any more."""
        shutil.rmtree(self.fetching, ignore_errors=True)

    def _slot(self, number: int) -> Path:
        return self._directory / "slots" / str(number)

    def _point(self, number: int) -> None:
        link = self._directory / f".{_CURRENT}.part"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("slots") / str(number))
        link.replace(self.current_path)
        sync_directory(self._directory)

    def _load(self) -> SlotRecord:
        path = self._directory / RECORD_FILE
        data = self._writer.read(path, max_bytes=_MAX_RECORD_BYTES)
        if data is None:
            return self._record_of_link()
        try:
            return decode_slot_record(data)
        except CorruptState as error:
            self._writer.quarantine(path, error)
            return self._record_of_link()

    def _record_of_link(self) -> SlotRecord:
        """Without a record, what is in use stays in use."""
        with contextlib.suppress(OSError, ValueError):
            number = int(self.current_path.readlink().name)
            if self.has(number):
                return SlotRecord(current=number)
        return SlotRecord()

    def _mend(self) -> None:
        """After a death between record and link: the link follows the record, or the record what is there."""
        record = self.record
        if record.current and not self.is_whole(record.current):
            _LOG.error("release_slot_lost number=%d", record.current)
            self.drop_damaged(record.current)
        self._mend_link()

    def _way_back(self) -> int:
        """The release before, unless it is refused; 0 for none."""
        previous = self.record.previous
        return 0 if str(previous) in self.record.refused else previous

    def _mend_link(self) -> None:
        current = self.record.current
        try:
            if not current:
                self.current_path.unlink(missing_ok=True)
                return
            is_right = self.current_path.is_symlink() and self.current_path.readlink().name == str(current)
            if not is_right:
                self._point(current)
        except OSError as error:
            raise StorageError(f"{self.current_path} cannot be mended: {error}") from error

    def _save(self, record: SlotRecord) -> None:
        try:
            self._writer.write(self._directory / RECORD_FILE, encode_slot_record(record))
        except OSError as error:
            raise StorageError(f"the record of {self._directory} cannot be written: {error}") from error
        self.record = record

    def _sweep(self) -> None:
        for part in (self._directory / "slots").glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)


def encode_slot_record(record: SlotRecord) -> bytes:
    """The record's bytes, with a checksum."""
    return seal(_KIND, msgspec.json.encode(record))


def decode_slot_record(data: bytes) -> SlotRecord:
    """Decodes a record.

    Raises:
        CorruptState: It is not one that was written here.
    """
    try:
        return msgspec.json.decode(unseal(_KIND, data, max_bytes=_MAX_RECORD_BYTES), type=SlotRecord)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptState(f"not a record of releases: {error}") from error
