"""What root writes into the state directory of the daemon's user is that user's: `sudo flockwise edge` locks nobody out."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from edge_client.atomic_files import write_atomically
from edge_client.identity import IdentityStore
from edge_client.privacy.ledger import PrivacyLedger
from edge_client.privacy.rules import PrivacyBudget
from edge_client.state_dir import StateDir, ledger_path
from edge_client.state_writer import StateWriter

DAEMON = 61234  # a user id as systemd makes them up

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def state():
    """A state directory of the daemon's user, in a place that this user can get to."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        directory = Path(name) / "state"
        directory.mkdir(mode=0o700)
        os.chown(directory, DAEMON, DAEMON)
        yield directory


def _enrol(state):
    """What `edge enrol` does to the directory."""
    directory = StateDir(state)
    directory.lock()
    IdentityStore(state, writer=StateWriter(), clock=lambda: 1e9).load_or_make()
    directory.unlock()


def _works_for_the_daemon(state):
    """Whether the daemon's user can lock the directory, and use and raise the identity: tried in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(DAEMON)
            os.setuid(DAEMON)
            StateDir(state).lock()
            found = IdentityStore(state, writer=StateWriter(), clock=lambda: 1e9).load()
            os._exit(0 if found is not None else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_key_epoch_and_lock_made_by_root_are_the_daemons(state):
    _enrol(state)
    assert {path.name: path.stat().st_uid for path in state.iterdir()} == {
        "identity.key": DAEMON,
        "epoch": DAEMON,
        "lock": DAEMON,
    }
    assert stat.S_IMODE((state / "identity.key").stat().st_mode) == 0o600
    assert _works_for_the_daemon(state)


def test_without_that_the_daemon_would_be_locked_out(state):
    _enrol(state)
    os.chown(state / "identity.key", 0, 0)
    assert not _works_for_the_daemon(state)


def test_a_ledger_that_root_has_read_is_still_the_daemons(state):
    path = ledger_path(state)
    with PrivacyLedger(path, budget=PrivacyBudget(epsilon=1.0)):
        pass
    for made in state.iterdir():
        os.chown(made, DAEMON, DAEMON)
    with PrivacyLedger(path, budget=None) as ledger:
        assert ledger.spent_epsilon == 0
    assert {made.stat().st_uid for made in state.iterdir()} == {DAEMON}


def test_a_directory_that_anybody_may_write_to_has_no_owner_to_give_to():
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.chown(directory, DAEMON, DAEMON)
        directory.chmod(0o1777)
        write_atomically(directory / "x", b"y")
        assert (directory / "x").stat().st_uid == 0
