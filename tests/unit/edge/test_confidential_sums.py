"""What a daemon has for confidential sums: a sealer if it has keys, a place in a committee if its owner says so."""

import logging

import pytest

from edge_client.channel import DeviceChannel
from edge_client.confidential_sums import BOOK_FILE, ConfidentialSums
from edge_client.config_loader import load_config
from edge_client.eligibility.machine import Machine, Unknown
from edge_client.identity import IdentityStore
from edge_client.sealing_key import SealingKeyStore
from edge_client.state_writer import StateWriter


@pytest.fixture
def make(tmp_path):
    def make(*, has_keys=True, serve=True):
        state_dir = tmp_path / "state"
        state_dir.mkdir(exist_ok=True)
        path = tmp_path / "client.toml"
        path.write_text(
            '[device]\nid = "d1"\npopulation = "p"\nstate_dir = "state"\n[broker]\nurl = "mqtt://127.0.0.1"\n'
            f'[data]\npath = "data"\n[committee]\nserve = {str(serve).lower()}\n'
        )
        writer = StateWriter()
        identity = None
        if has_keys:
            identity = IdentityStore.of_this_process(state_dir, writer=writer).load_or_make()
            SealingKeyStore(state_dir, writer=writer).load_or_make()
        return ConfidentialSums(
            load_config(path, {}),
            channel=DeviceChannel(population="p", device_id="d1", client_version=""),
            identity=identity,
            writer=writer,
            machine=Machine(root=tmp_path / "machine", run=lambda command: Unknown("none"), num_cores=1),
        )

    return make


def test_a_device_without_keys_seals_nothing_and_opens_nothing_and_says_so(make, tmp_path, caplog):
    sums = make(has_keys=False)
    assert "committee_not_served" in caplog.text
    assert sums.sealer is None
    assert sums.tick(1e9) == []
    assert not (tmp_path / "state" / BOOK_FILE).exists()


def test_a_device_serves_in_a_committee_only_if_its_owner_says_so(make, tmp_path):
    assert make(serve=False).sealer is not None
    assert not (tmp_path / "state" / BOOK_FILE).exists()
    assert make(serve=True).sealer is not None
    assert (tmp_path / "state" / BOOK_FILE).exists()


def test_a_book_that_is_gone_ends_the_service_and_not_the_device(make, tmp_path, caplog):
    make()
    for path in (tmp_path / "state").glob(f"{BOOK_FILE}*"):
        if not path.name.endswith((".mark", ".kept")):
            path.unlink()
    with caplog.at_level(logging.ERROR):
        sums = make()
    assert sums.sealer is not None
    assert sums._opener is None
    assert "committee_not_served" in caplog.text


@pytest.mark.parametrize(("online", "is_ready"), [("1", True), ("0", False)])
def test_a_member_on_battery_is_not_ready(make, tmp_path, online, is_ready):
    supply = tmp_path / "machine" / "sys" / "class" / "power_supply"
    for name, files in (
        ("AC", {"type": "Mains", "online": online}),
        ("BAT0", {"type": "Battery", "status": "Charging" if is_ready else "Discharging", "capacity": "50"}),
    ):
        (supply / name).mkdir(parents=True)
        for file, text in files.items():
            (supply / name / file).write_text(text)
    desk = make()._opener._answer
    assert desk._is_on_mains() is is_ready
