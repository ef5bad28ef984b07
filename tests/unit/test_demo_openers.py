"""Who opens the sums of a demo: keys, directory, plan and the owners' rules fit together, whichever way is shown."""

import contextlib

import msgspec
import pytest

from coordinator.private_task import PrivacyWish, made_private
from edge_client.config import CommitteeSection, PrivacySection
from edge_client.config_loader import load_config
from edge_client.pinned_directory import PinnedDirectory
from edge_client.state_writer import StateWriter
from simulators.demo_openers import DemoOpeners
from simulators.demo_report import DemoConfig
from simulators.offline_enrolment import enrol_offline
from simulators.process_fleet import write_device_config
from simulators.virtual_run import linear_task
from wire_protocol.confidentiality import EncryptedSums, HelperSums, MaskedSums

DEVICES = tuple(f"d{index}" for index in range(9))
PRIVATE = made_private(
    linear_task(4, 2), PrivacyWish(epsilon=20.0, num_rounds=4, clipping_norm=0.5, min_contributors=3)
)


def _openers(tmp_path, confidentiality):
    config = DemoConfig(
        dataset="digits", model="linear", num_devices=9, out_dir=tmp_path / "out", epsilon=8.0,
        confidentiality=confidentiality,
    )  # fmt: skip
    openers = DemoOpeners(config, DEVICES, tmp_path, population="demo")
    homes = {name: home for name, (home, _) in openers.homes.items()}
    enrol_offline(tmp_path / "roster.sqlite", homes, population="demo")
    openers.enter()
    return openers


@pytest.mark.parametrize(
    ("confidentiality", "kind", "num_members"),
    [("helpers", HelperSums, 12), ("masks", MaskedSums, 9), ("he", EncryptedSums, 10)],
)
def test_everybody_is_in_the_directory_that_the_plan_names_and_owners_believe_its_authority_alone(
    tmp_path, confidentiality, kind, num_members
):
    openers = _openers(tmp_path, confidentiality)
    way = openers.confidential(PRIVATE).plan.confidentiality
    assert isinstance(way, kind)
    path = write_device_config(
        tmp_path, device_id="d8", population="demo", broker_url="mqtt://127.0.0.1", num_threads=1,
        privacy=f"[privacy]\nepsilon = 8.0\n{openers.owners_rules('d8')}",
    )  # fmt: skip
    config = load_config(path, {})
    assert config.privacy == PrivacySection(
        epsilon=8.0, confidentiality=(confidentiality,), authority=config.privacy.authority
    )
    pinned = PinnedDirectory(
        tmp_path / "d8" / "state", writer=StateWriter(), population="demo",
        authority_fingerprint=config.privacy.authority,
    )  # fmt: skip
    members = pinned.accept(openers.directory).members
    assert len(members) == num_members
    assert {opener.device_id: opener.box_key for opener in way.openers}.items() <= {
        name: keys.sealing_key for name, keys in members.items()
    }.items()
    assert openers.who_must_be_believed(openers.confidential(PRIVATE))


def test_seven_devices_of_a_demo_with_masks_serve_in_its_committee_and_no_other_process_is_needed(tmp_path):
    openers = _openers(tmp_path, "masks")
    serving = [name for name in DEVICES if "[committee]\nserve = true" in openers.owners_rules(name)]
    assert serving == list(DEVICES[:7])
    assert [member.device_id for member in openers.confidential(PRIVATE).plan.confidentiality.committee] == serving
    assert isinstance(openers.processes("mqtt://127.0.0.1", min_contributors=3), contextlib.nullcontext)
    assert CommitteeSection().serve is False


def test_a_demo_that_is_not_confidential_has_no_openers(tmp_path):
    openers = _openers(tmp_path, "none")
    assert (openers.directory, openers.encryption_keys, openers.owners_rules("d0")) == (None, None, "")
    assert openers.confidential(PRIVATE) is PRIVATE
    assert PRIVATE.plan.confidentiality is msgspec.UNSET
