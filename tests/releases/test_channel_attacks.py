"""The attacks of the TUF specification (section 1.5.2) on a device over MQTT: whatever the broker retains, none is accepted.

The attacker here is the broker: it may change, drop, keep back and add any retained message. Where a class needs a
stolen key, the test says which.
"""

import json
import shutil
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets, Timestamp

from edge_client.errors import ReleaseRefused
from edge_client.releases.mirror import MAX_MIRROR_BYTES, MAX_MIRROR_FILES
from edge_client.releases.trusted import VerifiedModel
from tests.releases.conftest import DAY_S, Channel, Clock, Device, make_manifest, make_order, model_blob
from wire_protocol.blobs import BlobAssembler
from wire_protocol.errors import BlobError
from wire_protocol.release import encode_release_file, manifest_target, order_target
from wire_protocol.topics import release_file

Files = dict[str, bytes]


def _resign(files: Files, name: str, signer: CryptoSigner, edit: Any) -> None:
    """Edits a file and signs it with some key: what a thief of that key can do."""
    metadata: Metadata[Any] = Metadata.from_bytes(files[name])
    edit(metadata.signed)
    metadata.sign(signer)
    files[name] = metadata.to_bytes()


def _put_order(targets: Targets, files: Files, data: bytes) -> None:
    info = TargetFile.from_data(order_target("digits"), data, ["sha256"])
    targets.targets[order_target("digits")] = info
    files[f"{info.hashes['sha256']}.{order_target('digits')}"] = data


def _runs_release_1(model: VerifiedModel) -> bool:
    return model.order.baseline == 1 and model.manifests == {1: make_manifest(1)}


def _serial(channel: Channel) -> int:
    return channel.repository.orders()["digits"].serial


def test_arbitrary_installation__an_order_of_the_attackers_own_is_refused(channel: Channel, device: Device) -> None:
    files = channel.files()
    forged = encode_release_file(make_order(9, baseline=7))
    altered = files | {name: forged for name in files if name.endswith(order_target("digits"))}
    with pytest.raises(ReleaseRefused, match="cannot be verified"):
        device.refresh(altered)
    assert _runs_release_1(device.refresh(files))
    # From here on the verified copy on the device's disk is good, whatever the broker says.
    device.restart()
    assert _runs_release_1(device.refresh(altered))


def test_arbitrary_installation__metadata_signed_by_an_unknown_key_is_refused(channel: Channel, device: Device) -> None:
    files = channel.files()
    thief = CryptoSigner.generate_ed25519()
    for name in [name for name in files if not name.endswith(("root.json", order_target("digits")))]:
        if "manifest" not in name:
            _resign(files, name, thief, lambda signed: setattr(signed, "version", signed.version + 1))
    with pytest.raises(ReleaseRefused, match="cannot be verified"):
        device.refresh(files)


def test_endless_data__the_mirror_is_bounded_in_files_and_bytes(device: Device) -> None:
    for index in range(MAX_MIRROR_FILES + 500):
        device.mirror.take(release_file("digits", f"{index + 1}.targets.json"), bytes(100_000))
    assert len(device.mirror) <= MAX_MIRROR_FILES
    assert sum(len(device.mirror.get(name) or b"") for name in device.mirror) <= MAX_MIRROR_BYTES
    assert device.mirror.num_refused["full"] > 0


def test_endless_data__one_file_beyond_the_limit_is_not_kept(device: Device) -> None:
    device.mirror.take(release_file("digits", "timestamp.json"), bytes(200_000))
    assert len(device.mirror) == 0
    assert device.mirror.num_refused["oversized"] == 1


def test_endless_data__a_model_longer_than_signed_is_refused_piece_by_piece() -> None:
    blob = model_blob(1)
    assembler = BlobAssembler(blob.ref)
    assembler.set_piece_list(blob.piece_digests)
    with pytest.raises(BlobError):
        assembler.add(0, blob.piece(0) + b"more")
    with pytest.raises(BlobError):
        assembler.add(blob.ref.num_pieces, b"one piece more")


def test_extraneous_dependencies__a_manifest_that_is_not_signed_is_not_read(channel: Channel, device: Device) -> None:
    files = channel.files()
    files["0" * 64 + "." + manifest_target("digits", 2)] = encode_release_file(make_manifest(2))
    name = next(name for name in files if name.endswith(".rollout.json"))
    data = encode_release_file(make_order(2, baseline=1, candidate=2, permille=1000))
    _resign(files, name, channel.keys.signer("rollout"), lambda signed: _put_order(signed, files, data))
    with pytest.raises(ReleaseRefused, match="not signed"):
        device.refresh(files)


def test_fast_forward__a_version_driven_to_the_end_is_undone_by_changing_the_key(
    channel: Channel, device: Device
) -> None:
    """With a stolen timestamp key: the device cannot tell; but a new key brings it back."""
    device.refresh(channel.files())
    stolen = channel.keys.signer("timestamp")
    files = channel.files()
    _resign(files, "timestamp.json", stolen, lambda signed: setattr(signed, "version", 2**31))
    device.refresh(files)
    assert device.trusted.versions["timestamp"] == 2**31
    with pytest.raises(ReleaseRefused, match="version"):
        device.refresh(channel.files())
    channel.repository.rotate("timestamp")
    device.restart()
    assert _runs_release_1(device.refresh(channel.files()))
    assert device.trusted.versions["timestamp"] < 100


def test_indefinite_freeze__old_files_are_noticed_when_they_expire(
    channel: Channel, device: Device, clock: Clock
) -> None:
    files = channel.files()
    device.refresh(files)
    clock.now += 8 * DAY_S
    with pytest.raises(ReleaseRefused, match="out of date") as caught:
        device.refresh(files)
    assert caught.value.is_expired


def test_indefinite_freeze__a_clock_in_1970_does_not_make_them_fresh(
    channel: Channel, device: Device, clock: Clock
) -> None:
    """A new device's disk knows no versions, so that only the clock can tell; its floor is what it heard before."""
    old = channel.files()
    clock.now += 20 * DAY_S
    channel.repository.refresh()
    device.refresh(channel.files())
    device.floor.flush()
    clock.now = 0.0
    shutil.rmtree(device.directory / "tuf")
    device.restart()
    with pytest.raises(ReleaseRefused, match="out of date"):
        device.refresh(old)


def test_indefinite_freeze__a_clock_in_1970_does_not_keep_fresh_files_out(
    channel: Channel, device: Device, clock: Clock
) -> None:
    files = channel.files()
    clock.now = 0.0
    assert _runs_release_1(device.refresh(files))


@pytest.mark.parametrize("missing", ["timestamp.json", ".snapshot.", ".targets.", ".rollout.", "order-", "manifest-"])
def test_malicious_mirror__a_broker_that_keeps_files_back_takes_nothing_away(
    channel: Channel, device: Device, missing: str
) -> None:
    device.refresh(channel.files())
    channel.release(2)
    channel.repository.set_order(make_order(2, baseline=1, candidate=2, permille=1000))
    held_back = {name: data for name, data in channel.files().items() if missing not in name}
    with pytest.raises(ReleaseRefused, match="cannot be verified"):
        device.refresh(held_back)
    device.restart()
    assert set(device.refresh(channel.files()).manifests) == {1, 2}


def test_mix_and_match__files_of_two_moments_are_refused(channel: Channel, device: Device) -> None:
    before = channel.files()
    channel.release(2)
    after = channel.files()
    mixed = after | {name: data for name, data in before.items() if ".snapshot." in name}
    snapshot_now = next(name for name in after if ".snapshot." in name)
    mixed[snapshot_now] = before[next(name for name in before if ".snapshot." in name)]
    with pytest.raises(ReleaseRefused, match="cannot be verified"):
        device.refresh(mixed)


def test_rollback__an_older_timestamp_is_refused(channel: Channel, device: Device) -> None:
    old = channel.files()
    channel.repository.set_order(make_order(2, baseline=1))
    device.refresh(channel.files())
    device.restart()
    with pytest.raises(ReleaseRefused, match="version"):
        device.refresh(old)


def test_rollback__older_orders_under_a_new_timestamp_are_refused(channel: Channel, device: Device) -> None:
    """With stolen timestamp and snapshot keys, which are online: versions of what others sign may not fall."""
    channel.repository.set_order(make_order(2, baseline=1))
    device.refresh(channel.files())
    files = channel.files()
    name = next(name for name in files if ".snapshot." in name)
    version = int(name.split(".")[0]) + 1

    def back(signed: Snapshot) -> None:
        signed.version = version
        signed.meta["rollout.json"].version -= 1

    _resign(files, name, channel.keys.signer("snapshot"), back)
    files[f"{version}.snapshot.json"] = files.pop(name)

    def newer(signed: Timestamp) -> None:
        signed.version += 1
        signed.snapshot_meta.version = version
        signed.snapshot_meta.hashes = None

    _resign(files, "timestamp.json", channel.keys.signer("timestamp"), newer)
    with pytest.raises(ReleaseRefused, match="version"):
        device.refresh(files)


def test_key_compromise__one_of_three_root_keys_changes_nothing(channel: Channel, device: Device) -> None:
    device.refresh(channel.files())
    files = channel.files()
    thief = CryptoSigner.generate_ed25519()
    metadata: Metadata[Any] = Metadata.from_bytes(files["1.root.json"])
    metadata.signed.version = 2
    metadata.signed.add_key(thief.public_key, "targets")
    metadata.sign(channel.keys.signer("root-1"))
    files["2.root.json"] = metadata.to_bytes()
    with pytest.raises(ReleaseRefused, match="cannot be verified"):
        device.refresh(files)


def test_key_compromise__the_rollout_key_cannot_sign_a_manifest(channel: Channel, device: Device) -> None:
    files = channel.files()
    name = next(name for name in files if name.endswith(".rollout.json"))
    data = encode_release_file(make_manifest(2))
    info = TargetFile.from_data(manifest_target("digits", 2), data, ["sha256"])
    files[f"{info.hashes['sha256']}.{manifest_target('digits', 2)}"] = data

    def edit(signed: Targets) -> None:
        signed.targets[manifest_target("digits", 2)] = info
        _put_order(signed, files, encode_release_file(make_order(2, baseline=2)))

    _resign(files, name, channel.keys.signer("rollout"), edit)
    with pytest.raises(ReleaseRefused, match="not signed"):
        device.refresh(files)


def test_key_compromise__a_revoked_targets_key_signs_no_more_also_for_a_device_that_was_away(
    channel: Channel, device: Device
) -> None:
    device.refresh(channel.files())
    stolen = channel.keys.signer("targets")
    for _ in range(3):
        channel.repository.rotate("root")
    channel.repository.rotate("targets")
    device.restart()
    assert _runs_release_1(device.refresh(channel.files()))
    assert device.trusted.versions["root"] == 5
    files = channel.files()
    name = next(name for name in files if name.endswith(".targets.json"))
    _resign(files, name, stolen, lambda signed: signed.targets.clear())
    fresh = Device(directory=device.directory.with_name("another"), root=channel.first_root, clock=device.clock)
    with pytest.raises(ReleaseRefused, match="cannot be verified"):
        fresh.refresh(files)


def test_wrong_software__an_order_under_another_models_name_is_refused(channel: Channel, device: Device) -> None:
    files = channel.files()
    name = next(name for name in files if name.endswith(".rollout.json"))
    other = make_order(5, baseline=1)
    data = encode_release_file(other).replace(b'"digits"', b'"speech"')
    _resign(files, name, channel.keys.signer("rollout"), lambda signed: _put_order(signed, files, data))
    with pytest.raises(ReleaseRefused, match="one for speech"):
        device.refresh(files)


def test_a_root_that_is_not_signed_by_itself_is_no_beginning(channel: Channel, device: Device) -> None:
    root = json.loads(channel.first_root)
    root["signed"]["version"] = 7
    with pytest.raises(ReleaseRefused, match="root metadata"):
        Device(directory=device.directory.with_name("x"), root=json.dumps(root).encode(), clock=device.clock)
